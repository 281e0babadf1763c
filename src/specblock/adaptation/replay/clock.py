"""When requests come and when they are answered, on a clock that skips what is idle.

One request is answered at a time, in order of arrival. Requests come as a Poisson process whose
rate is a share, the *load*, of what the machine can serve: a request's interval to the one before
is an exponential number of mean 1, times the mean seconds of a request so far, by the load. Seconds
of answering and of updates are real, or by a cost table; the rest of a gap passes at once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import quantiles

__all__ = ["Clock", "Served", "arrivals", "served"]


def arrivals(seconds: Sequence[float], load: float, seed: int) -> list[float]:
    """When the first request came, and those after each of so many ``seconds`` of answering.

    Args:
        seconds: that the requests so far took where nothing is adapted.
        load: share of the machine's time that answering them would take.
    """
    source, at, total = random.Random(seed), [0.0], 0.0
    for number, spent in enumerate(seconds, 1):
        total += spent
        at.append(at[-1] + source.expovariate(1.0) * total / number / load)
    return at


class Clock:
    """One policy's day.

    Attributes:
        free: when everything that came before is answered.
    """

    def __init__(self) -> None:
        self.free = 0.0

    def gap(self, arrival: float) -> float:
        """Seconds for which nobody waits until a request comes."""
        return max(0.0, arrival - self.free)

    def answer(self, arrival: float, delay: float, seconds: float) -> float:
        """A request that came is answered; the seconds that it took from its arrival on.

        ``delay``: that it waited until a step of learning made room.
        """
        self.free = max(self.free, arrival) + delay + seconds
        return self.free - arrival


@dataclass(frozen=True)
class Served:
    """Times to answer, in seconds from arrival to the last token, and the day's length."""

    mean: float
    p95: float
    day: float


def served(at: Sequence[float], delays: Sequence[float], seconds: Sequence[float]) -> Served:
    """What became of requests that came ``at`` these seconds; at least one."""
    clock = Clock()
    taken = [
        clock.answer(arrival, delay, spent)
        for arrival, delay, spent in zip(at, delays, seconds, strict=True)
    ]
    p95 = quantiles(taken, n=20, method="inclusive")[-1] if len(taken) > 1 else taken[0]
    return Served(sum(taken) / len(taken), p95, clock.free)
