"""The pairs that a drafter has been shown and not read yet."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor

from specblock.drafters.base import Budget
from specblock.drafters.proposing.proposal import Proposal
from specblock.drafters.proposing.together import Drafting, alone
from specblock.tree.draft_tree import DraftTree


class PairQueue(ABC):
    """Base of drafters whose next forward reads all pairs observed since the last one.

    Subclasses call :meth:`forget_pairs` in ``reset`` and :meth:`take_pairs` in that forward, and
    keep what belongs to their text in ``_cache``.

    Attributes:
        prompt_pairs: of a longer prompt only so many last pairs are read: the positions of rotary
            embeddings are relative, what lies far back changes little of what a drafter says, and
            what is repeated from there is copied from the text anyway. Reading all of a long prompt
            costs as much as several tokens.
    """

    prompt_pairs = 32

    _pending: list[tuple[Tensor, Tensor]]
    _cache: Tensor | None

    @abstractmethod
    def drafting(
        self, root_token: int, budget: Budget, copied: DraftTree | None = None
    ) -> Drafting[Proposal]:
        """See :class:`specblock.drafters.base.Drafter`."""

    def propose(
        self, root_token: int, budget: Budget, copied: DraftTree | None = None
    ) -> DraftTree:
        """The tree of a text that is alone, as large as the budget says."""
        return alone(self.drafting(root_token, budget, copied)).chosen(budget)

    def another(self) -> Self:
        """A drafter of the same network and settings for another text."""
        other = copy.copy(self)
        other._cache = None
        other.forget_pairs()
        return other

    def forget_pairs(self) -> None:
        """Nothing has been observed."""
        self._pending = []

    def prefill(self, features: Tensor, tokens: Tensor) -> None:
        """The prompt's pairs; they enter the cache with the first forward."""
        self.observe(features[-self.prompt_pairs :], tokens[-self.prompt_pairs :])

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
