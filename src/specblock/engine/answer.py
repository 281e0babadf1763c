"""What a caller is given of a text: chunks with text, tokens and figures."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from specblock.config import GenerationConfig
from specblock.engine.engine import Request
from specblock.engine.seats import Seats
from specblock.engine.sequence import Seat, Sequence
from specblock.engine.statistics import GenerationStats
from specblock.engine.text import TextStream
from specblock.target.model import Target
from specblock.tree.draft_tree import DraftTree
from specblock.tree.sampling import SamplingParams

__all__ = ["Answer", "Chunk", "Generation", "Learner"]


class Learner(Protocol):
    """What an adaptation is to an answer."""

    def observer(self, prompt: list[int]) -> Any:
        """Looks on while it is written."""

    def finished(self, observer: Any, stats: GenerationStats, *, complete: bool) -> None:
        """It is over; what it taught is put to use."""

    def close(self) -> None:
        """Finish what runs in the background, and save what was learned."""


@dataclass(frozen=True)
class Chunk:
    """A piece of a generation: new ``text`` and ``token_ids``; the last has a ``finish_reason``.

    Text lags behind tokens where a character or a stop string may be incomplete.
    """

    text: str
    token_ids: list[int]
    finish_reason: str | None
    stats: GenerationStats


@dataclass(frozen=True)
class Generation:
    """A finished generation. ``token_ids`` are the new tokens, an end-of-turn token included;
    ``finish_reason`` is ``"stop"`` (end token or stop string) or ``"length"``."""

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int
    stats: GenerationStats


class Answer(Request[Chunk]):
    """A request for text: chunks up to an end token, a stop string or the last round.

    Args:
        ids: the prompt.
        config, params: what is asked for.
        seats: where it takes what it drafts with; None decodes plainly.
        text: of this answer.
        ends: tokens that end it.
        adaptation: learns from it, if there is one.
    """

    def __init__(
        self,
        ids: list[int],
        config: GenerationConfig,
        params: SamplingParams,
        seats: Seats | None,
        text: TextStream,
        ends: frozenset[int],
        adaptation: Learner | None = None,
    ):
        super().__init__(ids, config.max_new_tokens, 0 if seats is None else seats.nodes)
        self._params, self._seats, self._seat = params, seats, Seat(None, None, None)
        self._text, self._ends = text, ends
        self._adaptation, self._observer = adaptation, None
        self._stats, self._said = GenerationStats(), False

    def begin(self, target: Target) -> Sequence:
        """Take a seat and begin the sequence."""
        if self._adaptation is not None:
            self._observer = self._adaptation.observer(self.prompt)
        with nullcontext(self._seat) if self._seats is None else self._seats.seated() as seat:
            self._seat = seat
            return Sequence(
                target, seat, self.prompt, self._params, self.room, self._stats, self._observer,
                told=self.drawn,
            )  # fmt: skip

    def drawn(
        self, tree: DraftTree | None, logits: Tensor, path: list[int], tokens: list[int]
    ) -> None:
        """Told of every draw, see :class:`Sequence`; for answers that say more than their text."""

    def push(self, tokens: list[int]) -> tuple[Chunk, bool]:
        """A round's tokens as a chunk, cut where the answer ends within them."""
        reason, stats = None, self._stats
        end = next((place for place, token in enumerate(tokens) if token in self._ends), None)
        if end is not None:
            stats.new_tokens -= len(tokens) - end - 1
            tokens, reason = tokens[: end + 1], "stop"
        piece, used = self._text.push_until_stop(tokens)
        if piece.stopped:
            stats.new_tokens -= len(tokens) - used
            tokens, reason = tokens[:used], "stop"
        if reason is None:
            return Chunk(piece.text, tokens, None, stats), False
        self._said = True
        tail = "" if piece.stopped else self._text.flush()
        return Chunk(piece.text + tail, tokens, reason, stats), True

    def end(self, complete: bool) -> Chunk | None:
        """Leave the seat, learn; the last chunk where no round had it."""
        sound = self.sequence.drafting_error is None
        if self._seats is not None:
            self._seats.give_back(self._seat, sound=sound)
        if self._adaptation is not None and sound:  # else it has not seen all of the answer
            self._adaptation.finished(self._observer, self._stats, complete=complete)
        if self._said or not complete:
            return None
        return Chunk(self._text.flush(), [], "length", self._stats)
