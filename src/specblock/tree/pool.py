"""The pool of candidate nodes that blocks add to, before de-duplication and pruning.

A block contributes one entry per (block, slot, candidate), in that order, whether the rank policy
keeps the candidate or not, so that shapes depend on the configuration alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from specblock.tree.policy import BlockCandidates, GrowthPolicy, branching_factors

# (blocks, slots, candidates) of each drafter call in turn: the whole shape of a pool.
Layout = tuple[tuple[int, int, int], ...]

# Path keys count the depth in their low byte.
_MAX_DEPTH = 255


# eq=False: comparing tensors field by field has no single truth value.
@dataclass(frozen=True, eq=False)
class NodePool:
    """Candidate nodes, all [C]; invalid ones have score -inf and are never a valid node's parent.

    Attributes:
        tokens: int64, target-vocabulary ids.
        parents: int64, indices into the pool; -1 is the root (node 0 of the tree).
        depths: int64, 1 for children of the root.
        scores: float32, the parent's score plus the own log-probability; -inf: invalid.
        log_probs: float32, the drafter's log p(token | path to the parent), at most 0.
        rank_classes: int64, rank bucket of the slot that proposed the node.
        keys: int64, hash of the token path from the root. Equal paths have equal keys; the low
            byte is the depth, so that even a collision (odds around 1e-11 for a pool of a
            thousand) would leave a sound tree that merely proposes something worse.
        layout: shape of every drafter call that the pool holds, in order.
    """

    tokens: Tensor
    parents: Tensor
    depths: Tensor
    scores: Tensor
    log_probs: Tensor
    rank_classes: Tensor
    keys: Tensor
    layout: Layout

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def valid(self) -> Tensor:
        """bool [C]: the policy kept the candidate and its ancestors, and it is no duplicate."""
        return self.scores > -torch.inf

    @property
    def slots(self) -> Tensor:
        """int64 [C]: the slot that proposed the node."""
        return _origins(self.layout, self.tokens.device)[0]

    @property
    def blocks(self) -> Tensor:
        """int64 [C]: number of the block that proposed the node, over all drafter calls.

        0 is the first block; the blocks of the second call follow as 1..n in the order of its
        leaves, and so on: the row in the drafter's outputs of all calls stacked.
        """
        return _origins(self.layout, self.tokens.device)[1]

    @property
    def greedy(self) -> Tensor:
        """bool [C]: the best candidate of its slot, which the block's later slots continue."""
        return _origins(self.layout, self.tokens.device)[2]

    @property
    def newest(self) -> int:
        """Index of the first node of the last drafter call."""
        rows, slots, width = self.layout[-1]
        return len(self) - rows * slots * width

    @property
    def max_depth(self) -> int:
        """No node is deeper than this."""
        return sum(slots for _, slots, _ in self.layout)


def first_pool(
    block: BlockCandidates, policy: GrowthPolicy, factors: Tensor | None = None
) -> NodePool:
    """The nodes of the first block: a greedy chain under the root, alternatives as siblings.

    Args:
        block: candidates of one block (B = 1).
        policy: the rank policy.
        factors: ``branching_factors`` of the block where the caller has them already.

    Raises:
        ValueError: when there is not exactly one block.
    """
    if block.tokens.shape[0] != 1:
        raise ValueError(f"the tree starts from one block, not {block.tokens.shape[0]}")
    if factors is None:
        factors = branching_factors(block, policy, first_block=True)
    zero, nothing = _root(block.tokens.device)
    width = policy.max_factor(first_block=True)
    return _nodes(block, factors, width, 0, zero - 1, zero, nothing, zero)


def extend(
    pool: NodePool,
    leaves: Tensor,
    leaf_valid: Tensor,
    block: BlockCandidates,
    policy: GrowthPolicy,
    factors: Tensor | None = None,
) -> NodePool:
    """Adds the blocks that start at ``leaves``; the new nodes follow the old ones.

    Args:
        pool: the nodes so far.
        leaves: int64 [n], indices into the pool.
        leaf_valid: bool [n]; a block whose leaf is not valid contributes invalid nodes only.
        block: candidates of n blocks, one per leaf in the same order.
        policy: the rank policy.
        factors: ``branching_factors`` of the blocks where the caller has them already.

    Raises:
        ValueError: when leaves and blocks differ in number, or the tree would get too deep.
    """
    if block.tokens.shape[0] != leaves.shape[0] or leaf_valid.shape != leaves.shape:
        raise ValueError(f"{leaves.shape[0]} leaves need as many blocks and validity flags")
    if factors is None:
        factors = branching_factors(block, policy, first_block=False)
    scores = pool.scores.index_select(0, leaves).masked_fill(~leaf_valid, -torch.inf)
    depths = pool.depths.index_select(0, leaves)
    keys = pool.keys.index_select(0, leaves)
    width = policy.max_factor(first_block=False)
    new = _nodes(block, factors, width, len(pool), leaves, depths, scores, keys)
    layout = pool.layout + new.layout
    if sum(slots for _, slots, _ in layout) > _MAX_DEPTH:
        raise ValueError(f"a tree cannot be deeper than {_MAX_DEPTH}")
    names = ("tokens", "parents", "depths", "scores", "log_probs", "rank_classes", "keys")
    joined = [torch.cat((getattr(pool, name), getattr(new, name))) for name in names]
    return NodePool(*joined, layout)


