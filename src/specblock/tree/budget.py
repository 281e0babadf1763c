"""The budget of every round, from measured costs and from what the rounds achieve."""

from __future__ import annotations

import math

from torch import Tensor

from specblock.tree.accept import follow
from specblock.tree.cost import CostTable, best_nodes, choose_leaves, should_speculate
from specblock.tree.draft_tree import DraftTree
from specblock.tree.survival import SurvivalModel, Trials, trim


class _Recent:
    """A ratio of sums in which older entries count less and less."""

    def __init__(self, keep: float, top: float, bottom: float):
        self.keep, self.top, self.bottom = keep, top, bottom

    def add(self, top: float, bottom: float) -> None:
        self.top, self.bottom = self.top * self.keep + top, self.bottom * self.keep + bottom

    @property
    def ratio(self) -> float:
        return self.top / self.bottom


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
    * `lead`: tokens by which asking the network is ahead of doing without in the same seconds, at
      most `MAX_LEAD`. A round adds the tokens that the survival model expected, which vary far less
      than those that came, corrected by the recent mean difference of the two.

    Below a lead of 0 the network is not asked. A later trial starts with a lead of `CREDIT`: about
    what it may lose. The more it did lose, the longer the wait for the next one, so that trials
    cost the share `trial_share` of the time where nothing is ever accepted. A text on which
    speculation never pays costs CREDIT tokens of time and little more, one on which it stops to
    pay MAX_LEAD tokens of time; where fewer than half of the texts paid, others go without a trial
    at their start. A trial verifies TRIAL_NODES in any case, or a survival model that
    was disappointed once would never see another outcome. Copies need no trials: whether they would
    have been right is seen in every round. Equal rounds lead to equal choices.
    """

    MAX_LEAD = 6.0
    CREDIT = 1.0
    TRIAL_NODES = 2
    # Worth at least so many times its cost, whatever was learned: with no copies at hand the
    # network is always asked, with weak ones nearly always.
    LEAST_WORTH = 1.25
    LEAST_TRIED = 0.1  # of the texts; all are, while half of those tried have paid

    def __init__(
        self, costs: CostTable, model: SurvivalModel | None = None, trial_share: float = 0.02
    ):
        self.costs, self.model = costs, model or SurvivalModel.fresh()
        self._trial_share = trial_share
        self._won, self._due, self._tried = _Recent(0.9, 5.0, 5.0), 0.0, False
        self.begin()
        self._surprise = _Recent(0.97, 0.0, 5.0)
        self._overall = _Recent(0.98, 1.0, costs.target_seconds(1))
        self._gain = _Recent(0.98, 4.0, 4.0)
        self._asking = _Recent(0.98, 4.0, 4.0)
        self._start(None)

    @property
    def price(self) -> float:
        return max(self.costs.plain_rate, self._overall.ratio)

    @property
    def block_gain(self) -> float:
        return self._gain.ratio

    @property
    def asking_gain(self) -> float:
        return self._asking.ratio

    def begin(self) -> None:
        """Another text gets a trial of its own; fewer and fewer do where hardly any has paid."""
        if self._tried:
            self._won.add(float(self.lead >= self.CREDIT), 1.0)
        self._due = min(self._due, 1.0) + max(self.LEAST_TRIED, 2.0 * self._won.ratio)
        starts = self._due >= 1.0
        self._due -= starts
        self.lead = self._granted = self.CREDIT if starts else -self.CREDIT
        self._idle, self._tried = 0, False
        self._wait = math.ceil(self.CREDIT / self._trial_share)

    def speculate(self, copied: DraftTree | None = None) -> bool:
        """Whether this round asks the network. Starts a round.

        Args:
            copied: what the text so far suggests, for nothing; its nodes of the classes from
                `COPIED` on.
        """
        self._start(copied)
        chosen = should_speculate(self.lead, self._idle, self._wait) and self._worth_asking()
        if chosen and self.lead < 0:
            # The drafter has to catch up with the plain rounds first.
            backlog = self.costs.draft_first_seconds(self._idle) * self.costs.plain_rate
            self.lead, self._granted = self.CREDIT, self.CREDIT + backlog
        if chosen:
            self._idle, self._tried = 0, True
        return chosen

    def _start(self, copied: DraftTree | None) -> None:
        self._leaves, self._leaf_mass, self._expected = [], 0.0, 1.0
        self._copied, self._copy_nodes, self._ending = copied, 0, 1.0
        self._survival = self._reached = None
        if copied is None or copied.num_draft == 0:
            return
        self._survival = self.model.survival(copied.log_probs, copied.rank_classes, copied.parents)
        self._ending = 1.0 - float(self._survival[copied.parents == 0].sum())
        self._reached = self._survival[1:].sort(descending=True, stable=True).values
        self._copy_nodes = self._without(self.price)[0]

    def _without(self, price: float) -> tuple[int, float]:
        """How many copies to verify alone, and what the round is then worth."""
        plain = 1.0 - price * self.costs.target_seconds(1)
        if self._reached is None:
            return 0, plain
        nodes, value = best_nodes(self._reached, self.costs, 0.0, price)
        value -= price * self.costs.overhead
        return (nodes, value) if nodes and value > plain else (0, plain)

    def _worth_asking(self) -> bool:
        """Whether what the network may add to the copies is worth its time."""
        cost = self.price * self.costs.draft_first_seconds(1)
        return max(self.asking_gain, self.LEAST_WORTH * cost) * self._ending >= cost

    def copies(self) -> DraftTree | None:
        """What to verify of the copies in a round without the network; None: nothing."""
        if not self._copy_nodes:
            return None
        return trim(self._copied, self._survival, self._copy_nodes)

    def leaves(self, leaf_survival: Tensor, max_leaves: int) -> int:
        """How many of the leaves (float [n], see `choose_leaves`) start a block."""
        chosen = choose_leaves(leaf_survival, self.block_gain, self.costs, self.price, max_leaves)
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
            self._gain.add(value - first, self._leaf_mass)
        gained = value - price * self.costs.overhead - self._without(price)[1]
        self._asking.add(gained, self._ending)
        if self.lead <= self.CREDIT:
            chosen = max(chosen, min(self.TRIAL_NODES, len(survival)))
        self._expected = 1.0 + float(survival[:chosen].sum())
        return chosen

    def update(self, log_probs: Tensor, rank_classes: Tensor, trials: Trials) -> None:
        """After a round of the network: fields of the verified tree, trials of its acceptance."""
        self.model = self.model.update(log_probs, rank_classes, trials)
        tokens = len(trials)  # every visited node yields one
        # The refresh of a round's own tokens is its cost, not the backlog after plain rounds.
        seconds = self.costs.round_seconds(tokens, tuple(self._leaves), len(log_probs) - 1)
        self._overall.add(tokens, seconds)
        self._surprise.add(tokens - self._expected, 1.0)
        rate = self.costs.plain_rate
        gained = self._expected + self._surprise.ratio - seconds * rate - self._without(rate)[1]
        self.lead = min(self.lead + gained, self.MAX_LEAD)
        if self.lead >= min(self._granted + self.CREDIT, self.MAX_LEAD):
            self._granted = self.CREDIT  # what was lost came back
        elif self.lead < 0:
            self._wait = math.ceil((self._granted - self.lead) / self._trial_share)

    def update_without(self, tokens: int = 1) -> None:
        """After a round without the network, which yielded ``tokens``."""
        self._idle += 1
        nodes = self._copy_nodes
        seconds = self.costs.target_seconds(nodes + 1) + (self.costs.overhead if nodes else 0.0)
        self._overall.add(tokens, seconds)

    def drawn(self, tokens: list[int]) -> None:
        """After any round: the text that the target drew, which tells how good the copies were."""
        if self._survival is not None:
            copied = self._copied
            outcomes = follow(copied, tokens)
            self.model = self.model.update(
                copied.log_probs, copied.rank_classes, outcomes, aged=False
            )


class CopiesController(BudgetController):
    """The budget of decoding without a network: copies where they pay, else a plain step."""

    def speculate(self, copied: DraftTree | None = None) -> bool:
        """Never: there is nothing to ask. Starts a round."""
        self._start(copied)
        return False
