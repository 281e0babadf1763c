"""The pairs that a drafter has been shown and not read yet."""

from __future__ import annotations

import torch
from torch import Tensor


class PairQueue:
    """Base of drafters whose next forward reads all pairs observed since the last one.

    Subclasses call :meth:`forget_pairs` in ``reset`` and :meth:`take_pairs` in that forward.
    """

    _pending: list[tuple[Tensor, Tensor]]

    def forget_pairs(self) -> None:
        """Nothing has been observed."""
        self._pending = []

    def prefill(self, features: Tensor, tokens: Tensor) -> None:
        """The prompt's pairs; they enter the cache with the first forward."""
        self.observe(features, tokens)

    def observe(self, features: Tensor, tokens: Tensor) -> None:
        """The pairs that a round added: ``features [n, F * H]``, ``tokens`` int64 [n]."""
        self._pending.append((features, tokens))

    def take_pairs(self) -> tuple[Tensor, Tensor]:
        """All that wait, oldest first. Raises ValueError if none do."""
        if not self._pending:
            raise ValueError("observe the newest pair before proposing from it")
        features, tokens = zip(*self._pending, strict=True)
        self._pending = []
        return torch.cat(features), torch.cat(tokens)