def starters(pool: NodePool, factors: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """The nodes of the newest blocks that start the next ones, best scores first.

    Every node of a slot that branches may start a block. So may the last greedy node of a block
    even if its slot does not branch, so that a confident chain can always go on. Nothing starts
    where a block has given up. De-duplicate before starting a third block: the second call's
    blocks repeat each other.

    Args:
        pool: nodes whose newest blocks have ``factors``.
        factors: int64 [B, K], ``branching_factors`` of the newest blocks.
        limit: how many nodes to return at most.

    Returns:
        Indices into the pool, int64 [n], and whether each may start a block, bool [n], where n is
        ``limit`` or the number of the newest blocks' entries if that is less. Valid ones come
        first. No host synchronisation.
    """
    rows, slots, width = pool.layout[-1]
    if tuple(factors.shape) != (rows, slots):
        raise ValueError(f"factors must be {(rows, slots)}, not {tuple(factors.shape)}")
    needed = _factor_to_start(slots, width, factors.device)
    barred = factors.unsqueeze(-1) < needed
    scores = pool.scores[pool.newest :].masked_fill(barred.reshape(-1), -torch.inf)
    best, index = scores.topk(min(limit, scores.shape[0]))
    return index + pool.newest, best > -torch.inf


def _nodes(
    block: BlockCandidates,
    factors: Tensor,
    width: int,
    offset: int,
    leaves: Tensor,
    leaf_depths: Tensor,
    leaf_scores: Tensor,
    leaf_keys: Tensor,
) -> NodePool:
    """The nodes of B blocks hanging from B leaves (all [B]) as a pool that starts at ``offset``."""
    tokens = block.tokens[:, :, :width]
    rows, slots, width = tokens.shape
    steps, bars, chain, multipliers = _steps(rows, slots, width, tokens.device)

    # A rounding error above 0 would let a child outrank its parent and break closure.
    log_probs = block.log_probs[:, :, :width].float().nan_to_num(-torch.inf, 0.0, -torch.inf)
    log_probs = log_probs.clamp(max=0).masked_fill(factors.unsqueeze(-1) < bars, -torch.inf)
    # One addition per slot instead of a scan: a float sum in any other order than parent + own
    # could put a child above its parent.
    before = [leaf_scores]
    for greedy in log_probs[:, :, 0].unbind(1)[:-1]:
        before.append(before[-1] + greedy)
    scores = torch.stack(before, 1).unsqueeze(-1) + log_probs

    depths = leaf_depths.unsqueeze(1) + steps
    terms = tokens * multipliers[depths].unsqueeze(-1) + 1
    chained = terms[:, :, 0]
    key_before = chained.cumsum(1) - chained + leaf_keys.unsqueeze(1)
    parents = torch.cat((leaves.unsqueeze(1), chain + offset), 1)

    def per_node(per_slot: Tensor) -> Tensor:
        return per_slot.unsqueeze(-1).expand(rows, slots, width).reshape(-1)

    return NodePool(
        tokens=tokens.reshape(-1),
        parents=per_node(parents),
        depths=per_node(depths),
        scores=scores.reshape(-1),
        log_probs=log_probs.reshape(-1),
        rank_classes=per_node(block.rank_classes),
        keys=(key_before.unsqueeze(-1) + terms).reshape(-1),
        layout=((rows, slots, width),),
    )


# The tensors below depend on the configuration alone: made once, read only.


@lru_cache(maxsize=8)
def _root(device: torch.device) -> tuple[Tensor, Tensor]:
    """The root as the leaf of the first block: int64 [1] and float32 [1] zero."""
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    return zero, zero.float()


@lru_cache(maxsize=64)
def _steps(rows: int, slots: int, width: int, device: torch.device) -> tuple[Tensor, ...]:
    """Depth below the leaf [K], least factor of a candidate [W], parents of slots >= 1 [B, K-1]."""
    bars = torch.arange(1, width + 1, device=device)
    bars[0] = 0  # the greedy token stays in every case
    chain = torch.arange(rows * slots, device=device).view(rows, slots)[:, : slots - 1] * width
    return torch.arange(1, slots + 1, device=device), bars, chain, _multipliers(device)


@lru_cache(maxsize=64)
def _factor_to_start(slots: int, width: int, device: torch.device) -> Tensor:
    """int64 [1, K, W]: the least branching factor of its slot with which a node starts a block."""
    needed = torch.full((1, slots, width), 2, dtype=torch.int64, device=device)
    needed[0, -1, 0] = 1  # the last greedy node may start one without alternatives
    return needed


@lru_cache(maxsize=64)
def _origins(layout: Layout, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Slot, block number and greediness of every node of a pool."""
    starts = [0]
    for rows, _, _ in layout:
        starts.append(starts[-1] + rows)
    parts = []
    for (rows, slots, width), (start, _) in zip(layout, pairwise(starts), strict=True):
        grid = torch.meshgrid(
            torch.arange(start, start + rows, device=device),
            torch.arange(slots, device=device),
            torch.arange(width, device=device),
            indexing="ij",
        )
        parts.append([axis.reshape(-1) for axis in grid])
    blocks, slots, candidates = (torch.cat(axis) for axis in zip(*parts, strict=True))
    return slots, blocks, candidates == 0


@lru_cache(maxsize=8)
def _multipliers(device: torch.device) -> Tensor:
    """int64 [256]: an odd pseudo-random factor for every depth, times 256.

    A path's key is the wrapping sum of token * factor[depth] + 1, so that its low byte counts the
    depth and siblings with different tokens never share a key.
    """
    source = random.Random(0)  # any fixed seed does
    factors = [((source.getrandbits(56) | 1) << 8) - 2**63 for _ in range(_MAX_DEPTH + 1)]
    return torch.tensor(factors, dtype=torch.int64, device=device)
