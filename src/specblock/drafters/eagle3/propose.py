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
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from specblock.drafters.base import Budget, FixedBudget
from specblock.drafters.eagle3.network import Eagle3Model
from specblock.drafters.eagle3.rows import Found, Rows
from specblock.drafters.proposing.levels import LevelTree
from specblock.drafters.proposing.pairs import PairQueue
from specblock.drafters.proposing.proposal import Proposal
from specblock.drafters.proposing.together import Drafting, alone
from specblock.target.masks import additive
from specblock.tree.draft_tree import DraftTree

_PREFILL_CHUNK = 256  # pairs of a prompt in one forward


@dataclass(frozen=True)
class Level:
    """One forward of n rows: what it ``found``, and ``visible`` bool [n, T], the uncommitted
    entries that a child may look at; ``depth`` of the nodes that the rows propose."""

    found: Found
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

    def drafting(
        self, root_token: int, budget: Budget, copied: DraftTree | None = None
    ) -> Drafting[Proposal]:
        """A tree from the pairs observed so far, the last of which ends in ``root_token``."""
        level = yield from self.first_level()
        tree = _begun(level, budget)
        for _ in range(self.depth):
            leaves, reached = tree.frontier(self.top_k)
            leaves = leaves[: budget.leaves(reached, len(leaves))]
            if leaves.numel() == 0:
                break
            level = yield from self.next_level(level, tree.rows(leaves), tree.pool.tokens[leaves])
            tree.add(leaves, level.found.tokens, level.found.log_probs)
        return tree.proposal(root_token, budget, self.max_nodes, copied)

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
        first = alone(self.first_level())
        entries, budget = self._entries, FixedBudget(8, 0)
        grown = _begun(first, budget)

        def refresh(count: int) -> None:
            self._entries = entries  # the same place every time
            self.observe(features[:count], tokens[:count])
            tree = _begun(alone(self.first_level()), budget)
            tree.proposal(0, budget, self.max_nodes).best(8)

        def later(count: int) -> None:
            self._entries = entries
            tree = copy(grown)  # a level more changes the tree
            starts = tree.frontier(count)[0]
            rows = tree.rows(starts), tree.pool.tokens[starts]
            level = alone(self.next_level(first, *rows))
            tree.add(starts, level.found.tokens, level.found.log_probs)

        sizes = sorted({*(count for count in leaves if count < self._width), self._width})
        return (
            {count: partial(refresh, count) for count in pairs},
            {count: partial(later, count) for count in sizes} if self.depth else {},
        )

    # -- the network over the cache -------------------------------------------------------------

    def first_level(self) -> Drafting[Level]:
        """Refresh the cache with the pending pairs; the prediction after the last of them."""
        features, tokens = self.take_pairs()
        if self._entries < self.model.offset:
            self._write_sink()
        for start in range(0, len(tokens), _PREFILL_CHUNK):
            part = slice(start, start + _PREFILL_CHUNK)
            found = yield self._refresh(features[part], tokens[part])
        nothing = torch.zeros(1, 0, dtype=torch.bool, device=tokens.device)
        return Level(found, nothing, 1)

    @torch.inference_mode()
    def _write_sink(self) -> None:
        for own, entry in zip(self._cache, self.model.sink_entry(), strict=True):
            own[:, :1] = entry.transpose(0, 1)
        self._entries = self.model.offset

    def _refresh(self, features: Tensor, tokens: Tensor) -> Rows:
        """More pairs; the last of them is predicted from."""
        start, count = self._entries, len(tokens)
        self._entries += count
        positions = torch.arange(start, start + count, device=tokens.device)
        return self._rows(
            start=start, conditions=features, features=True, tokens=tokens, positions=positions,
            mask=None, asked=1,
        )  # fmt: skip

    def next_level(self, level: Level, rows: Tensor, tokens: Tensor) -> Drafting[Level]:
        """The forward over nodes that ``rows`` (int64 [n]) of ``level`` proposed."""
        count = len(rows)
        own = torch.eye(count, dtype=torch.bool, device=rows.device)
        visible = torch.cat((level.visible[rows], own), dim=1)
        found = yield self._rows(
            start=self._entries + level.visible.shape[1],
            conditions=level.found.hidden[rows],
            features=False,
            tokens=tokens,
            # the last committed pair is at `entries - 1`, its continuations follow
            positions=torch.full_like(rows, self._entries - 1 + level.depth),
            mask=additive(F.pad(visible, (self._entries, 0), value=True), self._cache.dtype),
            asked=count,
        )
        return Level(found, visible, level.depth + 1)

    def _rows(self, **rows: Any) -> Rows:
        return Rows(model=self.model, cache=self._cache, width=self._width, **rows)


def _begun(level: Level, budget: Budget) -> LevelTree:
    """The tree of the first level."""
    return LevelTree(level.found.tokens, level.found.log_probs, budget.model)
