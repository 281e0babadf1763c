"""From everything that was proposed to the tree that is verified."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from specblock.drafters.base import Budget
from specblock.tree.draft_tree import DraftTree
from specblock.tree.graft import graft
from specblock.tree.growth import NodePool, prune_with_origins
from specblock.tree.survival import trim

__all__ = ["choose_tree"]


def choose_tree(
    pool: NodePool,
    later: Tensor,
    root_token: int,
    budget: Budget,
    max_nodes: int,
    copied: DraftTree | None,
) -> DraftTree:
    """The most promising nodes of a pool and of the copies, as many as the budget wants.

    Args:
        pool: what the network proposed.
        later: bool [C], the pool's nodes that cost more than the first forward.
        root_token: the newest token.
        max_nodes: most draft nodes of the tree.
        copied: what the text suggests, under the same root; None: nothing.
    """
    root = torch.tensor(root_token, device=pool.tokens.device)
    tree, origins = prune_with_origins(pool, root, max_nodes)
    later = later[origins]
    if copied is not None:
        tree = graft(tree, copied)
        later = F.pad(later, (0, tree.num_draft - len(later)))
    survival = budget.model.survival(tree.log_probs, tree.classes, tree.parents)
    reached, order = survival[1:].sort(descending=True, stable=True)
    count = budget.nodes(reached[:max_nodes], later[order[:max_nodes]])
    return trim(tree, survival, count)
