"""Token ids to text as they come: whole characters only, and stop strings."""

from __future__ import annotations

import re
from dataclasses import dataclass

_REPLACEMENT = "�"
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True)
class Piece:
    """New text that is certain, and whether a stop string ended the generation."""

    text: str
    stopped: bool


class TextStream:
    """Turns growing token ids into text pieces.

    Holds back bytes that are not a character yet, and text that may be the beginning of a stop
    string. The stop string itself is not part of the text.
    """

    def __init__(self, tokenizer, stop_strings: tuple[str, ...] = ()):
        self.tokenizer, self._stops = tokenizer, stop_strings
        self._ids: list[int] = []
        self._sent = 0
        self.text = ""

    def push(self, ids: list[int]) -> Piece:
        """Add tokens; returns what may be shown now."""
        self._ids += ids
        self.text = self.tokenizer.decode(self._ids, skip_special_tokens=True)
        cut = self._first_stop()
        if cut is not None:
            self.text = self.text[:cut]
            return Piece(self._take(len(self.text)), True)
        safe = min(len(self.text) - self._unfinished(), self._settled())
        return Piece(self._take(safe), False)

    def push_until_stop(self, ids: list[int]) -> tuple[Piece, int]:
        """Add tokens up to the one that completes a stop string; how many of them were used.

        Plain decoding would have stopped at that token, so a round must not go past it.
        """
        if not self._stops:
            return self.push(ids), len(ids)
        shown = ""
        for used, token in enumerate(ids, 1):
            piece = self.push([token])
            shown += piece.text
            if piece.stopped:
                return Piece(shown, True), used
        return Piece(shown, False), len(ids)

    def flush(self) -> str:
        """What was held back, at the end of the generation."""
        return self._take(len(self.text))

    def _take(self, upto: int) -> str:
        piece = self.text[self._sent : max(upto, self._sent)]
        self._sent = max(upto, self._sent)
        return piece

    def _first_stop(self) -> int | None:
        found = [self.text.find(stop) for stop in self._stops]
        return min((place for place in found if place >= 0), default=None)

    def _settled(self) -> int:
        """How many characters no later token changes. Tokenizers that spell bytes out (``<0x0A>``)
        decode a run of them as a whole: what does not end well is unreadable from its beginning."""
        names = getattr(self.tokenizer, "convert_ids_to_tokens", None)
        run = 0
        while (
            names is not None
            and run < len(self._ids)
            and _BYTE.fullmatch(str(names(self._ids[-run - 1])))
        ):
            run += 1
        if not run:
            return len(self.text)
        return len(self.tokenizer.decode(self._ids[:-run], skip_special_tokens=True))

    def _unfinished(self) -> int:
        """How many characters at the end are not certain yet."""
        whole = self.text.rstrip(_REPLACEMENT)  # what follows may be a half character of a stop
        begun = (
            length
            for stop in self._stops
            for length in range(1, min(len(stop) - 1, len(whole)) + 1)
            if whole.endswith(stop[:length])
        )
        return len(self.text) - len(whole) + max(begun, default=0)
