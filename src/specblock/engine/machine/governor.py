"""How many threads to compute with, on a machine that is not idle.

OpenMP's threads wait for each other some hundred times a forward, spinning. Where another process
holds a core, one of them has lost its own and all wait for its next time slice: two threads then
decode several times slower than one. A single thread waits for nobody. So forwards are watched, and
where they are far slower than they were, fewer threads are tried; now and then the full number is
tried again.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections import deque
from collections.abc import Callable

import torch

_log = logging.getLogger("specblock")

SLOWER = 1.8  # times its usual seconds: a forward that other processes disturb
RECENT = 3  # forwards that one state is judged by
PATIENCE, MOST_PATIENCE = 32, 512  # forwards until the full number is tried again
# Of a look at the machine: long enough for the others to get their time slices, and by how much all
# threads must be quicker than one. Idle 0.50 to 0.73, beside one busy process 0.92 and more
# (docs/experiments.md, 41).
_NUMBERS, _PASSES = 200_000, 400
# times the seconds of one thread: where all threads take less, nobody else is at work
ALL_OURS = 0.85


def begin_with(threads: int | None, device: str) -> None:
    """Set PyTorch's threads for a long job: so many, or all but where the CPU is busy right now.

    Args:
        threads: None leaves the choice here.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    elif device.startswith("cpu"):
        ThreadGovernor(torch.get_num_threads()).look()
        _log.info("computing with %d threads", torch.get_num_threads())


class ThreadGovernor:
    """Decides on the number of threads from what forwards take.

    Args:
        threads: the full number.
        set_threads: makes a change.

    Attributes:
        tell: is called after every change.
    """

    def __init__(self, threads: int, set_threads: Callable[[int], None] = torch.set_num_threads):
        self.full, self.threads = threads, threads
        self._set, self.tell = set_threads, lambda: None
        self._usual: dict[int, float] = {}  # rows -> least seconds
        self._slowness: deque[float] = deque(maxlen=RECENT)
        self._patience, self._waited = PATIENCE, 0
        self._trial_of: float | None = None  # the slowness that a trial must beat

    def look(self, seconds_with: Callable[[int], float] | None = None) -> None:
        """Begin with one thread if the machine is busy right now; takes a tenth of a second.

        ``seconds_with``: of a fixed piece of work with so many threads.
        """
        if self.full < 2:
            return
        seconds_with = seconds_with or self._seconds_of_passes
        alone, together = seconds_with(1), seconds_with(self.full)
        self._change(1 if together > ALL_OURS * alone else self.full)

    def _seconds_of_passes(self, threads: int) -> float:
        """Of work that every processor divides among its threads; not all divide small products."""
        self._set(threads)
        numbers = torch.ones(_NUMBERS)
        with torch.inference_mode():
            numbers.exp()
            started = time.perf_counter()
            for _ in range(_PASSES):
                numbers.exp()
            return time.perf_counter() - started

    def ran(self, rows: int, seconds: float) -> None:
        """A forward over ``rows`` has taken so long."""
        if self.full < 2:
            return
        self._usual[rows] = min(seconds, self._usual.get(rows, seconds))
        self._slowness.append(seconds / self._usual[rows])
        self._waited += 1
        if len(self._slowness) < RECENT:
            return
        slowness = statistics.median(self._slowness)
        if self._trial_of is not None:
            self._judge(slowness)
        elif self.threads == self.full:
            if slowness > SLOWER and self._waited >= self._patience_left():
                self._try(1, slowness)
        elif self._waited >= self._patience:
            self._try(self.full, slowness)

    def _patience_left(self) -> int:
        """A machine on which one thread was no better is left alone for a while."""
        return RECENT if self._patience == PATIENCE else self._patience

    def _try(self, threads: int, slowness: float) -> None:
        self._trial_of = slowness
        self._change(threads)

    def _judge(self, slowness: float) -> None:
        better, self._waited = slowness < self._trial_of, 0
        self._trial_of = None
        self._patience = PATIENCE if better else min(2 * self._patience, MOST_PATIENCE)
        if not better:
            self._change(self.full if self.threads != self.full else 1)

    def _change(self, threads: int) -> None:
        self.threads = threads
        self._slowness.clear()
        self._set(threads)
        self.tell()
