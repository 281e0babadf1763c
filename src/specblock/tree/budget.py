"""The budget of every round, from measured costs and from what the rounds achieve."""

from __future__ import annotations

import copy
from typing import Self

from torch import Tensor

from specblock.tree.accept import follow
from specblock.tree.account import Account
from specblock.tree.averages import Recent
from specblock.tree.cost import CostTable, best_nodes, choose_leaves
from specblock.tree.draft_tree import DraftTree
from specblock.tree.drag import Drag
from specblock.tree.survival import SurvivalModel, Trials, trim


class Learned:
    """What the budgets of all texts know together.

    Attributes:
        costs: the measured table. model: see :class:`BudgetController`.
        overall, gain, asking: running means behind `price`, `block_gain` and `asking_gain`.
        drag: what the clock says of the table.
    """

    def __init__(self, costs: CostTable, model: SurvivalModel | None, heed_clock: bool):
        self.costs, self.model = costs, model or SurvivalModel.fresh()
        self.drag, self.heed_clock = Drag(), heed_clock
        self.overall = Recent(0.98, 1.0, costs.target_seconds(1))
        self.gain = Recent(0.98, 4.0, 4.0)
        self.asking = Recent(0.98, 4.0, 4.0)


class BudgetController:
    """Chooses the budget of every round and learns from what the rounds achieve.

    A round asks `speculate`; if so the network drafts, and asks `leaves` before every later block
    and `nodes` before verification, and the round reports to `update`; else `copies` is all that is
    verified, and it reports to `update_without`. `begin` announces another text. What is kept:

    * `model`: the survival model, updated with the outcomes of every verification;
    * `price` of a second: tokens by seconds of the last 50 rounds or so, at least the plain speed;
    * `block_gain`: how much more a round was worth with the candidates of later blocks than
      without, by the probability that the walk ended at one of their leaves;
    * `asking_gain`: the same of the network's nodes, by the probability that the copies end at the
      root;
    * `account`: the plain steps that this text may still lose (:class:`Account`);
    * `drag`: by how much the clock says the table is wrong (:class:`Drag`); nothing unless
      `heed_clock` is set, as it is where costs are this machine's.

    No round may cost more than the account covers if nothing of it is accepted; where that leaves
    no round, the next token is decoded plainly. So whatever drafter and copies claim, by the cost
    table a text of n tokens takes no longer than n + `Account.granted(n)` plain steps, and a text
    that stops to pay loses little of what it won. Without a clock to heed, equal rounds lead to
    equal choices.
    """

    # Worth at least so many times its cost, whatever was learned: with no copies at hand the
    # network is always asked, with weak ones nearly always.
    LEAST_WORTH = 1.25

    def __init__(
        self, costs: CostTable, model: SurvivalModel | None = None, *, heed_clock: bool = False
    ):
        self._learned = Learned(costs, model, heed_clock)
        self._set_up()

    def _set_up(self) -> None:
        """Nothing yet of a text."""
        self.account, self._pending = Account(), 1
        self._booked, self._alone = (False, 0.0), True
        self._start(None)

    def another(self) -> Self:
        """The budget of another text: an account of its own, and what is learned shared."""
        other = copy.copy(self)
        other._set_up()
        return other

    def in_company(self, texts: int) -> None:
        """Before a round: so many texts take part in the step.

        Only a text that is alone drafts. Beside others a plain step costs each little, and drafting
        text by text costs as much as ever: it lost up to a fifth (docs/experiments.md, 40).
        """
        self._alone = texts == 1

    @property
    def costs(self) -> CostTable:
        return self._learned.costs

    @costs.setter
    def costs(self, costs: CostTable) -> None:
        self._learned.costs = costs

    @property
    def model(self) -> SurvivalModel:
        return self._learned.model

    @model.setter
    def model(self, model: SurvivalModel) -> None:
        self._learned.model = model

    @property
    def drag(self) -> Drag:
        return self._learned.drag

    @property
    def price(self) -> float:
        return max(self.costs.plain_rate, self._learned.overall.ratio)

    @property
    def block_gain(self) -> float:
        return self._learned.gain.ratio

    @property
    def asking_gain(self) -> float:
        return self._learned.asking.ratio

    def begin(self, pairs: int = 1) -> None:
        """Another text: a new account. The network's first forward has to read ``pairs`` of it."""
        self.account.begin()
        self._pending = pairs

    def affords(self) -> bool:
        """Whether the account covers a round at all; if not, no draft is worth looking for."""
        return self._alone and self._affordable(0.0) >= 1 and not self.drag.wants_plain

    def speculate(self, copied: DraftTree | None = None) -> bool:
        """Whether this round asks the network. Starts a round.

        Args:
            copied: what the text so far suggests, for nothing.
        """
        self._start(copied)
        if not self._alone or self.drag.wants_plain:
            return False
        return self._affordable(self._drafting()) >= 1 and self._worth_asking()

    def _drafting(self) -> float:
        """Seconds of what the network was asked for in this round, its first block at least."""
        later = sum(self.costs.draft_next_seconds(count) for count in self._leaves)
        return self.costs.draft_first_seconds(self._pending) + later

    def _affordable(self, spent: float) -> int:
        """How many nodes the account covers, after so many seconds, if none is accepted."""
        seconds = (1.0 + self.account.left) * self.costs.target_seconds(1) / self.drag.factor
        return self.costs.nodes_within(seconds - spent - self.costs.overhead)

    def _start(self, copied: DraftTree | None) -> None:
        self._leaves, self._leaf_mass = [], 0.0
        self._copied, self._copy_nodes, self._ending = copied, 0, 1.0
        self._survival = self._reached = None
        if copied is None or copied.num_draft == 0:
            return
        self._survival = self.model.survival(copied.log_probs, copied.classes, copied.parents)
        self._ending = 1.0 - float(self._survival[copied.parents == 0].sum())
        self._reached = self._survival[1:].sort(descending=True, stable=True).values
        self._copy_nodes = self._without(self.price)[0]

    def _without(self, price: float) -> tuple[int, float]:
        """How many copies to verify alone, and what the round is then worth."""
        plain = 1.0 - price * self.costs.target_seconds(1)
        if self._reached is None:
            return 0, plain
        nodes, value = best_nodes(self._reached[: self._affordable(0.0)], self.costs, 0.0, price)
        value -= price * self.costs.overhead
        return (nodes, value) if nodes and value > plain else (0, plain)

    def _worth_asking(self) -> bool:
        """Whether what the network may add to the copies is worth its time."""
        cost = self.price * self.costs.draft_first_seconds(1)  # the backlog is due anyway
        return max(self.asking_gain, self.LEAST_WORTH * cost) * self._ending >= cost

    def copies(self) -> DraftTree | None:
        """What to verify of the copies in a round without the network; None: nothing."""
        if not self._copy_nodes:
            return None
        return trim(self._copied, self._survival, self._copy_nodes)

    def leaves(self, leaf_survival: Tensor, max_leaves: int) -> int:
        """How many of the leaves (float [n], see `choose_leaves`) start a block."""
        chosen = choose_leaves(leaf_survival, self.block_gain, self.costs, self.price, max_leaves)
        spent = self._drafting()
        while chosen and self._affordable(spent + self.costs.draft_next_seconds(chosen)) < 2:
            chosen -= 1  # what the block proposes must have a place
        self._leaves.append(chosen)
        self._leaf_mass += float(leaf_survival[:chosen].sum())
        return chosen

    def nodes(self, survival: Tensor, later: Tensor | None = None) -> int:
        """How many candidates to verify.

        Args:
            survival: float [C], falling (see `choose_nodes`).
            later: bool [C], candidates that only later blocks proposed; None: no gain is learned.
        """
        price = self.price
        chosen, value = best_nodes(survival, self.costs, 0.0, price)
        if later is not None and self._leaf_mass > 0:
            first = best_nodes(survival[~later], self.costs, 0.0, price)[1]
            self._learned.gain.add(value - first, self._leaf_mass)
        gained = value - price * self.costs.overhead - self._without(price)[1]
        self._learned.asking.add(gained, self._ending)
        # one at least, or a survival model that was disappointed would never see another outcome
        return max(min(chosen, self._affordable(self._drafting())), min(1, len(survival)))

    def update(self, log_probs: Tensor, classes: Tensor, trials: Trials) -> None:
        """After a round of the network: fields of the verified tree, trials of its acceptance."""
        self.model = self.model.update(log_probs, classes, trials)
        tokens = len(trials)  # every visited node yields one
        nodes = len(log_probs) - 1
        seconds = self.costs.round_seconds(self._pending, tuple(self._leaves), nodes)
        self._pending = 0
        self._book(tokens, seconds, tried=True)

    def update_without(self, tokens: int = 1) -> None:
        """After a round without the network, which yielded ``tokens``."""
        nodes = self._copy_nodes
        seconds = self.costs.target_seconds(nodes + 1) + (self.costs.overhead if nodes else 0.0)
        self._book(tokens, seconds, tried=nodes > 0)

    def clocked(self, seconds: float) -> None:
        """What the round that was reported last took by the clock."""
        drafted, by_table = self._booked
        if self._learned.heed_clock and self._alone:
            self.drag.add(drafted, seconds, by_table)

    def _book(self, tokens: int, seconds: float, tried: bool) -> None:
        self._booked = (tried, seconds)
        seconds *= self.drag.factor if tried else 1.0
        self.account.book(tokens, seconds * self.costs.plain_rate, tried=tried)
        self._learned.overall.add(tokens, seconds)
        self._pending += tokens  # pairs that the network has not read yet

    def drawn(self, tokens: list[int]) -> None:
        """After any round: the text that the target drew, which tells how good the copies were."""
        copied = self._copied
        if copied is not None and copied.num_draft:
            outcomes = follow(copied, tokens)
            self.model = self.model.update(copied.log_probs, copied.classes, outcomes, aged=False)


class CopiesController(BudgetController):
    """The budget of decoding without a network: copies where they pay, else a plain step."""

    def speculate(self, copied: DraftTree | None = None) -> bool:
        """Never: there is nothing to ask. Starts a round."""
        self._start(copied)
        return False
