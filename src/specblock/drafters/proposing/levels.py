"""Trees that grow one level at a time, as EAGLE-3's and the parallel heads' do."""

from __future__ import annotations

import torch
from torch import Tensor

from specblock.budget.survival import SurvivalModel
from specblock.drafters.base import Budget
from specblock.drafters.proposing.proposal import Proposal
from specblock.tree.draft_tree import DraftTree
from specblock.tree.growth import (
    BlockCandidates,
    GrowthPolicy,
    NodePool,
    extend,
    first_pool,
    starters,
)


class LevelTree:
    """A tree in which every expanded node gets its ``width`` best continuations as children.

    Nothing is expanded twice, so no two nodes spell the same path and nothing need be merged. All
    nodes are of rank class 0: there is no rank head.

    Args:
        tokens: int64 [1, W], target ids of the candidates under the root; log_probs: [1, W].
        model: how likely the walk gets to a node.
    """

    def __init__(self, tokens: Tensor, log_probs: Tensor, model: SurvivalModel):
        width = tokens.shape[-1]
        self._policy = GrowthPolicy((width,) * 4, width, adaptive_first=(), adaptive_rest=())
        self._model = model
        block, factors = self._block(tokens, log_probs)
        self.pool: NodePool = first_pool(block, self._policy, factors)
        self._factors = factors
        # of the newest nodes, in the pool's order
        self._reached = self._children_reached(log_probs, log_probs.new_ones(1))

    def frontier(self, limit: int) -> tuple[Tensor, Tensor]:
        """The ``limit`` best newest nodes by score, most likely reached first.

        Returns their indices into the pool, int64 [n], and the probabilities that the walk gets
        there, float [n]; it ends there if nothing follows.
        """
        leaves, valid = starters(self.pool, self._factors, limit)
        reached = self._reached[leaves - self.pool.newest].masked_fill(~valid, 0.0)
        reached, order = reached.sort(descending=True, stable=True)
        return leaves[order], reached

    def rows(self, leaves: Tensor) -> Tensor:
        """Which row of the newest level proposed each of its nodes ``leaves``, int64 [n]."""
        return (leaves - self.pool.newest) // self.pool.layout[-1][-1]

    def add(self, leaves: Tensor, tokens: Tensor, log_probs: Tensor) -> None:
        """Hang ``tokens`` (int64 [n, W], target ids; log_probs [n, W]) under newest nodes."""
        reached = self._reached[leaves - self.pool.newest]
        block, factors = self._block(tokens, log_probs)
        valid = self.pool.scores[leaves] > -torch.inf
        self.pool = extend(self.pool, leaves, valid, block, self._policy, factors)
        self._factors = factors
        self._reached = self._children_reached(log_probs, reached)

    def proposal(
        self, root_token: int, budget: Budget, most: int, copied: DraftTree | None = None
    ) -> Proposal:
        """The most promising nodes, with the copies."""
        later = self.pool.depths > 1
        return Proposal.of_pool(self.pool, later, root_token, budget.model, most, copied)

    def _block(self, tokens: Tensor, log_probs: Tensor) -> tuple[BlockCandidates, Tensor]:
        classes = torch.zeros(len(tokens), 1, dtype=torch.int64, device=tokens.device)
        block = BlockCandidates(tokens[:, None], log_probs[:, None], classes)
        return block, classes + tokens.shape[-1]

    def _children_reached(self, log_probs: Tensor, parents: Tensor) -> Tensor:
        """:meth:`SurvivalModel.survival` one level on; float [n * W] of ``log_probs [n, W]``."""
        flat = log_probs.flatten()
        classes = torch.zeros(len(flat), dtype=torch.int64, device=flat.device)
        own = self._model.conditional(flat, classes).view_as(log_probs)
        scale = parents / own.sum(-1).clamp(min=1.0)
        return (own * scale[:, None]).flatten()
