"""The budget of every round, from measured costs and from what the rounds achieve."""

from __future__ import annotations

import copy
from typing import Self

from torch import Tensor

from specblock.budget.allowance import Account
from specblock.budget.costs import CostTable, best_nodes, choose_leaves
from specblock.budget.drag import Drag
from specblock.budget.learned import Learned, Means
from specblock.budget.survival import SurvivalModel, Trials, trim
from specblock.tree.accept import follow
from specblock.tree.draft_tree import DraftTree


class BudgetController:
    """Chooses the budget of every round of one text and learns from what the rounds achieve.

    `begin` announces another text, `in_company` a step and how many take part in it. A round asks
    `speculate` (and `asks`, where fewer texts than all draft together); if so the network drafts,
    asks `leaves` before every later block and `nodes` before verification, and the round reports
    to `update`; else `copies` is what may be verified, and it reports to `update_without`. Where
    the nodes of many texts are chosen together (:mod:`specblock.budget.sharing`), `most`
    says what this one may have, and `beside` is told what the others have. What is kept:

    * `model`: the survival model, updated with the outcomes of every verification;
    * `price` of a second: tokens by seconds of the last 50 rounds or so, at least the plain speed;
    * `block_gain`: how much more a round was worth with the candidates of later blocks than
      without, by the probability that the walk ended at one of their leaves;
    * `asking_gain`: the same of the network's nodes, by the probability that the copies end at the
      root;
    * `account`: the plain steps that this text may still lose (:class:`Account`);
    * `drag`: by how much the clock says the table is wrong (:class:`Drag`); nothing unless
      `heed_clock` is set, as it is where costs are this machine's.

    Of n texts in a step each pays for what it adds to it: its rows and its share of the drafter's
    calls, in plain steps of `T(n) / n`. No round may cost more than the account covers if nothing
    of it is accepted; where that leaves no round, the next token is decoded plainly. So whatever
    drafter and copies claim, by the cost table a text of n tokens costs no more than
    n + `Account.granted(n)` plain steps, and a text that stops to pay loses little of what it won.
    Without a clock to heed, equal rounds lead to equal choices.
    """

    # Worth at least so many times its cost where all texts ask, whatever was learned: with no
    # copies at hand the network is then always asked, with weak ones nearly always.
    LEAST_WORTH = 1.25
    shares = True  # nodes are chosen together with those of other texts

    def __init__(
        self, costs: CostTable, model: SurvivalModel | None = None, *, heed_clock: bool = False
    ):
        self._learned = Learned(costs, model, heed_clock)
        self._set_up()

    def _set_up(self) -> None:
        """Nothing yet of a text."""
        self.account, self._pending = Account(), 1
        # of the last round: more than a plain step, and the seconds that it added to one
        self.tried, self.added = False, 0.0
        self.in_company(1, 1)
        self._start(None)

    def another(self) -> Self:
        """The budget of another text: an account of its own, and what is learned shared."""
        other = copy.copy(self)
        other._set_up()
        return other

    def in_company(self, texts: int, rows: int) -> None:
        """Before a step: so many texts are written in it, and its forward has so many rows without
        any draft node."""
        self._texts, self._rows, self._asking, self._beside = texts, rows, texts, 0

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
    def asking(self) -> bool:
        """Whether the network may be asked; without, copies and plain steps are all there is."""
        return self._learned.asking

    @asking.setter
    def asking(self, allowed: bool) -> None:
        self._learned.asking = allowed

    @property
    def drag(self) -> Drag:
        return self._learned.drag

    @property
    def price(self) -> float:
        return self._learned.price(self._texts)

    @property
    def block_gain(self) -> float:
        return self._means.gain.ratio

    @property
    def asking_gain(self) -> float:
        return self._means.asking.ratio

    @property
    def _means(self) -> Means:
        return self._learned.means(self._texts)

    def begin(self, pairs: int = 1) -> None:
        """Another text: a new account. The network's first forward has to read ``pairs`` of it."""
        self.account.begin()
        self._pending = pairs

    def affords(self) -> bool:
        """Whether the account covers a round at all; if not, no draft is worth looking for."""
        return self._affordable(0.0) >= 1 and not self.drag.wants_plain

    def speculate(self, copied: DraftTree | None = None) -> bool:
        """Whether this round asks the network, if all texts of the step do. Starts a round.

        Args:
            copied: what the text so far suggests, for nothing.
        """
        self._start(copied)
        return self.asks(self._texts)

    def asks(self, together: int) -> bool:
        """Whether this round asks the network, if so many texts of the step do."""
        self._asking = together
        if self.drag.wants_plain or not self.asking:
            return False
        if self._affordable(self._drafting()) < 1:
            return False
        return self._worth_asking()

    def _drafting(self) -> float:
        """Seconds of what the network was asked for in this round, its first block at least."""
        first = self.costs.draft_first_seconds(self._pending, self._asking)
        return first + sum(map(self._block, self._leaves))

    @property
    def _plain_share(self) -> float:
        """Seconds of a plain step that one of its texts answers for."""
        return self.costs.target_seconds(self._texts, self._texts) / self._texts

    def _affordable(self, spent: float) -> int:
        """How many nodes the account covers, after so many seconds, if none is accepted."""
        without = self.costs.target_seconds(self._rows, self._texts)
        seconds = (without + self.account.left * self._plain_share) / self.drag.factor
        others = without - self.costs.target_seconds(self._rows)
        return self.costs.nodes_within(seconds - others - spent - self.costs.overhead, self._rows)

    def _start(self, copied: DraftTree | None) -> None:
        """``copied_survival``: of the copies, float [N+1]; None without any."""
        self._leaves, self._leaf_mass = [], 0.0
        self._copied, self._copy_nodes, self._ending = copied, 0, 1.0
        self.copied_survival = self._reached = None
        if copied is None or copied.num_draft == 0:
            return
        self.copied_survival = self.model.survival(copied.log_probs, copied.classes, copied.parents)
        self._ending = 1.0 - float(self.copied_survival[copied.parents == 0].sum())
        self._reached = self.copied_survival[1:].sort(descending=True, stable=True).values
        self._copy_nodes = self._without(self.price)[0]

    def _without(self, price: float) -> tuple[int, float]:
        """How many copies to verify alone, and what the round is then worth."""
        plain = 1.0 - price * self.costs.target_seconds(self._rows)
        if self._reached is None:
            return 0, plain
        nodes, value = self._best(self._reached[: self._affordable(0.0)], price)
        value -= price * self.costs.overhead
        return (nodes, value) if nodes and value > plain else (0, plain)

    def _best(self, reached: Tensor, price: float) -> tuple[int, float]:
        return best_nodes(reached, self.costs, 0.0, price, self._rows)

    def _worth_asking(self) -> bool:
        """Whether what the network may add to the copies is worth its time."""
        # the backlog is due anyway
        cost = self.price * self.costs.draft_first_seconds(1, self._asking)
        least = self.LEAST_WORTH * cost if self._asking == self._texts else 0.0
        return max(self.asking_gain, least) * self._ending >= cost

    def copies(self) -> DraftTree | None:
        """What to verify of the copies in a round without the network; None: nothing."""
        if not self._copy_nodes:
            return None
        return trim(self._copied, self.copied_survival, self._copy_nodes)

    def leaves(self, leaf_survival: Tensor, max_leaves: int) -> int:
        """How many of the leaves (float [n], see `choose_leaves`) start a block."""
        chosen = choose_leaves(
            leaf_survival, self.block_gain, self.costs, self.price, max_leaves, self._asking
        )
        spent = self._drafting()
        while chosen and self._affordable(spent + self._block(chosen)) < 2:
            chosen -= 1  # what the block proposes must have a place
        self._leaves.append(chosen)
        self._leaf_mass += float(leaf_survival[:chosen].sum())
        return chosen

    def _block(self, leaves: int) -> float:
        return self.costs.draft_next_seconds(leaves, self._asking)

    def nodes(self, survival: Tensor, later: Tensor | None = None) -> int:
        """How many candidates to verify.

        Args:
            survival: float [C], falling (see `choose_nodes`).
            later: bool [C], candidates that only later blocks proposed; None: no gain is learned.
        """
        price = self.price
        chosen, value = self._best(survival, price)
        if later is not None and self._leaf_mass > 0:
            first = self._best(survival[~later], price)[1]
            self._means.gain.add(value - first, self._leaf_mass)
        gained = value - price * self.costs.overhead - self._without(price)[1]
        self._means.asking.add(gained, self._ending)
        # one at least, or a survival model that was disappointed would never see another outcome
        return max(min(chosen, self.most(asked=True)), min(1, len(survival)))

    def most(self, *, asked: bool) -> int:
        """How many nodes the account covers, if none is accepted.

        ``asked``: the network was.
        """
        return self._affordable(self._drafting() if asked else 0.0)

    def beside(self, nodes: int) -> None:
        """So many nodes of other texts are verified with this one's."""
        self._beside = nodes

    def update(self, log_probs: Tensor, classes: Tensor, trials: Trials) -> None:
        """After a round of the network: fields of the verified tree, trials of its acceptance."""
        self.model = self.model.update(log_probs, classes, trials)
        tokens = len(trials)  # every visited node yields one
        self._book(tokens, len(log_probs) - 1, self._drafting(), True)
        self._pending = tokens

    def update_without(self, tokens: int = 1, nodes: int = 0) -> None:
        """After a round without the network, which verified ``nodes`` and yielded ``tokens``."""
        self._book(tokens, nodes, 0.0, nodes > 0)
        self._pending += tokens  # pairs that the network has not read yet

    def clocked(self, seconds: float, added: float, *, tried: bool) -> None:
        """What a step took by the clock.

        Args:
            added: what all its texts added to a plain step, by the table.
            tried: whether any of them was more than a plain step.
        """
        if self._learned.heed_clock:
            plain = self.costs.target_seconds(self._rows, self._texts)
            self.drag.add(tried, seconds, plain + added)

    def _book(self, tokens: int, nodes: int, drafting: float, tried: bool) -> None:
        """A round's account; of the rows for all texts this one answers for its own."""
        without, rows = self.costs.target_seconds(self._rows, self._texts), nodes + self._beside
        more = self.costs.target_seconds(self._rows + rows, self._texts) - without
        added = drafting + more * nodes / max(1, rows) + (self.costs.overhead if tried else 0.0)
        self.tried, self.added = tried, added
        if tried:
            added = self.drag.factor * (added + without / self._texts) - without / self._texts
        steps = 1.0 + added / self._plain_share
        self.account.book(tokens, steps, tried=tried)
        self._means.speedup.add(tokens, steps)

    def drawn(self, tokens: list[int]) -> None:
        """After any round: the text that the target drew, which tells how good the copies were."""
        copied = self._copied
        if copied is not None and copied.num_draft:
            outcomes = follow(copied, tokens)
            self.model = self.model.update(copied.log_probs, copied.classes, outcomes, aged=False)


class CopiesController(BudgetController):
    """The budget of decoding without a network: copies where they pay, else a plain step."""

    def asks(self, together: int) -> bool:
        """Never: there is nothing to ask."""
        return False
