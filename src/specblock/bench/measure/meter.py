"""Counting what a drafter does, and giving its time to it, without touching the loop."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from specblock.drafters.base import Budget, Drafter
from specblock.tree.draft_tree import DraftTree

__all__ = ["Counts", "MeteredDrafter"]


@dataclass
class Counts:
    """Of one answer.

    Attributes:
        calls: forwards of the drafter's network while drafting, refreshes included.
        offered: candidate nodes that the budget could choose from (a drafter hands over its best
            ``max_nodes``).
        verified: speculating rounds by the draft nodes that were verified.
    """

    calls: int = 0
    offered: int = 0
    verified: Counter[int] = field(default_factory=Counter)


class _CountingBudget:
    """A budget that is listened to while one tree grows."""

    def __init__(self, budget: Budget, counts: Counts):
        self._budget, self._counts = budget, counts
        self.model = budget.model

    def leaves(self, leaf_survival: Tensor, max_leaves: int) -> int:
        chosen = self._budget.leaves(leaf_survival, max_leaves)
        self._counts.calls += chosen > 0  # all chosen leaves start in one forward
        return chosen

    def nodes(self, survival: Tensor, later: Tensor | None = None) -> int:
        self._counts.offered += len(survival)
        return self._budget.nodes(survival, later)


class MeteredDrafter:
    """A drafter, counted. All else is the drafter's own.

    On a GPU the call returns when the tree is there: without that, drafting would be charged to
    whoever reads a result first.
    """

    def __init__(self, drafter: Drafter):
        self.drafter = drafter
        self.counts = Counts()
        self._has_network = hasattr(drafter, "model")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.drafter, name)

    def propose(
        self, root_token: int, budget: Budget, copied: DraftTree | None = None
    ) -> DraftTree:
        self.counts.calls += self._has_network
        tree = self.drafter.propose(root_token, _CountingBudget(budget, self.counts), copied)
        if tree.tokens.is_cuda:
            torch.cuda.synchronize(tree.tokens.device)
        self.counts.verified[tree.num_draft] += 1
        return tree

    def another(self) -> MeteredDrafter:
        """For another text, counted by itself."""
        return MeteredDrafter(self.drafter.another())

    def take(self) -> Counts:
        """The counts since the last call."""
        taken, self.counts = self.counts, Counts()
        return taken
