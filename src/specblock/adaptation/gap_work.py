"""Updates in the gaps between requests: their steps, and what they cost those who come."""

from __future__ import annotations

import time

from specblock.adaptation.deciding.gaps import Gaps
from specblock.adaptation.deciding.ledger import Ledger
from specblock.adaptation.learning.preemption import Waiting
from specblock.adaptation.learning.runners import Runner

__all__ = ["GapWork"]


class GapWork:
    """Lets ``runner`` work in gaps, if they are ``used``, and enters it in ``ledger``."""

    def __init__(self, runner: Runner, ledger: Ledger, *, used: bool):
        self._runner, self.used = runner, used
        self._ledger, self._gaps = ledger, Gaps()

    @property
    def price(self) -> float:
        """Seconds that requests wait for a second of an update."""
        return self._gaps.price if self.used else 1.0

    def work(self, waiting: Waiting) -> bool:
        """A step, if an update is under way, until somebody is ``waiting``; whether one is then."""
        if not (self.used and self._runner.busy):
            return False
        began = time.perf_counter()
        more = self._runner.work(waiting)
        self._ledger.pay(0.0, machine=time.perf_counter() - began)
        return more

    def pay(self, seconds: float) -> None:
        """An update took so long; of one in gaps every step and every delay has been paid."""
        if not self.used:
            self._ledger.pay(seconds)

    def ended(self, gap: float, delays: list[float]) -> None:
        """A gap of so many seconds is over for requests that waited for so long each."""
        self._gaps.ended(gap, delays, working=self._runner.busy)
        self._ledger.pay(sum(delays), machine=0.0)
