"""What work in the gaps between requests costs those who come meanwhile.

Work in a gap makes room for a request that comes: it is given up, which takes a moment. Let
requests come into gaps at a rate r, and wait d seconds where work is under way. While a second of
work is done r requests come, so that it delays requests by

    price = r d

seconds. It is never more than 1: work that is done at once, with everybody waiting, costs its own
seconds. The shorter the gaps, the higher r, so that on a busy machine the price rises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Gaps"]

_KEEP = 0.95  # of what is known, with every gap: some twenty gaps are remembered
_FIRST_DELAY = 0.05  # seconds, until a request has met work


@dataclass
class Gaps:
    """Sums over gaps, the newest counting most.

    Attributes:
        seconds: of gaps. arrivals: requests that ended them.
        met: requests that came while work was under way. waited: seconds that these waited.
    """

    seconds: float = 0.0
    arrivals: float = 0.0
    met: float = 0.0
    waited: float = 0.0

    def ended(self, seconds: float, delays: Sequence[float], *, working: bool) -> None:
        """A gap of so many seconds is over for requests that waited so long; whether for work."""
        self.seconds = _KEEP * self.seconds + seconds
        self.arrivals = _KEEP * self.arrivals + len(delays)
        if working:
            self.met = _KEEP * self.met + len(delays)
            self.waited = _KEEP * self.waited + sum(delays)

    @property
    def price(self) -> float:
        """Seconds of delay for a second of work, at most 1; 1 before anything came."""
        if not self.arrivals or not self.seconds:
            return 1.0
        delay = self.waited / self.met if self.met else _FIRST_DELAY
        return min(1.0, self.arrivals / self.seconds * delay)
