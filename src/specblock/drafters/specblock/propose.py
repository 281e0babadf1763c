"""Decoding with the SpecBlock network: its cache, its blocks, its trees.

The cache holds ``slots_kept`` entries per committed position, in order. One forward refreshes it
with the newest pairs and computes all K slots of the last one, the first block. The entries of
that block, and those of later blocks, lie behind the committed ones until the next refresh
overwrites them, so nothing is ever popped or copied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from specblock.budget.survival import endings
from specblock.drafters.base import Budget, FixedBudget
from specblock.drafters.proposing.pairs import PairQueue
from specblock.drafters.proposing.proposal import Proposal
from specblock.drafters.proposing.together import Drafting, alone
from specblock.drafters.specblock.entries import Entries
from specblock.drafters.specblock.network import SpecBlockModel
from specblock.target.masks import additive
from specblock.tree.draft_tree import DraftTree
from specblock.tree.growth import (
    BlockCandidates,
    GrowthPolicy,
    NodePool,
    branching_factors,
    deduplicate,
    extend,
    first_pool,
    starters,
)

_PREFILL_CHUNK = 256  # pairs of a prompt in one forward


@dataclass(frozen=True)
class DraftBlocks:
    """B blocks: ``hidden [B, K, H]``, candidates for the tree, and ``visible`` bool [B, K, T]: the
    uncommitted entries that a child starting behind slot s may look at."""

    hidden: Tensor
    candidates: BlockCandidates
    visible: Tensor


class SpecBlockDrafter(PairQueue):
    """A :class:`specblock.drafters.base.Drafter`.

    Args:
        model: the network, in eval mode.
        blocks: block generations per round (the paper's maximum number of blocks).
        policy: how rank buckets become branching factors.
        max_leaves: most leaves that start blocks of one generation.
        max_nodes: most draft nodes in a tree.
        untrained: the network knows nothing yet; an adaptation says when to ask it.
    """

    def __init__(
        self,
        model: SpecBlockModel,
        *,
        blocks: int = 2,
        policy: GrowthPolicy | None = None,
        max_leaves: int = 28,
        max_nodes: int = 95,
        untrained: bool = False,
    ):
        self.untrained = untrained
        self.model, self.policy = model.eval(), policy or GrowthPolicy()
        self.blocks, self.max_leaves, self.max_nodes = blocks, max_leaves, max_nodes
        self.feature_layers = model.config.feature_layers
        self._slots, self._kept = model.config.block_size, model.config.slots_kept
        self._width = min(self.policy.width, model.config.draft_vocab_size)
        self._cache: Tensor | None = None  # [L, 2, kv_heads, entries, d]
        self.forget_pairs()

    def reset(self, capacity: int) -> None:
        """Start an empty sequence of up to ``capacity`` positions."""
        config, weight = self.model.config, self.model.norm.weight
        room = self._slots * (1 + self.max_leaves * (self.blocks - 1))
        entries = 1 + capacity * self._kept + room
        shape = (config.num_hidden_layers, 2, config.num_key_value_heads, entries, config.head_dim)
        if self._cache is None or self._cache.shape[3] < entries:
            self._cache = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.forget_pairs()
        self._positions = 0  # committed pairs
        self._entries = 0  # their cache entries, the sink included

    def committed(self, start: int) -> Tensor:
        """Copies of the entries of the positions from ``start`` that a forward has committed,
        ``[L, 2, kv_heads, positions * slots_kept, d]``."""
        first = int(self.model.config.sink) + start * self._kept
        return self._cache[..., first : self._entries, :].clone()

    def restore(self, sink: Tensor | None, entries: Tensor) -> None:
        """Go on behind committed ``entries``, as :meth:`committed` gives them from position 0;
        ``sink`` is the learned entry, ``[L, 2, kv_heads, 1, d]``, where the network has one."""
        parts = entries if sink is None else torch.cat((sink, entries), dim=-2)
        self._positions = entries.shape[-2] // self._kept
        self._entries = parts.shape[-2]
        self._cache[..., : self._entries, :] = parts

    def learned_entry(self) -> Tensor | None:
        """The sink's keys and values, ``[L, 2, kv_heads, 1, d]``; None without one."""
        if not self.model.config.sink:
            return None
        other, config = self.another(), self.model.config
        other.reset(1)
        width = len(config.feature_layers) * config.hidden_size
        weight = self.model.norm.weight
        nothing = torch.zeros(1, dtype=torch.int64, device=weight.device)
        other.observe(weight.new_zeros(1, width), nothing)
        alone(other.first_block())
        return other._cache[..., :1, :].clone()

    def drafting(
        self, root_token: int, budget: Budget, copied: DraftTree | None = None
    ) -> Drafting[Proposal]:
        """A tree from the pairs observed so far, the last of which ends in ``root_token``."""
        first = yield from self.first_block()
        factors = branching_factors(first.candidates, self.policy, first_block=True)
        pool = first_pool(first.candidates, self.policy, factors)
        generations = [first]
        for _ in range(1, self.blocks):
            leaves, valid = self._leaves(pool, factors, budget)
            if leaves.numel() == 0:
                break
            generations.append((yield from self.next_blocks(pool, leaves, generations)))
            newest = generations[-1].candidates
            factors = branching_factors(newest, self.policy, first_block=False)
            pool = deduplicate(extend(pool, leaves, valid, newest, self.policy, factors))
        return self._proposal(pool, root_token, budget, copied)

    def _leaves(self, pool: NodePool, factors: Tensor, budget: Budget) -> tuple[Tensor, Tensor]:
        """The nodes that start blocks, those where the walk most likely ends first."""
        leaves, valid = starters(pool, factors, self.max_leaves)
        reached = budget.model.pool_survival(pool.log_probs, pool.rank_classes, pool.parents)
        reached = reached.masked_fill(~pool.valid, 0.0)
        ending = endings(reached, pool.parents)[leaves].masked_fill(~valid, 0.0)
        ending, order = ending.sort(descending=True, stable=True)
        count = budget.leaves(ending, len(order))
        chosen = order[:count]
        return leaves[chosen], valid[chosen]

    def _proposal(
        self, pool: NodePool, root_token: int, budget: Budget, copied: DraftTree | None = None
    ) -> Proposal:
        later = pool.blocks > 0
        return Proposal.of_pool(pool, later, root_token, budget.model, self.max_nodes, copied)

    def shape_name(self) -> str:
        """Names the shape of the network and of the rounds, for keeping measured costs apart."""
        config = self.model.config
        parts = (
            "specblock",
            config.num_hidden_layers,
            config.hidden_size,
            config.draft_vocab_size,
            config.block_size,
            config.slots_kept,
            config.slot_rank,
            self.blocks,
        )
        return "-".join(map(str, parts))

    def measurements(
        self, features: Tensor, tokens: Tensor, pairs: tuple[int, ...], leaves: tuple[int, ...]
    ) -> tuple[dict[int, Callable[[], object]], dict[int, Callable[[], object]]]:
        """Calls to time, growing the tree included: first blocks by pairs, later ones by leaves.

        ``features [S, F * H]`` and ``tokens`` int64 [S] are a context to draft from.
        """
        self.reset(len(tokens) + max(pairs) * 64)
        self.observe(features, tokens)
        first = alone(self.first_block())
        factors = branching_factors(first.candidates, self.policy, first_block=True)
        pool = first_pool(first.candidates, self.policy, factors)
        entry, place = self._entries, self._positions
        budget = FixedBudget(8, 0)

        def refresh(count: int) -> None:
            self._entries, self._positions = entry, place  # the same place every time
            self.observe(features[:count], tokens[:count])
            grown = first_pool(alone(self.first_block()).candidates, self.policy, factors)
            self._leaves(grown, factors, budget)
            self._proposal(grown, 0, budget).best(8)

        def block(count: int) -> None:
            self._entries, self._positions = entry, place
            starts = torch.arange(count) % len(pool)
            newest = alone(self.next_blocks(pool, starts, [first])).candidates
            deduplicate(extend(pool, starts, starts >= 0, newest, self.policy))

        wanted = [count for count in leaves if count <= self.max_leaves]
        return (
            {count: partial(refresh, count) for count in pairs},
            {count: partial(block, count) for count in wanted} if self.blocks > 1 else {},
        )

    # -- the network over the cache -------------------------------------------------------------

    def first_block(self) -> Drafting[DraftBlocks]:
        """Refresh the cache with the pending pairs; the block of the last of them."""
        features, tokens = self.take_pairs()
        for start in range(0, len(tokens), _PREFILL_CHUNK):
            stop = min(start + _PREFILL_CHUNK, len(tokens))
            last = stop == len(tokens)
            hidden, candidates = yield self._refresh(features[start:stop], tokens[start:stop], last)
        visible = torch.ones(1, self._slots, self._slots, dtype=torch.bool, device=hidden.device)
        return DraftBlocks(hidden, candidates, visible.tril())

    def _refresh(self, features: Tensor, tokens: Tensor, last: bool) -> Entries:
        """The entries of more pairs; with all K slots of the last one if ``last``."""
        count, kept = len(tokens), self._kept
        places = torch.arange(count, device=tokens.device)
        pairs = places.repeat_interleave(kept)
        slots = torch.arange(kept, device=tokens.device).repeat(count)
        if last and kept < self._slots:
            extra = torch.arange(kept, self._slots, device=tokens.device)
            pairs, slots = F.pad(pairs, (0, len(extra)), value=count - 1), torch.cat((slots, extra))
        chosen = pairs * self._slots + slots
        positions = self._positions + pairs + 1 + slots
        sink = self.model.config.sink and self._positions == 0
        if sink:
            slots, positions = F.pad(slots, (1, 0)), F.pad(positions, (1, 0))
            self._entries = 1
        start, rows = self._entries if self._positions else 0, len(slots)
        mask = None
        if rows > 1:
            keys = torch.arange(start + rows, device=tokens.device)
            mask = additive(keys[None] <= keys[start:, None], self._cache.dtype)
        self._positions += count
        self._entries += count * kept
        return self._forward(
            start=start, conditions=features, features=True, tokens=tokens, chosen=chosen,
            slots=slots, positions=positions, mask=mask, blocks=int(last), sink=sink,
        )  # fmt: skip

    def next_blocks(
        self, pool: NodePool, leaves: Tensor, generations: list[DraftBlocks]
    ) -> Drafting[DraftBlocks]:
        """One block at each leaf (int64 [n], indices into the pool), in one forward."""
        count, slots = len(leaves), self._slots
        number, slot = pool.blocks[leaves], pool.slots[leaves]
        earlier = sum(len(blocks.hidden) for blocks in generations) * slots
        hidden = torch.cat([blocks.hidden for blocks in generations])[number, slot]
        visible = torch.cat(
            [F.pad(b.visible, (0, earlier - b.visible.shape[-1])) for b in generations]
        )[number, slot]
        own = torch.eye(count, dtype=torch.bool, device=hidden.device)
        causal = torch.ones(slots, slots, dtype=torch.bool, device=hidden.device).tril()
        own = (own[:, None, :, None] & causal[None, :, None, :]).view(count, slots, -1)
        behind = torch.cat((visible[:, None].expand(-1, slots, -1), own), dim=-1)
        base = self._entries - self._kept  # the last position's slots are block 1's entries
        mask = F.pad(behind.flatten(0, 1), (base, 0), value=True)
        every = torch.arange(count * slots, device=hidden.device)
        states, candidates = yield self._forward(
            start=base + earlier, conditions=hidden, features=False, tokens=pool.tokens[leaves],
            chosen=every, slots=every % slots, positions=self._positions + every % slots,
            mask=additive(mask, self._cache.dtype), blocks=count, sink=False,
        )  # fmt: skip
        return DraftBlocks(states, candidates, behind)

    def _forward(self, **rows: Any) -> Entries:
        return Entries(model=self.model, cache=self._cache, width=self._width, **rows)
