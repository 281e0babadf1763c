"""What a round may cost: the measured table, and the choice that makes most of it.

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

_TABLES = ("target", "draft_first", "draft_next")
_BEYOND = ("overhead", "target_text", "draft_text")


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
        target_text, draft_text: what every further text adds to a call of the target or of the
            drafter for many, beyond its rows.
    """

    target: Mapping[int, float]
    draft_first: Mapping[int, float] = field(default_factory=dict)
    draft_next: Mapping[int, float] = field(default_factory=dict)
    overhead: float = 0.0
    target_text: float = 0.0
    draft_text: float = 0.0

    def __post_init__(self) -> None:
        beyond = all(0 <= getattr(self, name) < math.inf for name in _BEYOND)
        if not self.target_seconds(1) > 0 or not beyond:
            raise ValueError("A cost table needs target seconds and an overhead of 0 or more.")
        self.round_seconds(1, (1,), 0)  # refuses bad numbers in the other tables

    @cached_property
    def _curves(self) -> dict[str, _Curve]:
        return {name: _Curve(name, getattr(self, name)) for name in _TABLES}

    def target_seconds(self, rows: int, texts: int = 1) -> float:
        """Of a forward over ``rows`` of ``texts``."""
        return self._curves["target"].at(rows) + (texts - 1) * self.target_text

    def draft_first_seconds(self, pairs: int, texts: int = 1) -> float:
        """Of one of ``texts`` that draft together, each with so many pairs."""
        return self._share_of_call("draft_first", pairs, texts)

    def draft_next_seconds(self, leaves: int, texts: int = 1) -> float:
        """Of one of ``texts`` that draft together, each with so many leaves."""
        return self._share_of_call("draft_next", leaves, texts)

    def _share_of_call(self, name: str, count: int, texts: int) -> float:
        if not count:
            return 0.0
        return (self._curves[name].at(count * texts) + (texts - 1) * self.draft_text) / texts

    def round_seconds(self, pairs: int, leaves: tuple[int, ...], nodes: int) -> float:
        """Seconds of refreshing `pairs`, of a block at each entry of `leaves`, of verification."""
        later = sum(self.draft_next_seconds(count) for count in leaves)
        verify = self.target_seconds(nodes + 1)
        return self.draft_first_seconds(pairs) + later + verify + self.overhead

    def nodes_within(self, seconds: float, rows: int = 1, most: int = 128) -> int:
        """How many draft nodes can be verified in so many seconds, beside ``rows`` other rows."""
        forwards = self._curves["target"].first(rows + most + 1)[rows + 1 :]
        return int(torch.searchsorted(forwards, seconds, right=True))

    @property
    def plain_rate(self) -> float:
        """Tokens per second of plain decoding."""
        return 1.0 / self.target_seconds(1)

    def to_dict(self) -> dict:
        """Plain numbers, fit for JSON; `from_dict` also takes the string keys that JSON makes."""
        tables = {name: dict(getattr(self, name)) for name in _TABLES}
        return {**tables, **{name: getattr(self, name) for name in _BEYOND}}

    @staticmethod
    def from_dict(state: Mapping) -> CostTable:
        tables = ({int(n): float(s) for n, s in state[name].items()} for name in _TABLES)
        return CostTable(*tables, *(float(state.get(name, 0.0)) for name in _BEYOND))


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
    return best_nodes(survival, costs, spent_seconds, rate)[0]


def best_nodes(
    survival: Tensor, costs: CostTable, spent_seconds: float, rate: float | None, rows: int = 1
) -> tuple[int, float]:
    """The choice of :func:`choose_nodes`, beside ``rows`` rows that are not candidates, and its
    value."""
    tokens = 1.0 + _sums(survival)
    seconds = costs._curves["target"].first(len(tokens) + rows)[rows:]
    spent = spent_seconds + costs.overhead
    value = tokens / (seconds + spent) if rate is None else tokens - rate * seconds
    nodes = int(value.argmax())
    return nodes, float(value[nodes])


def choose_leaves(
    leaf_survival: Tensor,
    block_gain: float,
    costs: CostTable,
    rate: float,
    max_leaves: int,
    texts: int = 1,
) -> int:
    """How many leaves start a block: the n for which gain less rate x seconds is most.

    Args:
        leaf_survival: float [n], probability that the walk ends at each leaf, falling.
        block_gain: tokens that a block adds, net of verifying them, if the walk ends at its leaf.
        costs, rate: as in `choose_nodes`.
        max_leaves: not more than these.
        texts: that draft together, each with so many leaves.
    """
    gains = block_gain * _sums(leaf_survival[:max_leaves])
    seconds = costs._curves["draft_next"].first(texts * len(gains))[::texts]
    if texts > 1:
        more = (seconds + (texts - 1) * costs.draft_text) / texts
        seconds = more.masked_fill(torch.arange(len(gains)) == 0, 0.0)
    return int((gains - rate * seconds).argmax())


def _sums(values: Tensor) -> Tensor:
    """float64 [n+1] on the CPU: sums of the first 0, 1, ..., n values."""
    return torch.nn.functional.pad(values.detach().double().cpu().cumsum(0), (1, 0))
