"""From measured rows to the figures of a report.

The accepted length τ counts the accepted draft tokens and the bonus token of every verification,
plain rounds (τ = 1) included; the prefill's token belongs to no verification. Speeds, times and
counts are pooled over all answers unless a name says otherwise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from specblock.bench.measure.methods import PAIRS, PLAIN
from specblock.bench.measure.rows import Row
from specblock.bench.report.intervals import RESAMPLES, Interval, bootstrap_median, bootstrap_ratio
from specblock.budget.costs import CostTable

__all__ = ["RIVAL", "TAU", "Summary"]

RIVAL = "eagle3"  # the method that every other is compared with besides plain decoding
TAU = "accepted draft tokens + 1 bonus token per verification; plain rounds count, the prefill not"
DECODE = ("decode_tokens", "decode_seconds")
END_TO_END = ("new_tokens", "seconds")


class Summary:
    """The ``methods`` part of a report.

    Args:
        rows: all answers of all methods.
        costs: measured tables by method, and by ``""`` for methods without one of their own.
        seed: of the bootstrap; resamples: 0 leaves the intervals out, which is much faster.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        costs: Mapping[str, CostTable] | None = None,
        seed: int = 0,
        resamples: int = RESAMPLES,
    ):
        self.rows, self.costs = list(rows), dict(costs or {})
        self.seed, self.resamples = seed, resamples

    def methods(self, names: Sequence[str]) -> dict[str, Any]:
        """The figures of every method named."""
        return {name: self._method(name) for name in names}

    def pairs(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """The methods of :data:`PAIRS` against each other, where both were measured."""
        return [
            {"method": own, "over": rival, **self._versus(self._of(own), self._of(rival))}
            for own, rival in PAIRS
            if own in names and rival in names
        ]

    def _method(self, name: str) -> dict[str, Any]:
        own, plain = self._of(name), self._of(PLAIN)
        tasks = sorted({row.task for row in own})
        return {
            **self._speeds(own, plain),
            "accepted_length_per_request": _mean(
                [row.accepted_length for row in own if row.accepted_length is not None]
            ),
            "speedup_pooled": self._pooled(own, plain, DECODE),
            "acceptance_by_depth": _by_depth(own),
            **_sums(own),
            **_per_round(own),
            "rounds_by_nodes": _histogram(own),
            "limit": self._limit(name, own, plain),
            f"versus_{RIVAL}": self._versus(own, self._of(RIVAL)),
            "tasks": {
                task: self._speeds(
                    [row for row in own if row.task == task],
                    [row for row in plain if row.task == task],
                )
                for task in tasks
            },
        }

    def _of(self, method: str) -> list[Row]:
        return [row for row in self.rows if row.method == method]

    def _speeds(self, own: list[Row], plain: list[Row]) -> dict[str, Any]:
        """``speedup`` compares decoding speeds (without prefill) prompt by prompt with plain
        decoding; ``end_to_end_speedup`` counts the prefill too."""
        rounds = sum(row.rounds for row in own)
        return {
            "tokens_per_second": _ratio(*_totals(own, *END_TO_END)),
            "decode_tokens_per_second": _ratio(*_totals(own, *DECODE)),
            "accepted_length": _ratio(sum(row.round_token_count for row in own), rounds),
            "speedup": self._median(own, plain, DECODE),
            "end_to_end_speedup": self._median(own, plain, END_TO_END),
            "answers": len(own),
        }

    def _median(self, own: list[Row], other: list[Row], measure: tuple[str, str]) -> Interval:
        """Ratio of speeds for every prompt that both methods answered, turns pooled."""
        slow, fast = _speed_by_prompt(other, *measure), _speed_by_prompt(own, *measure)
        ratios = [fast[id] / slow[id] for id in slow if id in fast]
        return bootstrap_median(ratios, self.seed, self.resamples)

    def _pooled(self, own: list[Row], other: list[Row], measure: tuple[str, str]) -> Interval:
        """Ratio of seconds per token over all prompts; lengths may differ where outputs do."""
        tokens, seconds = _by_prompt(own, measure[0]), _by_prompt(own, measure[1])
        base_tokens, base = _by_prompt(other, measure[0]), _by_prompt(other, measure[1])
        shared = [id for id in base if seconds.get(id) and base_tokens[id] > 0]
        # plain's seconds for as many tokens as the method wrote
        above = [base[id] * tokens[id] / base_tokens[id] for id in shared]
        return bootstrap_ratio(above, [seconds[id] for id in shared], self.seed, self.resamples)

    def _versus(self, own: list[Row], rival: list[Row]) -> dict[str, Any] | None:
        """Speeds and drafting seconds compared with the rival's on the same prompts."""
        if not rival:
            return None
        mine, theirs = _by_prompt(own, "draft_seconds"), _by_prompt(rival, "draft_seconds")
        shared = [id for id in theirs if id in mine]
        above, below = [mine[id] for id in shared], [theirs[id] for id in shared]
        return {
            "speedup": self._median(own, rival, DECODE),
            "end_to_end_speedup": self._median(own, rival, END_TO_END),
            "draft_seconds": bootstrap_ratio(above, below, self.seed, self.resamples),
        }

    def _limit(self, name: str, own: list[Row], plain: list[Row]) -> dict[str, float | None] | None:
        """The physical limit tau * T(1) / T(N), as if drafting were free, and the share reached.

        T(N) is the mean of the calibrated seconds of the trees that were verified.
        """
        costs = self.costs.get(name) or self.costs.get("")
        rounds = sum(row.rounds for row in own)
        if costs is None or not rounds:
            return None
        tau = sum(row.round_token_count for row in own) / rounds
        trees = {int(nodes): count for nodes, count in _histogram(own).items()}
        rest = rounds - sum(trees.values())  # plain rounds
        seconds = sum(costs.target_seconds(1 + n) * count for n, count in trees.items())
        seconds = (seconds + rest * costs.target_seconds(1)) / rounds
        speedup = tau * costs.target_seconds(1) / seconds
        reached = self._pooled(own, plain, DECODE)["median"]
        return {"speedup": speedup, "share": None if reached is None else reached / speedup}


def _sums(own: list[Row]) -> dict[str, Any]:
    peaks = [row.peak_bytes for row in own if row.peak_bytes is not None]
    judged = [row.identical for row in own if row.identical is not None]
    summed = (
        "draft_seconds",
        "verify_seconds",
        "prefill_seconds",
        "seconds",
        "rounds",
        "speculative_rounds",
        "new_tokens",
    )
    return {
        **{name: sum(getattr(row, name) for row in own) for name in summed},
        # nothing was compared where plain decoding did not run
        "identical_answers": sum(judged) if len(judged) == len(own) else None,
        "peak_bytes": max(peaks, default=None),
    }


def _per_round(own: list[Row]) -> dict[str, Any]:
    """Milliseconds, drafter calls and nodes of the mean round; no prefill in any of them."""
    rounds = sum(row.rounds for row in own)
    draft, verify = (sum(getattr(r, f"{n}_seconds") for r in own) for n in ("draft", "verify"))
    rest = sum(row.decode_seconds for row in own) - draft - verify
    return {
        "milliseconds_per_round": {
            "draft": _ratio(1000 * draft, rounds),
            "verify": _ratio(1000 * verify, rounds),
            "rest": _ratio(1000 * rest, rounds),
        },
        "draft_calls_per_round": _ratio(sum(row.draft_calls for row in own), rounds),
        "offered_nodes_per_round": _ratio(sum(row.offered_nodes for row in own), rounds),
        "verified_nodes_per_round": _ratio(sum(row.verified_nodes for row in own), rounds),
    }


def _by_depth(own: list[Row]) -> list[float]:
    """Share of the speculating rounds that accepted more than d draft tokens, d = 0, 1, ..."""
    rounds = sum(row.speculative_rounds for row in own)
    depth = max((len(row.accepted_by_depth) for row in own), default=0)
    reached = [sum(sum(row.accepted_by_depth[d : d + 1]) for row in own) for d in range(depth)]
    return [count / rounds for count in reached] if rounds else []


def _histogram(own: list[Row]) -> dict[str, int]:
    """Speculating rounds by the draft nodes that were verified."""
    total: Counter[int] = Counter()
    for row in own:
        total.update({int(nodes): count for nodes, count in row.rounds_by_nodes.items()})
    return {str(nodes): count for nodes, count in sorted(total.items())}


def _by_prompt(rows: Sequence[Row], name: str) -> dict[str, float]:
    sums: dict[str, float] = {}
    for row in rows:
        sums[row.id] = sums.get(row.id, 0) + getattr(row, name)
    return sums


def _speed_by_prompt(rows: Sequence[Row], count: str, time: str) -> dict[str, float]:
    """Tokens per second of every prompt that has both."""
    tokens, seconds = _by_prompt(rows, count), _by_prompt(rows, time)
    return {id: tokens[id] / seconds[id] for id in tokens if tokens[id] > 0 and seconds[id] > 0}


def _totals(rows: Sequence[Row], *names: str) -> tuple[float, ...]:
    return tuple(sum(getattr(row, name) for row in rows) for name in names)


def _mean(values: Sequence[float]) -> float | None:
    return _ratio(sum(values), len(values))


def _ratio(above: float, below: float) -> float | None:
    ratio = above / below if below > 0 else math.nan
    return ratio if math.isfinite(ratio) else None
