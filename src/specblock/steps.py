"""Work in small steps, between which others may be served."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import TypeVar

__all__ = ["Steps", "Stopwatch", "drained"]

T = TypeVar("T")
Steps = Generator[None, None, T]


def drained(steps: Steps[T]) -> T:
    """What comes of all steps, taken at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


class Stopwatch:
    """Seconds of work, without those between its steps."""

    def __init__(self) -> None:
        self._before, self._began = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """So far."""
        return self._before + time.perf_counter() - self._began

    def beside(self, steps: Steps[T]) -> Steps[T]:
        """The same steps; what happens between them is not counted."""
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value
            self._before = self.seconds
            yield
            self._began = time.perf_counter()
