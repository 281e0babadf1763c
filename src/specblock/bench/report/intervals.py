"""95 % intervals by bootstrap over prompts: pure functions of numbers and a seed.

A prompt is drawn with everything that was measured on it, for both methods: methods answered the
same prompts one right after the other, so what a prompt or the machine does to both cancels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = [
    "RESAMPLES",
    "Interval",
    "bootstrap_median",
    "bootstrap_quotient",
    "bootstrap_ratio",
]

RESAMPLES = 10_000
_LEVELS = (0.025, 0.975)

Interval = dict[str, float | None]


def bootstrap_median(
    values: Sequence[float], seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Median of one value a prompt, with its percentile interval.

    Nulls without values; ``resamples`` 0 leaves the ends of the interval out.
    """
    if not len(values):
        return _interval(None)
    column = np.asarray(values, dtype=float)
    drawn = np.median(column[_draws(len(column), seed, resamples)], axis=1)
    return _interval(float(np.median(column)), drawn)


def bootstrap_ratio(
    above: Sequence[float], below: Sequence[float], seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """sum(above) / sum(below) with its percentile interval, prompts drawn in pairs.

    ``median`` is the ratio of all prompts together. Nulls where the sum below is 0.
    """
    top, bottom = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    if top.shape != bottom.shape:
        raise ValueError("a paired ratio needs as many values above as below")
    if not bottom.sum() > 0:
        return _interval(None)
    draws = _draws(len(top), seed, resamples)
    sums = bottom[draws].sum(axis=1)
    drawn = top[draws].sum(axis=1)[sums > 0] / sums[sums > 0]
    return _interval(float(top.sum() / bottom.sum()), drawn)


def bootstrap_quotient(
    own: tuple[Sequence[float], Sequence[float]],
    rival: tuple[Sequence[float], Sequence[float]],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """(sum of own[0] / sum of own[1]) / (the same of the rival), a percentile interval beside it.

    All four columns hold one value a prompt and are drawn together. Nulls where a sum is 0.
    """
    columns = [np.asarray(column, dtype=float) for column in (*own, *rival)]
    if len({column.shape for column in columns}) > 1:
        raise ValueError("a quotient needs as many values in every column")
    if min(column.sum() for column in columns) <= 0:
        return _interval(None)
    draws = _draws(len(columns[0]), seed, resamples)
    above, below, other_above, other_below = (column[draws].sum(axis=1) for column in columns)
    usable = (below > 0) & (other_above > 0)
    drawn = (above * other_below)[usable] / (below * other_above)[usable]
    a, b, c, d = (float(column.sum()) for column in columns)
    return _interval(a * d / (b * c), drawn)


def _draws(count: int, seed: int, resamples: int) -> np.ndarray:
    """int64 [resamples, count]: prompts drawn with replacement."""
    return np.random.default_rng(seed).integers(0, count, size=(resamples, count))


def _interval(middle: float | None, drawn: np.ndarray | None = None) -> Interval:
    if drawn is None or not len(drawn):
        return {"median": middle, "low": None, "high": None}
    low, high = np.quantile(drawn, _LEVELS)
    return {"median": middle, "low": float(low), "high": float(high)}
