"""Running means that forget."""

from __future__ import annotations


class Recent:
    """A ratio of sums in which older entries count less and less.

    Args:
        keep: what an entry leaves of the weight of earlier ones.
        top, bottom: the sums to begin with.
    """

    def __init__(self, keep: float, top: float, bottom: float):
        self.keep, self.top, self.bottom = keep, top, bottom

    def add(self, top: float, bottom: float) -> None:
        """Another entry of both sums."""
        self.top, self.bottom = self.top * self.keep + top, self.bottom * self.keep + bottom

    @property
    def ratio(self) -> float:
        return self.top / self.bottom
