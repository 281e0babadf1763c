"""How long measuring may take."""

from __future__ import annotations

import math
import time


class OutOfTimeError(Exception):
    """What was to be measured needs more time than there is; calibration catches it."""


class Deadline:
    """So many seconds from now on; None is no limit."""

    def __init__(self, seconds: float | None = None):
        self._end = math.inf if seconds is None else time.perf_counter() + seconds

    @property
    def left(self) -> float:
        """Seconds, 0 or more."""
        return max(0.0, self._end - time.perf_counter())

    def part(self, share: float) -> Deadline:
        """A share of what is left."""
        return Deadline(None if self._end == math.inf else share * self.left)

    def check(self, needed: float = 0.0) -> None:
        """Raises :class:`OutOfTimeError` where less than ``needed`` seconds are left."""
        if self.left <= needed:
            raise OutOfTimeError
