"""What a drafter proposes for one text, before it is decided how much of it is verified."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from specblock.budget.survival import SurvivalModel, trim
from specblock.drafters.base import Budget
from specblock.tree.draft_tree import DraftTree
from specblock.tree.graft import graft
from specblock.tree.growth import NodePool, prune_with_origins

__all__ = ["Proposal"]


@dataclass(frozen=True, eq=False)
class Proposal:
    """Candidates for verification.

    Attributes:
        tree: N candidates under the newest token.
        survival: float [N+1], probability that the walk of acceptance reaches each node.
        most: so many may be verified.
        later: bool [N], candidates that cost more than the drafter's first forward; None where
            there is no such difference.
    """

    tree: DraftTree
    survival: Tensor
    most: int
    later: Tensor | None = None

    @staticmethod
    def of_tree(tree: DraftTree, model: SurvivalModel) -> Proposal:
        """All of a tree."""
        survival = model.survival(tree.log_probs, tree.classes, tree.parents)
        return Proposal(tree, survival, tree.num_draft)

    @staticmethod
    def of_pool(
        pool: NodePool,
        later: Tensor,
        root_token: int,
        model: SurvivalModel,
        most: int,
        copied: DraftTree | None,
    ) -> Proposal:
        """The best ``most`` nodes of a pool by score, and the copies.

        Args:
            pool: what the network proposed.
            later: bool [C], the pool's nodes that cost more than the first forward.
            root_token: the newest token.
            copied: what the text suggests, under the same root; None: nothing.
        """
        root = torch.tensor(root_token, device=pool.tokens.device)
        tree, origins = prune_with_origins(pool, root, most)
        later = later[origins]
        if copied is not None:
            tree = graft(tree, copied)
            later = F.pad(later, (0, tree.num_draft - len(later)))
        survival = model.survival(tree.log_probs, tree.classes, tree.parents)
        return Proposal(tree, survival, most, later)

    @cached_property
    def _order(self) -> Tensor:
        return self.survival[1:].sort(descending=True, stable=True).indices[: self.most]

    @cached_property
    def reached(self) -> Tensor:
        """float [C], the survival of the ``most`` likeliest candidates, falling."""
        return self.survival[1:][self._order]

    @cached_property
    def later_of_reached(self) -> Tensor | None:
        """bool [C]: ``later`` of the candidates in :attr:`reached`."""
        return None if self.later is None else self.later[self._order]

    def best(self, nodes: int) -> DraftTree:
        """The tree of the ``nodes`` candidates most likely to be reached."""
        return trim(self.tree, self.survival, nodes)

    def chosen(self, budget: Budget) -> DraftTree:
        """As many as ``budget`` wants."""
        return self.best(budget.nodes(self.reached, self.later_of_reached))
