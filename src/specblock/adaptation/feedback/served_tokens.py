"""Which tokens were served, and so which are worth drafting."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from specblock.training.data.answers import draft_vocabulary

__all__ = ["ServedTokens"]


class ServedTokens:
    """Counts of answers' tokens.

    Args:
        vocabulary: tokens of the target. size: how many of them are drafted from.
    """

    def __init__(self, vocabulary: int, size: int):
        self._size = size
        self._counts = torch.zeros(vocabulary, dtype=torch.int64)

    def add(self, tokens: Tensor) -> None:
        """Token ids, int64 [S], of an answer."""
        self._counts += torch.bincount(tokens, minlength=len(self._counts))

    def vocabulary(self) -> Tensor:
        """The tokens to draft from, bool [V]: the most served, and where there are not so
        many, those of the lowest ids, which are the commonest of byte-pair encodings."""
        return draft_vocabulary(self._counts, self._size)[1]

    def to_dict(self) -> dict[str, Any]:
        served = self._counts.nonzero().flatten()
        return {"tokens": served.tolist(), "counts": self._counts[served].tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        self._counts.zero_()
        self._counts[state["tokens"]] = torch.tensor(state["counts"], dtype=torch.int64)
