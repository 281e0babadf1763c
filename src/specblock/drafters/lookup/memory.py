"""What the target has said in earlier texts: a drafter's memory that costs a copy to keep.

As in SuffixDecoding (Oliaro et al., 2024), where earlier answers of the same traffic draft the next
ones; kept flat, because a search in a hundred thousand tokens takes less than a millisecond. Where
the target's features are at hand, what is alike is told by its hidden states (``states.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from specblock.drafters.lookup.match import (
    END,
    Branch,
    before_end,
    longest_match,
    matched_lengths,
    merge,
    occurrences,
    trust_by_count,
)
from specblock.drafters.lookup.states import SIZE, StateKeys

LEAD = 4  # tokens of the prompt before an answer that are remembered with it
TOKEN_BYTES = 4 + SIZE
# A match of states is as good as their cosine and a bit for every token that also matches: from
# these values on it is of the first class, the second, the third. Worse ones than LEAST are left
# out. What follows such matches, and what a step further makes of it: docs/experiments.md, 33.
CLASS_MATCHES = (1.06, 0.93, 0.75)
LEAST_MATCH = 0.5  # similarity of states, at most 1
# similarity for every token before that also matches; at most so many count
PER_TOKEN, MOST_TOKENS = 0.02, 8
_SHARPNESS = 10.0  # of the weights by which continuations vote
_NEWEST = 1024  # occurrences that are compared
_LEADERS = 4  # continuations of which more than the first token is copied


class TextMemory:
    """The newest answers, oldest first: token ids, and a key of the state behind each.

    Args:
        capacity: most tokens that are kept, 132 bytes each; where it is full the older half goes.
        longest: most tokens that are matched. Without states a match has two at least: what
            followed a single token elsewhere says too little.
        continuations: occurrences that are copied, the best or the newest.
        layers: how many layers' outputs the features hold.

    Raises ValueError for numbers that leave no room.
    """

    SHORTEST = 2

    def __init__(
        self,
        capacity: int = 2**17,
        *,
        longest: int = 16,
        continuations: int = 32,
        layers: int = 1,
    ):
        if capacity < 4 or longest < self.SHORTEST or continuations < 1:
            raise ValueError("capacity is at least 4, longest 2, continuations 1")
        self.longest, self.continuations = longest, continuations
        self.keys = StateKeys(layers)
        self._kept, self._length = np.zeros(capacity, dtype=np.int32), 0
        self._states = torch.zeros(capacity, SIZE, dtype=torch.int8)  # pages unused cost nothing

    @staticmethod
    def of_size(mib: float, layers: int = 1) -> TextMemory | None:
        """A memory of so many MiB; None for 0."""
        return TextMemory(max(4, int(mib * 2**20 / TOKEN_BYTES)), layers=layers) if mib else None

    def __len__(self) -> int:
        """Tokens kept, ends of texts included."""
        return self._length

    def tokens(self) -> np.ndarray:
        """int32 [n]: the texts, each closed by ``END``; a view."""
        return self._kept[: self._length]

    def remember(self, text: Sequence[int], features: Tensor | None = None) -> bool:
        """Keep a text, of a very long one the last part; False where it is known already.

        Args:
            text: token ids.
            features: [n, F * H], of the position before each token; None matches by words alone.
        """
        keys = None if features is None or not features.shape[1] else self.keys(features)
        return self._remember(text, keys)

    def remember_answer(
        self, tokens: Sequence[int], prompt: int, features: Tensor | None = None
    ) -> bool:
        """Keep an answer and what of its prompt it follows; what is shown of the prompt besides
        tells what states look like.

        Args:
            tokens: of the pairs of a prompt's end and of its answer.
            prompt: how many of them are the prompt's; the last of these is the answer's first.
            features: [n, F * H], of the position before each token.
        """
        first = max(0, prompt - 1 - LEAD)
        if features is None:
            return self.remember(tokens[first:])
        self.keys.fit(features)
        return self.remember(tokens[first:], features[first:])

    def _remember(self, text: Sequence[int], keys: Tensor | None) -> bool:
        half = len(self._kept) // 2
        part = np.array([*text[-(half - 1) :], END], dtype=np.int32)
        if len(part) == 1 or self._knows(part):
            return False
        if self._length + len(part) > len(self._kept):
            self._forget(half)
        stop = self._length + len(part)
        self._kept[self._length : stop] = part
        self._states[self._length : stop] = 0
        if keys is not None:
            self._states[self._length : stop - 1] = keys[1 - len(part) :]
        self._length = stop
        return True

    def _forget(self, keep: int) -> None:
        """Leave the last ``keep`` tokens at most, in whole texts."""
        starts = np.flatnonzero(self.tokens() == END) + 1
        first = starts[starts >= self._length - keep][0]  # the last one leaves nothing
        left = self._length - first
        self._kept[:left] = self.tokens()[first:].copy()
        self._states[:left] = self._states[first : self._length].clone()
        self._length = left

    def _knows(self, part: np.ndarray) -> bool:
        """Whether some text ends with this one: what was said twice is no second opinion."""
        ends = np.flatnonzero(self.tokens() == END) + 1
        ends = ends[ends >= len(part)]
        for back in range(2, len(part) + 1):
            ends = ends[self._kept[ends - back] == part[-back]]
            if not len(ends):
                return False
        return bool(len(ends))

    def to_dict(self) -> dict[str, Tensor | dict[str, Tensor]]:
        """Everything that :meth:`restore` needs, copied."""
        kept = self._states[: self._length].clone()
        return {"tokens": torch.tensor(self.tokens()), "keys": kept, "states": self.keys.to_dict()}

    def restore(self, state: dict[str, Tensor | dict[str, Tensor]] | Tensor) -> None:
        """Take over what :meth:`to_dict` gave, as much as there is room for.

        The tokens alone are complete but for the states.
        """
        if isinstance(state, Tensor):
            state = {"tokens": state, "keys": torch.zeros(len(state), SIZE), "states": {}}
        self.keys.restore(state["states"])
        tokens = state["tokens"].numpy()
        start = 0
        for end in np.flatnonzero(tokens == END):
            self._remember(tokens[start:end].tolist(), state["keys"][start:end])
            start = end + 1

    def branches(
        self, text: np.ndarray, depth: int, feature: Tensor | None = None
    ) -> tuple[int, list[Branch]]:
        """What followed in other texts where it stood as it stands at the end of ``text``.

        Args:
            text: int64 [n]. depth: most tokens of a continuation.
            feature: [F * H], of the position before the text's last token; None, or as long as
                no states are known: what followed the longest match of the text's end.

        Returns:
            The length of the best match and its continuations as one tree; 0 and the root alone
            where nothing matches.
        """
        if feature is not None and self.keys.ready:
            return self._alike(text, depth, feature)
        length, ends = longest_match(text[-self.longest :], self.longest, self.tokens())
        if length < self.SHORTEST:
            return 0, merge([], 0)
        copies = [before_end(self.tokens(), int(e), depth) for e in ends[: self.continuations]]
        return length, merge(copies, length, trust_by_count)

    def _alike(self, text: np.ndarray, depth: int, feature: Tensor) -> tuple[int, list[Branch]]:
        ends = occurrences(int(text[-1]), self.tokens())[:_NEWEST]
        if not len(ends):
            return 0, merge([], 0)
        states = self._states[torch.from_numpy(ends - 1)]
        lengths = matched_lengths(text, ends, self.tokens(), MOST_TOKENS)
        found = self.keys.similarity(states, feature).numpy() + PER_TOKEN * lengths
        order = np.argsort(-found, kind="stable")[: self.continuations]
        order = order[found[order] >= LEAST_MATCH]
        if not len(order):
            return 0, merge([], 0)
        matches = found[order].tolist()
        nodes = merge(
            [before_end(self.tokens(), int(end), depth) for end in ends[order]],
            matches,
            trust_by_count,
            weights=[math.exp(_SHARPNESS * (match - matches[0])) for match in matches],
            step=PER_TOKEN,
            edges=CLASS_MATCHES,
            leaders=_LEADERS,
        )
        return int(lengths[order[0]]), nodes
