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

import torch
from torch import Tensor
from torch.nn import functional as F

from specblock.drafters.base import Budget, FixedBudget
from specblock.drafters.choice import choose_tree
from specblock.drafters.layers import attend_cached
from specblock.drafters.pairs import PairQueue
from specblock.drafters.shortlist import best_logits
from specblock.drafters.specblock.model import RANK_TOP, SpecBlockModel
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
from specblock.tree.survival import endings

_PREFILL_CHUNK = 256


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
    """

    def __init__(
        self,
        model: SpecBlockModel,
        *,
        blocks: int = 2,
        policy: GrowthPolicy | None = None,
        max_leaves: int = 28,
        max_nodes: int = 95,
    ):
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

    @torch.inference_mode()
    def propose(
        self, root_token: int, budget: Budget, copied: DraftTree | None = None
    ) -> DraftTree:
        """A tree from the pairs observed so far, the last of which ends in ``root_token``."""
        first = self.first_block()
        factors = branching_factors(first.candidates, self.policy, first_block=True)
        pool = first_pool(first.candidates, self.policy, factors)
        generations = [first]
        for _ in range(1, self.blocks):
            leaves, valid = self._leaves(pool, factors, budget)
            if leaves.numel() == 0:
                break
            generations.append(self.next_blocks(pool, leaves, generations))
            newest = generations[-1].candidates
            factors = branching_factors(newest, self.policy, first_block=False)
            pool = deduplicate(extend(pool, leaves, valid, newest, self.policy, factors))
        return self._tree(pool, root_token, budget, copied)

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

    def _tree(
        self, pool: NodePool, root_token: int, budget: Budget, copied: DraftTree | None = None
    ) -> DraftTree:
        return choose_tree(pool, pool.blocks > 0, root_token, budget, self.max_nodes, copied)

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
        first = self.first_block()
        factors = branching_factors(first.candidates, self.policy, first_block=True)
        pool = first_pool(first.candidates, self.policy, factors)
        entry, place = self._entries, self._positions
        budget = FixedBudget(8, 0)

        def refresh(count: int) -> None:
            self._entries, self._positions = entry, place  # the same place every time
            self.observe(features[:count], tokens[:count])
            grown = first_pool(self.first_block().candidates, self.policy, factors)
            self._leaves(grown, factors, budget)
            self._tree(grown, 0, budget)

        def block(count: int) -> None:
            self._entries, self._positions = entry, place
            starts = torch.arange(count) % len(pool)
            newest = self.next_blocks(pool, starts, [first]).candidates
            deduplicate(extend(pool, starts, starts >= 0, newest, self.policy))

        wanted = [count for count in leaves if count <= self.max_leaves]
        return (
            {count: partial(refresh, count) for count in pairs},
            {count: partial(block, count) for count in wanted} if self.blocks > 1 else {},
        )

    # -- the network over the cache -------------------------------------------------------------

    @torch.inference_mode()
    def first_block(self) -> DraftBlocks:
        """Refresh the cache with the pending pairs; the block of the last of them."""
        features, tokens = self.take_pairs()
        for start in range(0, len(tokens), _PREFILL_CHUNK):
            stop = min(start + _PREFILL_CHUNK, len(tokens))
            chunk = features[start:stop].to(self._cache.dtype), tokens[start:stop]
            hidden = self._refresh(*chunk, last=stop == len(tokens))
        visible = torch.ones(1, self._slots, self._slots, dtype=torch.bool, device=hidden.device)
        return self._blocks(hidden[None], visible.tril())

    def _refresh(self, features: Tensor, tokens: Tensor, last: bool) -> Tensor:
        """Append pairs; the hidden states ``[K, H]`` of the last one's slots if ``last``."""
        model, kept = self.model, self._kept
        condition = model.input_layer.condition(features)
        count = len(tokens)
        slots = torch.arange(kept, device=tokens.device).repeat(count)
        places = torch.arange(self._positions, self._positions + count, device=tokens.device)
        positions = places.repeat_interleave(kept) + 1 + slots
        if last and kept < self._slots:
            x = model.input_layer(condition[-1:], tokens[-1:], self._slots)[0]
            if count > 1:
                earlier = model.input_layer(condition[:-1], tokens[:-1], kept)
                x = torch.cat((earlier.flatten(0, 1), x))
            extra = torch.arange(kept, self._slots, device=tokens.device)
            slots, positions = (
                torch.cat((slots, extra)),
                torch.cat((positions, places[-1] + 1 + extra)),
            )
        else:
            x = model.input_layer(condition, tokens, kept).flatten(0, 1)
        if model.config.sink and self._positions == 0:
            x = torch.cat((model.sink[None].to(x.dtype), x))
            slots, positions = F.pad(slots, (1, 0)), F.pad(positions, (1, 0))
            self._entries = 1
        start = self._entries if self._positions else 0
        rows = torch.arange(len(x), device=x.device)
        previous = torch.where(slots > 0, rows - 1, rows)
        mask = None
        if len(x) > 1:
            keys = torch.arange(start + len(x), device=x.device)
            mask = additive(keys[None] <= start + rows[:, None], x.dtype)
        hidden = self._run(x, previous, positions, start, mask)
        self._positions += count
        self._entries += count * kept
        return hidden[-self._slots :]

    @torch.inference_mode()
    def next_blocks(
        self, pool: NodePool, leaves: Tensor, generations: list[DraftBlocks]
    ) -> DraftBlocks:
        """One block at each leaf (int64 [n], indices into the pool), in one forward."""
        count, slots = len(leaves), self._slots
        number, slot = pool.blocks[leaves], pool.slots[leaves]
        earlier = sum(len(blocks.hidden) for blocks in generations) * slots
        hidden = torch.cat([blocks.hidden for blocks in generations])
        visible = torch.cat(
            [F.pad(b.visible, (0, earlier - b.visible.shape[-1])) for b in generations]
        )[number, slot]
        x = self.model.input_layer(hidden[number, slot], pool.tokens[leaves], slots)
        rows = torch.arange(count * slots, device=x.device)
        own = torch.eye(count, dtype=torch.bool, device=x.device)
        causal = torch.ones(slots, slots, dtype=torch.bool, device=x.device).tril()
        own = (own[:, None, :, None] & causal[None, :, None, :]).view(count, slots, -1)
        behind = torch.cat((visible[:, None].expand(-1, slots, -1), own), dim=-1)
        base = self._entries - self._kept  # the last position's slots are block 1's entries
        mask = F.pad(behind.flatten(0, 1), (base, 0), value=True)
        positions = self._positions + torch.arange(slots, device=x.device).repeat(count)
        previous = torch.where(rows % slots > 0, rows - 1, rows)
        start = base + earlier
        states = self._run(x.flatten(0, 1), previous, positions, start, additive(mask, x.dtype))
        return self._blocks(states.view(count, slots, -1), behind)

    def _run(
        self, x: Tensor, previous: Tensor, positions: Tensor, start: int, mask: Tensor | None
    ) -> Tensor:
        """Entries ``x [R, H]`` written at ``start``; hidden states ``[R, H]``."""

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend_cached(self._cache[layer], start, q, k, v, mask)

        return self.model.run(x, lambda rows: rows[previous], positions, attend)

    def _blocks(self, hidden: Tensor, visible: Tensor) -> DraftBlocks:
        """Candidates of the slots ``hidden [B, K, H]``."""
        normed = self.model.norm(hidden)
        top, ids, total = best_logits(self.model.lm_head, normed, RANK_TOP)
        log_probs = top[..., : self._width] - total
        tokens = self.model.to_target_ids(ids[..., : self._width])
        rank = self.model.rank_logits_of_top(normed, top).argmax(-1)
        return DraftBlocks(hidden, BlockCandidates(tokens, log_probs, rank), visible)
