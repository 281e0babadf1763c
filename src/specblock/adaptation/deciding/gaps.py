"""What work in the gaps between requests costs those who come meanwhile.

Work in a gap is cut into steps. A request that comes in the middle of one waits for its rest. Let
requests come into gaps at a rate r, and steps take m seconds. A moment of work lies in a step of
length m with a probability in proportion to m, and half of that step is still ahead in the mean: so
a request that comes while work is done waits E[m^2] / (2 E[m]) seconds, and a second of work delays
requests by

    price = r E[m^2] / (2 E[m])

seconds. It is never more than 1: work that is done at once, with everybody waiting, costs its own
seconds. The shorter the gaps, the higher r, so that on a busy machine the price tends to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Gaps"]

_KEEP = 0.95  # of what is known, with every gap: some twenty gaps are remembered


@dataclass
class Gaps:
    """Sums over gaps, the newest counting most.

    Attributes:
        seconds: of gaps. arrivals: requests that ended them, or came in their last step.
        work, squares: seconds of steps, and their squares.
    """

    seconds: float = 0.0
    arrivals: float = 0.0
    work: float = 0.0
    squares: float = 0.0

    def worked(self, seconds: float) -> None:
        """A step."""
        self.work += seconds
        self.squares += seconds * seconds

    def ended(self, seconds: float, arrivals: int) -> None:
        """A gap of so many seconds is over."""
        self.seconds = _KEEP * self.seconds + seconds
        self.arrivals = _KEEP * self.arrivals + arrivals
        self.work, self.squares = _KEEP * self.work, _KEEP * self.squares

    def price(self, step: float) -> float:
        """Seconds of delay for a second of work, at most 1; 1 before anything came.

        ``step``: seconds of a step, until one was measured.
        """
        if not self.arrivals or not self.seconds:
            return 1.0
        rest = self.squares / (2 * self.work) if self.work else step / 2
        return min(1.0, self.arrivals / self.seconds * rest)
