"""Counting what a drafter does, and giving its time to it, without touching the loop."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from specblock.drafters.base import Budget, Drafter
from specblock.drafters.proposing.proposal import Proposal
from specblock.drafters.proposing.together import Drafting, alone
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


@dataclass(frozen=True, eq=False)
class _CountedProposal(Proposal):
    """Counts what is verified of it."""

    counts: Counts = field(default_factory=Counts)

    def best(self, nodes: int) -> DraftTree:
        tree = super().best(nodes)
        self.counts.verified[tree.num_draft] += 1
        return tree


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

    def drafting(
        self, root_token: int, budget: Budget, copied: DraftTree | None = None
    ) -> Drafting[Proposal]:
        self.counts.calls += self._has_network
        counting = _CountingBudget(budget, self.counts)
        proposal = yield from self.drafter.drafting(root_token, counting, copied)
        if proposal.tree.tokens.is_cuda:
            torch.cuda.synchronize(proposal.tree.tokens.device)
        self.counts.offered += len(proposal.reached)
        return _CountedProposal(
            proposal.tree, proposal.survival, proposal.most, proposal.later, self.counts
        )

    def propose(
        self, root_token: int, budget: Budget, copied: DraftTree | None = None
    ) -> DraftTree:
        return alone(self.drafting(root_token, budget, copied)).chosen(budget)

    def another(self) -> MeteredDrafter:
        """For another text, counted by itself."""
        return MeteredDrafter(self.drafter.another())

    def take(self) -> Counts:
        """The counts since the last call."""
        taken, self.counts = self.counts, Counts()
        return taken
