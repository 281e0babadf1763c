"""What the target has said in earlier texts: a drafter's memory that costs a copy to keep.

As in SuffixDecoding (Oliaro et al., 2024), where earlier answers of the same traffic draft the next
ones; kept flat, because a scan of a quarter of a million tokens takes less than a millisecond.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specblock.drafters.lookup.match import (
    END,
    Branch,
    before_end,
    longest_match,
    merge,
    trust_by_count,
)


class TextMemory:
    """The newest answers, oldest first, int32, 4 bytes a token.

    Args:
        capacity: most tokens that are kept; where it is full the older half goes.
        longest: most tokens that are matched. A match has two at least: what followed a single
            token elsewhere says too little.
        continuations: occurrences that are looked at, the newest first.

    Raises ValueError for numbers that leave no room.
    """

    SHORTEST = 2

    def __init__(self, capacity: int = 2**18, *, longest: int = 16, continuations: int = 16):
        if capacity < 4 or longest < self.SHORTEST or continuations < 1:
            raise ValueError("capacity is at least 4, longest 2, continuations 1")
        self.longest, self.continuations = longest, continuations
        self._kept, self._length = np.zeros(capacity, dtype=np.int32), 0

    @staticmethod
    def of_size(mib: float) -> TextMemory | None:
        """A memory of so many MiB; None for 0."""
        return TextMemory(max(4, int(mib * 2**18))) if mib else None

    def __len__(self) -> int:
        """Tokens kept, ends of texts included."""
        return self._length

    def tokens(self) -> np.ndarray:
        """int32 [n]: the texts, each closed by ``END``; a view."""
        return self._kept[: self._length]

    def remember(self, text: Sequence[int]) -> bool:
        """Keep a text, of a very long one the last part; False where it is known already."""
        half = len(self._kept) // 2
        part = np.array([*text[-(half - 1) :], END], dtype=np.int32)
        if len(part) == 1 or self._knows(part):
            return False
        if self._length + len(part) > len(self._kept):
            self._forget(half)
        self._kept[self._length : self._length + len(part)] = part
        self._length += len(part)
        return True

    def _forget(self, keep: int) -> None:
        """Leave the last ``keep`` tokens at most, in whole texts."""
        starts = np.flatnonzero(self.tokens() == END) + 1
        first = starts[starts >= self._length - keep][0]  # the last one leaves nothing
        rest = self.tokens()[first:].copy()
        self._kept[: len(rest)], self._length = rest, len(rest)

    def _knows(self, part: np.ndarray) -> bool:
        """Whether some text ends with this one: what was said twice is no second opinion."""
        ends = np.flatnonzero(self.tokens() == END) + 1
        ends = ends[ends >= len(part)]
        for back in range(2, len(part) + 1):
            ends = ends[self._kept[ends - back] == part[-back]]
            if not len(ends):
                return False
        return bool(len(ends))

    def restore(self, tokens: np.ndarray) -> None:
        """Take over what :meth:`tokens` gave, as much as there is room for."""
        for text in np.split(tokens, np.flatnonzero(tokens == END) + 1):
            self.remember(text[:-1].tolist())

    def branches(self, text: np.ndarray, depth: int) -> tuple[int, list[Branch]]:
        """What followed the longest match of the end of ``text`` (int64 [n]) in other texts.

        Returns:
            The match's length and its continuations of up to ``depth`` tokens as one tree; 0 and
            the root alone where there is no match of two tokens.
        """
        length, ends = longest_match(text[-self.longest :], self.longest, self.tokens())
        if length < self.SHORTEST:
            return 0, merge([], 0)
        copies = [before_end(self.tokens(), int(e), depth) for e in ends[: self.continuations]]
        return length, merge(copies, length, trust_by_count)
