"""From measured rows to the figures of a report."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["PLAIN", "Row", "bootstrap_median", "summarise"]

PLAIN = "plain"
RESAMPLES = 10_000
DECODE = ("decode_tokens", "decode_seconds")
END_TO_END = ("new_tokens", "seconds")


@dataclass(frozen=True)
class Row:
    """One answer of one method; times in seconds."""

    id: str  # of the prompt; turns of one conversation share it
    turn: int
    task: str
    method: str
    order: int  # 0: this method ran first on the prompt
    prompt_tokens: int
    new_tokens: int
    finish_reason: str
    rounds: int
    accepted_length: float | None
    seconds: float
    prefill_seconds: float
    draft_seconds: float
    verify_seconds: float
    identical: bool | None  # to plain decoding; None without it

    @property
    def decode_seconds(self) -> float:
        return self.seconds - self.prefill_seconds

    @property
    def decode_tokens(self) -> int:
        """New tokens but the first, which the prefill yields."""
        return self.new_tokens - 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def summarise(rows: Sequence[Row], methods: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """The ``methods`` part of a report.

    Speeds are pooled over all answers. ``speedup`` compares decoding speeds (without prefill)
    prompt by prompt with plain decoding; ``end_to_end_speedup`` counts the prefill too.
    """
    return {method: _summary(rows, method, seed) for method in methods}


def _summary(rows: Sequence[Row], method: str, seed: int) -> dict[str, Any]:
    own = [row for row in rows if row.method == method]
    plain = [row for row in rows if row.method == PLAIN]
    tokens = sum(row.new_tokens for row in own)
    rounds = sum(row.rounds for row in own)
    accepted = sum((row.accepted_length or 0.0) * row.rounds for row in own)
    return {
        "tokens_per_second": _ratio(tokens, sum(row.seconds for row in own)),
        "decode_tokens_per_second": _ratio(
            sum(row.decode_tokens for row in own), sum(row.decode_seconds for row in own)
        ),
        "accepted_length": _ratio(accepted, rounds),
        "speedup": bootstrap_median(_speedups(plain, own, DECODE), seed),
        "end_to_end_speedup": bootstrap_median(_speedups(plain, own, END_TO_END), seed),
        "draft_seconds": sum(row.draft_seconds for row in own),
        "verify_seconds": sum(row.verify_seconds for row in own),
        "prefill_seconds": sum(row.prefill_seconds for row in own),
        "seconds": sum(row.seconds for row in own),
        "rounds": rounds,
        "new_tokens": tokens,
        "answers": len(own),
        "identical_answers": sum(row.identical is True for row in own),
    }


def _speedups(plain: Sequence[Row], own: Sequence[Row], measure: tuple[str, str]) -> list[float]:
    """Ratio of speeds for every prompt that both methods answered, turns pooled."""
    slow, fast = _speeds(plain, *measure), _speeds(own, *measure)
    return [fast[id] / slow[id] for id in slow if id in fast]


def _speeds(rows: Sequence[Row], count: str, time: str) -> dict[str, float]:
    """Tokens per second of every prompt that has both."""
    tokens: dict[str, int] = {}
    seconds: dict[str, float] = {}
    for row in rows:
        tokens[row.id] = tokens.get(row.id, 0) + getattr(row, count)
        seconds[row.id] = seconds.get(row.id, 0.0) + getattr(row, time)
    return {id: tokens[id] / seconds[id] for id in tokens if tokens[id] > 0 and seconds[id] > 0}


def bootstrap_median(values: Sequence[float], seed: int = 0) -> dict[str, float | None]:
    """Median with its 95 % bootstrap percentile interval; nulls without values."""
    if not values:
        return {"median": None, "low": None, "high": None}
    drawn = np.random.default_rng(seed).choice(
        np.asarray(values, dtype=float), size=(RESAMPLES, len(values))
    )
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return {"median": statistics.median(values), "low": float(low), "high": float(high)}


def _ratio(above: float, below: float) -> float | None:
    ratio = above / below if below > 0 else math.nan
    return ratio if math.isfinite(ratio) else None
