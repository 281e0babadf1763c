"""Decoding with the parallel heads: one forward a round, and the most probable combinations.

The candidates of a position do not depend on those of the positions before, so a node's children
are the same everywhere at its depth, and its score is the sum of its own path's log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from specblock.drafters.base import Budget, FixedBudget
from specblock.drafters.layers import attend_cached
from specblock.drafters.levels import LevelTree
from specblock.drafters.pairs import PairQueue
from specblock.drafters.parallel.model import ParallelModel
from specblock.drafters.shortlist import best_logits
from specblock.target.masks import additive
from specblock.tree.draft_tree import DraftTree

_PREFILL_CHUNK = 256


class ParallelDrafter(PairQueue):
    """A :class:`specblock.drafters.base.Drafter`.

    Args:
        model: the network, in eval mode.
        width: candidates per position.
        max_nodes: most draft nodes in a tree.
    """

    def __init__(self, model: ParallelModel, *, width: int = 10, max_nodes: int = 95):
        self.model, self.max_nodes = model.eval(), max_nodes
        self.feature_layers = model.config.feature_layers
        self.width = min(width, model.config.draft_vocab_size)
        self._cache: Tensor | None = None  # [L, 2, kv_heads, entries, d]
        self.forget_pairs()

    def reset(self, capacity: int) -> None:
        """Start an empty sequence of up to ``capacity`` positions."""
        config, weight = self.model.config, self.model.norm.weight
        entries = 1 + capacity
        shape = (config.num_hidden_layers, 2, config.num_key_value_heads, entries, config.head_dim)
        if self._cache is None or self._cache.shape[3] < entries:
            self._cache = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.forget_pairs()
        self._entries = 0  # committed pairs, and the sink before them

    @torch.inference_mode()
    def propose(
        self, root_token: int, budget: Budget, copied: DraftTree | None = None
    ) -> DraftTree:
        """A tree from the pairs observed so far, the last of which ends in ``root_token``."""
        return self._tree(self.refresh(), root_token, budget, copied)

    def shape_name(self) -> str:
        """Names the shape of the network and of the rounds, for keeping measured costs apart."""
        config = self.model.config
        parts = (
            "parallel",
            config.num_hidden_layers,
            config.hidden_size,
            config.draft_vocab_size,
            config.positions,
            self.width,
        )
        return "-".join(map(str, parts))

    def measurements(
        self, features: Tensor, tokens: Tensor, pairs: tuple[int, ...], leaves: tuple[int, ...]
    ) -> tuple[dict[int, Callable[[], object]], dict[int, Callable[[], object]]]:
        """Calls to time, growing the tree included: the round's one forward by pairs.

        ``features [S, F * H]`` and ``tokens`` int64 [S] are a context to draft from.
        """
        self.reset(len(tokens) + max(pairs))
        self.observe(features, tokens)
        self.refresh()
        entries, budget = self._entries, FixedBudget(8, 0)

        def forward(count: int) -> None:
            self._entries = entries  # the same place every time
            self.observe(features[:count], tokens[:count])
            self._tree(self.refresh(), 0, budget)

        return {count: partial(forward, count) for count in pairs}, {}

    # -- the network over the cache -------------------------------------------------------------

    @torch.inference_mode()
    def refresh(self) -> Tensor:
        """Append the pending pairs; the hidden states ``[K, H]`` ahead of the last of them."""
        features, tokens = self.take_pairs()
        for start in range(0, len(tokens), _PREFILL_CHUNK):
            part = slice(start, start + _PREFILL_CHUNK)
            hidden = self._append(features[part].to(self._cache.dtype), tokens[part])
        return self.model.ahead(hidden[-1])

    def _append(self, features: Tensor, tokens: Tensor) -> Tensor:
        x = self.model.inputs(features, tokens, first=self._entries == 0)
        start, places = self._entries, torch.arange(self._entries, self._entries + len(x))
        places = places.to(x.device)
        mask = None
        if len(x) > 1:
            keys = torch.arange(start + len(x), device=x.device)
            mask = additive(keys[None] <= places[:, None], x.dtype)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend_cached(self._cache[layer], start, q, k, v, mask)

        self._entries += len(x)
        return self.model.run(x, places + 1 - int(self.model.config.sink), attend)

    def _tree(
        self, hidden: Tensor, root_token: int, budget: Budget, copied: DraftTree | None = None
    ) -> DraftTree:
        top, ids, total = best_logits(self.model.lm_head, self.model.norm(hidden), self.width)
        log_probs, tokens = top - total, self.model.to_target_ids(ids)
        tree = LevelTree(tokens[:1], log_probs[:1], budget.model)
        for depth in range(1, len(tokens)):
            # a node outside a level's best `max_nodes` has as many better ones before it
            leaves = tree.frontier(self.max_nodes)[0]
            shape = (len(leaves), self.width)
            tree.add(leaves, tokens[depth].expand(shape), log_probs[depth].expand(shape))
        return tree.choose(root_token, budget, self.max_nodes, copied)
