"""What texts draft with, lent to one text at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from specblock.engine.sequence import Seat

__all__ = ["Seats"]


class Seats:
    """As many seats as are needed at a time: ``first`` and others like it."""

    def __init__(self, first: Seat):
        self._first = first
        self._free, self._lock = [first], Lock()

    @property
    def nodes(self) -> int:
        """Most draft nodes of a round."""
        drafter = self._first.drafter
        return 0 if drafter is None else drafter.max_nodes

    def take(self) -> Seat:
        """A seat for a text."""
        with self._lock:
            return self._free.pop() if self._free else self._first.another()

    @contextmanager
    def seated(self) -> Iterator[Seat]:
        """A seat, which is kept unless what is begun with it raises."""
        seat = self.take()
        try:
            yield seat
        except BaseException:
            self.give_back(seat)
            raise

    def give_back(self, seat: Seat, *, sound: bool = True) -> None:
        """The text has ended. An unsound seat, whose drafter failed, is not lent again."""
        if not sound:
            return
        with self._lock:
            # the first is lent first: who looks at it sees every text that comes alone
            self._free.insert(len(self._free) if seat is self._first else 0, seat)
