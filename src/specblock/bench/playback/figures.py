"""From played rounds to speed-ups, shares of drafting, and the accepted lengths that a claim needs.

All are pure functions of rows and of a plain step's seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specblock.bench.playback.run import Row
from specblock.bench.report.intervals import (
    RESAMPLES,
    bootstrap_median,
    bootstrap_quotient,
    bootstrap_ratio,
)

__all__ = ["PAIRS", "launched", "method_figures", "pair_figures"]

# a method, and the one with the same rule for its budget that it is compared with
PAIRS = (
    ("specblock-paper", "eagle3"),
    ("specblock-cost", "eagle3-cost"),
    ("specblock", "eagle3-full"),
)
_Sums = dict[str, dict[str, float]]


def method_figures(
    rows: Sequence[Row], plain_seconds: float, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Of one method under one sheet, with intervals by bootstrap over prompts.

    ``speedup``: over plain decoding, median prompt; ``speedup_pooled``: of all prompts together;
    ``drafting_share`` of all seconds; ``round_steps``: plain steps of the mean round;
    ``accepted_length``: tokens by rounds.
    """
    by = _by_prompt(rows)
    plain = [own["tokens"] * plain_seconds for own in by.values()]
    seconds = [own["seconds"] for own in by.values()]
    each = [above / below for above, below in zip(plain, seconds, strict=True)]
    rounds = [own["rounds"] for own in by.values()]
    steps = [own["seconds"] / plain_seconds for own in by.values()]
    whole = sum(rounds)
    return {
        "accepted_length": bootstrap_ratio(_column(by, "tokens"), rounds, seed, resamples),
        "speedup": bootstrap_median(each, seed, resamples),
        "speedup_pooled": bootstrap_ratio(plain, seconds, seed, resamples),
        "drafting_share": bootstrap_ratio(_column(by, "draft_seconds"), seconds, seed, resamples),
        "round_steps": bootstrap_ratio(steps, rounds, seed, resamples),
        "calls_per_round": sum(_column(by, "calls")) / whole,
        "nodes_per_round": sum(_column(by, "nodes")) / whole,
        "answers": len(rows),
    }


def pair_figures(
    own: Sequence[Row], rival: Sequence[Row], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """A method against its rival on the same answers under the same sheet.

    ``speedup``: median prompt; ``speedup_pooled``: of all together; ``drafting_per_round`` and
    ``drafting``: of the rival's seconds, in the mean round and on the same answers;
    ``accepted_length``: ratio of tau; ``break_even``: the ratio of tau at which both would be
    equally fast, which is the ratio of what their mean rounds cost.
    """
    mine, theirs = _by_prompt(own), _by_prompt(rival)
    if list(mine) != list(theirs):
        raise ValueError("both methods must have answered the same prompts in the same order")
    rates = [
        (theirs[id]["seconds"] / theirs[id]["tokens"]) / (mine[id]["seconds"] / mine[id]["tokens"])
        for id in mine
    ]

    def quotient(above: str) -> dict[str, float | None]:
        pair = ((_column(by, above), _column(by, "rounds")) for by in (mine, theirs))
        return bootstrap_quotient(*pair, seed, resamples)

    seconds, drafting = (
        [_column(by, name) for by in (mine, theirs)] for name in ("seconds", "draft_seconds")
    )
    return {
        "speedup": bootstrap_median(rates, seed, resamples),
        "speedup_pooled": bootstrap_ratio(*reversed(seconds), seed, resamples),
        "drafting_per_round": quotient("draft_seconds"),
        "drafting": bootstrap_ratio(*drafting, seed, resamples),
        "accepted_length": quotient("tokens"),
        "break_even": quotient("seconds"),
    }


def launched(rows: Sequence[Row], plain_seconds: float, more: float) -> tuple[float, float]:
    """(plain steps of the mean round, share of drafting) if every forward, also a plain step's,
    took ``more`` seconds."""
    rounds, calls = sum(row.rounds for row in rows), sum(row.calls for row in rows)
    drafting = sum(row.draft_seconds for row in rows) + more * calls
    seconds = sum(row.seconds for row in rows) + more * (calls + rounds)
    return seconds / rounds / (plain_seconds + more), drafting / seconds


def _by_prompt(rows: Sequence[Row]) -> _Sums:
    """Sums over a prompt's turns, prompts in the order of the rows."""
    names = ("tokens", "rounds", "calls", "nodes", "draft_seconds", "seconds")
    sums: _Sums = {}
    for row in rows:
        own = sums.setdefault(row.id, dict.fromkeys(names, 0.0))
        for name in names:
            own[name] += getattr(row, name)
    return sums


def _column(by: _Sums, name: str) -> list[float]:
    return [own[name] for own in by.values()]
