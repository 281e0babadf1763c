"""Decoding with the EAGLE-3 network: its cache, its levels, its trees.

The cache holds one entry per committed position. One forward refreshes it with the newest pairs and
predicts the first level from the last of them; as the network has a single layer, the pairs before
need keys and values only. Each later level runs its nodes against the cache and their own
ancestors, whose entries lie behind the committed ones until the next refresh overwrites them.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from specblock.drafters.base import Budget, FixedBudget
from specblock.drafters.eagle3.model import Eagle3Model
from specblock.drafters.layers import attend_cached
from specblock.drafters.levels import LevelTree
from specblock.drafters.pairs import PairQueue
from specblock.drafters.shortlist import best_logits
from specblock.target.masks import additive
from specblock.tree.draft_tree import DraftTree

_PREFILL_CHUNK = 256


@dataclass(frozen=True)
class Level:
    """One forward of n rows: ``hidden [n, H]`` and ``visible`` bool [n, T], the uncommitted entries
    that a child may look at; ``depth`` of the nodes that the rows propose."""

    hidden: Tensor
    visible: Tensor
    depth: int


class Eagle3Drafter(PairQueue):
    """A :class:`specblock.drafters.base.Drafter` (EAGLE-2's dynamic tree, arXiv 2406.16858).

    Each level expands the ``top_k`` most probable nodes of the one before with the ``top_k`` best
    tokens each. A measured budget expands fewer, or stops, where that costs more than it brings.

    Args:
        model: the network, in eval mode.
        depth: forwards after the refresh; the deepest node is at ``depth + 1``.
        top_k: nodes expanded per level, and tokens per node; 1 drafts a chain.
        max_nodes: most draft nodes in a tree.
    """

    def __init__(self, model: Eagle3Model, *, depth: int = 7, top_k: int = 10, max_nodes: int = 95):
        self.model = model.eval()
        self.depth, self.top_k, self.max_nodes = depth, top_k, max_nodes
        self.feature_layers = model.config.feature_layers
        self._width = min(top_k, model.config.draft_vocab_size)
        self._cache: Tensor | None = None  # [2, kv_heads, entries, d]
        self.forget_pairs()

    def reset(self, capacity: int) -> None:
        """Start an empty sequence of up to ``capacity`` positions."""
        config, weight = self.model.config, self.model.norm.weight
        entries = self.model.offset + capacity + self.depth * self.top_k
        shape = (2, config.num_key_value_heads, entries, config.head_dim)
        if self._cache is None or self._cache.shape[2] < entries:
            self._cache = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.forget_pairs()
        self._entries = 0  # committed pairs, and the sink before them

    @torch.inference_mode()
    def propose(
        self, root_token: int, budget: Budget, copied: DraftTree | None = None
    ) -> DraftTree:
        """A tree from the pairs observed so far, the last of which ends in ``root_token``."""
        level = self.first_level()
        tree = LevelTree(*self.candidates(level), budget.model)
        for _ in range(self.depth):
            leaves, reached = tree.frontier(self.top_k)
            leaves = leaves[: budget.leaves(reached, len(leaves))]
            if leaves.numel() == 0:
                break
            level = self.next_level(level, tree.rows(leaves), tree.pool.tokens[leaves])
            tree.add(leaves, *self.candidates(level))
        return tree.choose(root_token, budget, self.max_nodes, copied)

    def shape_name(self) -> str:
        """Names the shape of the network and of the rounds, for keeping measured costs apart."""
        config = self.model.config
        parts = (
            "eagle3",
            config.hidden_size,
            config.intermediate_size,
            config.draft_vocab_size,
            self.depth,
            self.top_k,
        )
        return "-".join(map(str, parts))

    def measurements(
        self, features: Tensor, tokens: Tensor, pairs: tuple[int, ...], leaves: tuple[int, ...]
    ) -> tuple[dict[int, Callable[[], object]], dict[int, Callable[[], object]]]:
        """Calls to time, growing the tree included: refreshes by pairs, later levels by leaves.

        ``features [S, F * H]`` and ``tokens`` int64 [S] are a context to draft from.
        """
        self.reset(len(tokens) + max(pairs))
        self.observe(features, tokens)
        first = self.first_level()
        entries, budget = self._entries, FixedBudget(8, 0)
        grown = LevelTree(*self.candidates(first), budget.model)

        def refresh(count: int) -> None:
            self._entries = entries  # the same place every time
            self.observe(features[:count], tokens[:count])
            tree = LevelTree(*self.candidates(self.first_level()), budget.model)
            tree.choose(0, budget, self.max_nodes)

        def later(count: int) -> None:
            self._entries = entries
            tree = copy(grown)  # a level more changes the tree
            starts = tree.frontier(count)[0]
            level = self.next_level(first, tree.rows(starts), tree.pool.tokens[starts])
            tree.add(starts, *self.candidates(level))

        sizes = sorted({*(count for count in leaves if count < self._width), self._width})
        return (
            {count: partial(refresh, count) for count in pairs},
            {count: partial(later, count) for count in sizes} if self.depth else {},
        )

    # -- the network over the cache -------------------------------------------------------------

    @torch.inference_mode()
    def first_level(self) -> Level:
        """Refresh the cache with the pending pairs; the prediction after the last of them."""
        features, tokens = self.take_pairs()
        if self._entries < self.model.offset:
            key, value = self.model.sink_entry()
            self._cache[0, :, :1], self._cache[1, :, :1] = (
                key.transpose(0, 1),
                value.transpose(0, 1),
            )
            self._entries = self.model.offset
        for start in range(0, len(tokens), _PREFILL_CHUNK):
            part = slice(start, start + _PREFILL_CHUNK)
            hidden = self._refresh(features[part].to(self._cache.dtype), tokens[part])
        nothing = torch.zeros(1, 0, dtype=torch.bool, device=hidden.device)
        return Level(hidden, nothing, 1)

    def _refresh(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Append pairs; the hidden state ``[1, H]`` of the last one."""
        layer, start = self.model.midlayer, self._entries
        condition = self.model.condition(features)
        x = self.model.inputs(condition, tokens)
        cos, sin = self.model.rotary(torch.arange(start, start + len(x), device=x.device))
        k, v = layer.self_attn.keys_values(x, cos, sin)
        q = layer.self_attn.queries(x[-1:], cos[-1:], sin[-1:])
        self._entries += len(x)
        return layer.finish(condition[-1:], attend_cached(self._cache, start, q, k, v, None))

    @torch.inference_mode()
    def next_level(self, level: Level, rows: Tensor, tokens: Tensor) -> Level:
        """The forward over nodes that ``rows`` (int64 [n]) of ``level`` proposed."""
        count, start = len(rows), self._entries + level.visible.shape[1]
        own = torch.eye(count, dtype=torch.bool, device=rows.device)
        visible = torch.cat((level.visible[rows], own), dim=1)
        condition = self.model.fed_back(level.hidden[rows])
        mask = additive(F.pad(visible, (self._entries, 0), value=True), condition.dtype)
        # the last committed pair is at `entries - 1`, its continuations follow
        positions = torch.full_like(rows, self._entries - 1 + level.depth)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend_cached(self._cache, start, q, k, v, mask)

        hidden = self.model.run(condition, tokens, positions, attend)
        return Level(hidden, visible, level.depth + 1)

    def candidates(self, level: Level) -> tuple[Tensor, Tensor]:
        """The best continuations of each row: target ids int64 [n, W], log-probabilities [n, W]."""
        normed = self.model.norm(level.hidden)
        top, ids, total = best_logits(self.model.lm_head, normed, self._width)
        return self.model.to_target_ids(ids), top - total
