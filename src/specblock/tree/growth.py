"""How a draft tree grows: pool the blocks' candidates, merge duplicates, keep the best nodes.

Every function here is fixed-shape tensor code without host synchronisation, ``prune``'s last step
excepted. A round reads::

    factors = branching_factors(block, policy, first_block=True)
    pool = first_pool(block, policy, factors)
    leaves, leaf_valid = starters(pool, factors, limit)
    pool = extend(pool, leaves, leaf_valid, later_blocks, policy)
    tree = prune(deduplicate(pool), root_token, budget)
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from specblock.tree.draft_tree import DraftTree
from specblock.tree.policy import BlockCandidates, GrowthPolicy, branching_factors
from specblock.tree.pool import NodePool, extend, first_pool, starters

__all__ = [
    "BlockCandidates",
    "GrowthPolicy",
    "NodePool",
    "branching_factors",
    "deduplicate",
    "extend",
    "first_pool",
    "prune",
    "prune_with_origins",
    "starters",
]

# Bits of a node's index in the ranking of `prune`; above them 8 bits of depth, 31 of score.
_INDEX_BITS = 24


def deduplicate(pool: NodePool) -> NodePool:
    """Merges nodes with the same token path from the root, at every depth at once.

    Blocks that start at successive nodes of a greedy chain predict the same tokens again. Of the
    nodes that spell one path the most probable given that path (highest ``log_probs``, then lowest
    index) stays; the others become invalid and their children move to it. Scores are then summed
    anew from the root, because a moved child's own log-probability belongs to the path, not to
    the loser's estimate of it. This is the same as merging siblings level by level from the top,
    keeping the best score each time.

    Returns:
        A pool of the same layout in which no two valid siblings carry the same token, every valid
        node's ancestors are valid, and no score exceeds its parent's. Keys stay right, so more
        blocks may be added and the result merged again. No host synchronisation.
    """
    size = len(pool)
    counter = _counter(size, pool.tokens.device)
    log_probs = pool.log_probs.masked_fill(pool.scores == -torch.inf, -torch.inf)

    # Equal paths side by side, the most probable first.
    by_log_prob = log_probs.argsort(descending=True, stable=True)
    keys, order = pool.keys.index_select(0, by_log_prob).sort(stable=True)
    order = by_log_prob.index_select(0, order)
    repeats = F.pad(keys[1:] == keys[:-1], (1, 0))
    head = counter.masked_fill(repeats, 0).cummax(0).values
    winners = torch.full((size + 1,), size, device=counter.device)  # last: the root, as is
    winners.scatter_(0, order, order.index_select(0, head))
    log_probs = log_probs.masked_fill(winners[:-1] != counter, -torch.inf)

    # -1 reads the last entry, so the root's index is `size` from here to the end.
    parents = winners[pool.parents]
    scores = torch.zeros(size + 1, device=counter.device)
    for _ in range(pool.max_depth):
        # Nodes of depth d are right after d rounds: parent + own, in this order (see `prune`).
        torch.add(scores.index_select(0, parents), log_probs, out=scores[:-1])
    return replace(
        pool,
        parents=parents.masked_fill(parents == size, -1),
        scores=scores[:-1],
        log_probs=log_probs,
    )


def prune(pool: NodePool, root_token: Tensor, budget: int) -> DraftTree:
    """The ``budget`` best nodes by score as a tree, ordered by depth, then by score.

    A child's score is its parent's plus a number that is at most 0, rounded once, and so never
    above its parent's; with ties broken toward the shallower node the best nodes are closed under
    ancestors.

    Args:
        pool: de-duplicated nodes.
        root_token: int64 scalar tensor (or [1]), the newest token.
        budget: number of draft nodes to keep, at least 0.

    Returns:
        A tree of ``budget`` draft nodes, or of all valid ones where there are fewer.

    Raises:
        ValueError: for a negative budget.
    """
    return prune_with_origins(pool, root_token, budget)[0]


def prune_with_origins(pool: NodePool, root_token: Tensor, budget: int) -> tuple[DraftTree, Tensor]:
    """:func:`prune`, and where its draft nodes come from: int64 [N], indices into the pool."""
    if budget < 0:
        raise ValueError(f"budget must be at least 0, not {budget}")
    tree, origins, count = _best(pool, root_token, min(budget, len(pool)))
    tree = _trim_to_valid(tree, count)
    return tree, origins[: tree.num_draft]


def _best(pool: NodePool, root_token: Tensor, budget: int) -> tuple[DraftTree, Tensor, Tensor]:
    """The best ``budget`` nodes, invalid ones last, their indices, and how many are valid."""
    size = len(pool)
    counter = _counter(size, pool.tokens.device)
    # Scores are at most 0: their bits without the sign grow as they get worse, -inf is worst.
    badness = pool.scores.view(torch.int32).bitwise_and(0x7FFFFFFF).long()
    ranking = (badness << (_INDEX_BITS + 8)) + (pool.depths << _INDEX_BITS) + counter
    kept = ranking.topk(budget, largest=False).indices
    # By depth; the stable sort keeps the order by score, and invalid nodes stay last.
    floats = torch.stack((pool.scores, pool.log_probs)).index_select(1, kept)
    invalid = floats[0] == -torch.inf
    depths = pool.depths.index_select(0, kept).masked_fill(invalid, pool.max_depth + 1)
    depths, order = depths.sort(stable=True)
    kept = kept.index_select(0, order)

    places = torch.zeros(size + 1, dtype=torch.int64, device=kept.device)  # last: the root
    places.scatter_(0, kept, counter[:budget] + 1)
    ids = torch.stack((pool.tokens, pool.parents, pool.rank_classes)).index_select(1, kept)
    tokens, parents, buckets = F.pad(ids, (1, 0), value=-1).unbind(0)
    parents = places[parents]
    parents[0] = -1
    tokens[:1] = root_token
    buckets[0] = 0
    scores, log_probs = F.pad(floats.index_select(1, order), (1, 0)).unbind(0)
    tree = DraftTree(tokens, parents, F.pad(depths, (1, 0)), scores, log_probs, buckets)
    return tree, kept, budget - invalid.sum()


def _trim_to_valid(tree: DraftTree, count: Tensor) -> DraftTree:
    """Cuts the invalid nodes off the end; the one place where growth waits for the device."""
    size = int(count.item()) + 1
    if size == len(tree):
        return tree
    return DraftTree(*(field[:size] for field in vars(tree).values()))


@lru_cache(maxsize=64)
def _counter(size: int, device: torch.device) -> Tensor:
    """int64 [size]: 0, 1, 2, ...; made once, read only."""
    return torch.arange(size, device=device)
