"""One answer as drafters are trained on it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Sequence:
    """One answered prompt of S + 1 tokens, seen as its S (feature, next token) pairs.

    ``features [S, F * H]`` of positions 0..S-1, ``tokens`` int64 [S] = tokens 1..S, ``start`` bool
    [S], and targets by row p = the target's distribution at position p + 1: ``target_ids`` int32
    [S, T] draft ids, ``target_probabilities`` [S, T], ``usable`` bool [S].
    """

    features: Tensor
    tokens: Tensor
    start: Tensor
    target_ids: Tensor
    target_probabilities: Tensor
    usable: Tensor

    @property
    def answer_tokens(self) -> int:
        return int(self.start.sum())

    def nbytes(self) -> int:
        parts = (self.features, self.tokens, self.target_ids, self.target_probabilities)
        return sum(part.numel() * part.element_size() for part in parts)
