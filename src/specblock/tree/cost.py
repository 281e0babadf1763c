"""What a round may cost: the measured table, and the budget that makes most of it.

A round with some budget yields K tokens (accepted and bonus) and takes S seconds; the speed over
many rounds is E[K] / E[S]. Maximising K / S round by round does not maximise that: a hopeless round
should end quickly, for a promising one to come. Let r be the best speed there is. No budget has
E[K] - r E[S] > 0, or it would be faster than r, and the best has exactly 0. So the budget that
maximises K - r S is best, round by round, with all that is known in that round (Dinkelbach's method
for fractional programs; r is the price of a second in tokens). Choosing by the speed achieved so
far yields a higher one until both agree: r starts at the speed of plain decoding and follows.

Seconds come from the table, never from a clock: the choices, and with them the rounding of the
target's logits, stay reproducible, and a machine that is busy for a while changes nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from specblock.tree.survival import SurvivalModel, Trials

_TABLES = ("target", "draft_first", "draft_next")


class _Curve:
    """Seconds by count: linear between the measured points, never falling, last slope beyond."""

    def __init__(self, name: str, table: Mapping[int, float]):
        points = sorted(table.items())
        if any(count < 1 or not 0 <= seconds < math.inf for count, seconds in points):
            raise ValueError(f"{name} must map counts of 1 or more to seconds of 0 or more.")
        self.counts = [count for count, _ in points]
        # More rows never cost less than fewer. Noise only adds, so the lower figure is right.
        falling = accumulate((seconds for _, seconds in reversed(points)), min)
        self.seconds = list(falling)[::-1]
        self._first = torch.zeros(0, dtype=torch.float64)

    def at(self, count: int) -> float:
        """Seconds of a call; 0 for a count of 0, or where nothing was measured."""
        if count <= 0 or not self.counts:
            return 0.0
        if count <= self.counts[0] or len(self.counts) == 1:
            return self.seconds[0]
        right = min(bisect_right(self.counts, count), len(self.counts) - 1)
        (x0, x1), (y0, y1) = self.counts[right - 1 : right + 1], self.seconds[right - 1 : right + 1]
        return y0 + (y1 - y0) * (count - x0) / (x1 - x0)

    def first(self, size: int) -> Tensor:
        """float64 [size]: seconds of 0, 1, 2, ..."""
        if len(self._first) < size:
            seconds = [self.at(count) for count in range(2 * size)]
            self._first = torch.tensor(seconds, dtype=torch.float64)
        return self._first[:size]


@dataclass(frozen=True)
class CostTable:
    """Measured seconds on one machine. Raises ValueError for no target seconds or bad numbers.

    Attributes:
        target: rows of a forward of the target (nodes and root) -> seconds.
        draft_first: newly committed pairs -> seconds of the drafter's refresh and first block.
        draft_next: leaves -> seconds of a later block that starts at so many.
        overhead: what a speculating round takes beyond its forwards, compared with a plain step.
    """

    target: Mapping[int, float]
    draft_first: Mapping[int, float] = field(default_factory=dict)
    draft_next: Mapping[int, float] = field(default_factory=dict)
    overhead: float = 0.0

    def __post_init__(self) -> None:
        if not self.target_seconds(1) > 0 or not 0 <= self.overhead < math.inf:
            raise ValueError("A cost table needs target seconds and an overhead of 0 or more.")
        self.round_seconds(1, (1,), 0)  # refuses bad numbers in the other tables

    @cached_property
    def _curves(self) -> dict[str, _Curve]:
        return {name: _Curve(name, getattr(self, name)) for name in _TABLES}

    def target_seconds(self, rows: int) -> float:
        return self._curves["target"].at(rows)

    def draft_first_seconds(self, pairs: int) -> float:
        return self._curves["draft_first"].at(pairs)

    def draft_next_seconds(self, leaves: int) -> float:
        return self._curves["draft_next"].at(leaves)

    def round_seconds(self, pairs: int, leaves: tuple[int, ...], nodes: int) -> float:
        """Seconds of refreshing `pairs`, of a block at each entry of `leaves`, of verification."""
        later = sum(self.draft_next_seconds(count) for count in leaves)
        verify = self.target_seconds(nodes + 1)
        return self.draft_first_seconds(pairs) + later + verify + self.overhead

    @property
    def plain_rate(self) -> float:
        """Tokens per second of plain decoding."""
        return 1.0 / self.target_seconds(1)

    def to_dict(self) -> dict:
        """Plain numbers, fit for JSON; `from_dict` also takes the string keys that JSON makes."""
        return {**{name: dict(getattr(self, name)) for name in _TABLES}, "overhead": self.overhead}

    @staticmethod
    def from_dict(state: Mapping) -> CostTable:
        tables = ({int(n): float(s) for n, s in state[name].items()} for name in _TABLES)
        return CostTable(*tables, overhead=float(state["overhead"]))


def choose_nodes(
    survival: Tensor, costs: CostTable, spent_seconds: float, rate: float | None
) -> int:
    """How many candidates to verify: the N for which tokens less rate x seconds is most.

    Args:
        survival: float [C], probability that the walk reaches each candidate, ancestors first; the
            first N are verified. In falling order every N is the best of its size.
        costs: the measured table.
        spent_seconds: taken by this round already; of influence only where there is no rate.
        rate: tokens per second, the price of time; None maximises the round's own speed.

    Returns:
        0 (the root alone) to C; the fewest of equally good ones.
    """
    return _best_nodes(survival, costs, spent_seconds, rate)[0]


def _best_nodes(
    survival: Tensor, costs: CostTable, spent_seconds: float, rate: float | None
) -> tuple[int, float]:
    """The choice and its value."""
    tokens = 1.0 + _sums(survival)
    seconds = costs._curves["target"].first(len(tokens) + 1)[1:]
    spent = spent_seconds + costs.overhead
    value = tokens / (seconds + spent) if rate is None else tokens - rate * seconds
    nodes = int(value.argmax())
    return nodes, float(value[nodes])


def choose_leaves(
    leaf_survival: Tensor, block_gain: float, costs: CostTable, rate: float, max_leaves: int
) -> int:
    """How many leaves start a block: the n for which gain less rate x seconds is most.

    Args:
        leaf_survival: float [n], probability that the walk ends at each leaf, falling.
        block_gain: tokens that a block adds, net of verifying them, if the walk ends at its leaf.
        costs, rate: as in `choose_nodes`.
        max_leaves: not more than these.
    """
    gains = block_gain * _sums(leaf_survival[:max_leaves])
    seconds = costs._curves["draft_next"].first(len(gains))
    return int((gains - rate * seconds).argmax())


def should_speculate(lead: float, idle_rounds: int, wait: int) -> bool:
    """Whether to draft in this round at all.

    Args:
        lead: tokens by which speculation is ahead of plain decoding (see BudgetController).
        idle_rounds: plain rounds since speculation went off.
        wait: how many of them before it gets another trial.
    """
    return lead >= 0.0 or idle_rounds >= wait


def _sums(values: Tensor) -> Tensor:
    """float64 [n+1] on the CPU: sums of the first 0, 1, ..., n values."""
    return torch.nn.functional.pad(values.detach().double().cpu().cumsum(0), (1, 0))


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

    A round asks `speculate`; if so `leaves` before every later block and `nodes` before
    verification, and reports to `update`; else it decodes plainly and reports to `update_plain`.
    `begin` announces another text. Four things are kept:

    * `model`: the survival model, updated with the outcomes of every verification;
    * `price` of a second: tokens by seconds of the last 50 rounds or so, at least the plain speed;
    * `block_gain`: how much more a round was worth with the candidates of later blocks than
      without, by the probability that the walk ended at one of their leaves;
    * `lead`: tokens by which speculation is ahead of plain decoding in the same seconds, at most
      `MAX_LEAD`. A round adds the tokens that the survival model expected, which vary far less
      than those that came, corrected by the recent mean difference of the two.

    Below a lead of 0 speculation goes off. A later trial starts with a lead of `CREDIT`: about what
    it may lose. The more it did lose, the longer the wait for the next one, so that trials cost the
    share `trial_share` of the time where nothing is ever accepted. A text on which speculation
    never pays costs little, one on which it stops to pay MAX_LEAD tokens of time. A trial verifies
    TRIAL_NODES in any case, or a survival model that was disappointed once would never see another
    outcome. Equal rounds lead to equal choices.
    """

    MAX_LEAD = 6.0
    FIRST_CREDIT = 3.0  # nothing is calibrated yet
    CREDIT = 1.0
    TRIAL_NODES = 2

    def __init__(
        self, costs: CostTable, model: SurvivalModel | None = None, trial_share: float = 0.02
    ):
        self.costs, self.model = costs, model or SurvivalModel.fresh()
        self.lead = self._granted = self.FIRST_CREDIT
        self._trial_share = trial_share
        self._idle, self._wait = 0, 0
        self._surprise = _Recent(0.97, 0.0, 5.0)
        self._overall = _Recent(0.98, 1.0, costs.target_seconds(1))
        self._gain = _Recent(0.98, 4.0, 4.0)
        self._leaves, self._leaf_mass, self._expected = [], 0.0, 1.0

    @property
    def price(self) -> float:
        return max(self.costs.plain_rate, self._overall.ratio)

    @property
    def block_gain(self) -> float:
        return self._gain.ratio

    def begin(self) -> None:
        """Another text: what was gained on the last one is no reason to go on losing on this."""
        self.lead = min(self.lead, self.CREDIT)
        self._wait = min(self._wait, math.ceil(self.CREDIT / self._trial_share))

    def speculate(self) -> bool:
        """Whether this round drafts. Starts a round."""
        self._leaves, self._leaf_mass, self._expected = [], 0.0, 1.0
        chosen = should_speculate(self.lead, self._idle, self._wait)
        if chosen and self.lead < 0:
            # The drafter has to catch up with the plain rounds first.
            backlog = self.costs.draft_first_seconds(self._idle) * self.costs.plain_rate
            self.lead, self._granted, self._idle = self.CREDIT, self.CREDIT + backlog, 0
        return chosen

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
        chosen, value = _best_nodes(survival, self.costs, 0.0, self.price)
        if later is not None and self._leaf_mass > 0:
            without = _best_nodes(survival[~later], self.costs, 0.0, self.price)[1]
            self._gain.add(value - without, self._leaf_mass)
        if self.lead <= self.CREDIT:
            chosen = max(chosen, min(self.TRIAL_NODES, len(survival)))
        self._expected = 1.0 + float(survival[:chosen].sum())
        return chosen

    def update(self, log_probs: Tensor, rank_classes: Tensor, trials: Trials) -> None:
        """After a speculating round: two fields of the verified tree, trials of its acceptance."""
        self.model = self.model.update(log_probs, rank_classes, trials)
        tokens = len(trials)  # every visited node yields one
        # The refresh of a round's own tokens is its cost, not the backlog after plain rounds.
        seconds = self.costs.round_seconds(tokens, tuple(self._leaves), len(log_probs) - 1)
        self._overall.add(tokens, seconds)
        self._surprise.add(tokens - self._expected, 1.0)
        gained = self._expected + self._surprise.ratio - seconds * self.costs.plain_rate
        self.lead = min(self.lead + gained, self.MAX_LEAD)
        if self.lead >= min(self._granted + self.CREDIT, self.MAX_LEAD):
            self._granted = self.CREDIT  # what was lost came back
        elif self.lead < 0:
            self._wait = math.ceil((self._granted - self.lead) / self._trial_share)

    def update_plain(self) -> None:
        """After a plain round."""
        self._idle += 1
        self._overall.add(1.0, self.costs.target_seconds(1))
