"""A row of ``generate``'s batch as a request to the engine."""

from __future__ import annotations

from specblock.engine.engine import Request
from specblock.engine.seats import Seats
from specblock.engine.sequence import Seat, Sequence
from specblock.engine.statistics import GenerationStats
from specblock.integrations.transformers.rows import Row
from specblock.target.model import Target
from specblock.tree.sampling import SamplingParams

__all__ = ["RowRequest"]


class RowRequest(Request[list[int]]):
    """Writes ``row`` to its end, ``room`` tokens at most; its pieces are rounds of new tokens."""

    def __init__(self, row: Row, params: SamplingParams, room: int, seats: Seats):
        super().__init__(row.prompt, room, seats.nodes)
        self._row, self._params, self._seats = row, params, seats
        self._seat: Seat | None = None

    def begin(self, target: Target) -> Sequence:
        """Take a seat and begin."""
        with self._seats.seated() as self._seat:
            return Sequence(
                target, self._seat, self.prompt, self._params, self.room, GenerationStats(),
                until=self._row.ended,
            )  # fmt: skip

    def push(self, tokens: list[int]) -> tuple[list[int], bool]:
        """The tokens; the row itself says where it ends."""
        return tokens, False

    def end(self, complete: bool) -> None:
        """Leave the seat."""
        self._seats.give_back(self._seat, sound=self.sequence.drafting_error is None)
