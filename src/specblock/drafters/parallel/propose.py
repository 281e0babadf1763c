"""Decoding with the parallel heads: one forward a round, and the most probable combinations.

The candidates of a position do not depend on those of the positions before, so a node's children
are the same everywhere at its depth, and its score is the sum of its own path's log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from specblock.drafters.base import Budget, FixedBudget
from specblock.drafters.layers import attend_texts
from specblock.drafters.parallel.network import ParallelModel
from specblock.drafters.proposing.levels import LevelTree
from specblock.drafters.proposing.pairs import PairQueue
from specblock.drafters.proposing.proposal import Proposal
from specblock.drafters.proposing.together import Drafting, alone
from specblock.drafters.shortlist import best_logits
from specblock.target.masks import additive
from specblock.tree.draft_tree import DraftTree

_PREFILL_CHUNK = 256  # pairs of a prompt in one forward


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of one text, written to its cache; the last of them is predicted from.

    A :class:`specblock.drafters.proposing.together.Forward`.

    Attributes:
        model: the network.
        cache: the text's, ``[L, 2, kv_heads, entries, d]``.
        start: where in it the pairs are written, the sink first where it is 0.
        features: [n, F * H]. tokens: int64 [n], the token after each.
        width: candidates per position.
    """

    model: ParallelModel
    cache: Tensor
    start: int
    features: Tensor
    tokens: Tensor
    width: int

    @property
    def kind(self) -> Hashable:
        return id(self.model), self.width

    @staticmethod
    def compute(forwards: Sequence[Pairs]) -> list[tuple[Tensor, Tensor]]:
        """Of each the candidates of all K positions: int64 ``[K, W]``, log-probabilities."""
        model, width = forwards[0].model, forwards[0].width
        inputs = [pairs._inputs() for pairs in forwards]
        sizes = [len(rows) for rows in inputs]
        places = [pairs.start + torch.arange(n) for pairs, n in zip(forwards, sizes, strict=True)]
        places = [own.to(inputs[0].device) for own in places]
        masks = [_causal(own, inputs[0].dtype) for own in places]

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            texts = zip(forwards, masks, strict=True)
            rows = [(own.cache[layer], own.start, mask) for own, mask in texts]
            return attend_texts(rows, q, k, v, sizes, sizes)

        positions = torch.cat(places) + 1 - int(model.config.sink)
        hidden = model.run(torch.cat(inputs), positions, attend)
        ahead = model.ahead(torch.stack([own[-1] for own in hidden.split(sizes)]))
        top, ids, total = best_logits(model.lm_head, model.norm(ahead), width)
        return list(zip(model.to_target_ids(ids), top - total, strict=True))

    def _inputs(self) -> Tensor:
        features = self.features.to(self.cache.dtype)
        return self.model.inputs(features, self.tokens, first=self.start == 0)


def _causal(places: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The mask of rows at these places of a cache; None for a single one."""
    if len(places) == 1:
        return None
    keys = torch.arange(int(places[-1]) + 1, device=places.device)
    return additive(keys[None] <= places[:, None], dtype)


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

    def drafting(
        self, root_token: int, budget: Budget, copied: DraftTree | None = None
    ) -> Drafting[Proposal]:
        """A tree from the pairs observed so far, the last of which ends in ``root_token``."""
        tokens, log_probs = yield from self.refresh()
        tree = LevelTree(tokens[:1], log_probs[:1], budget.model)
        for depth in range(1, len(tokens)):
            # a node outside a level's best `max_nodes` has as many better ones before it
            leaves = tree.frontier(self.max_nodes)[0]
            shape = (len(leaves), self.width)
            tree.add(leaves, tokens[depth].expand(shape), log_probs[depth].expand(shape))
        return tree.proposal(root_token, budget, self.max_nodes, copied)

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
        alone(self.refresh())
        entries, budget = self._entries, FixedBudget(8, 0)

        def forward(count: int) -> None:
            self._entries = entries  # the same place every time
            self.observe(features[:count], tokens[:count])
            self.propose(0, budget)

        return {count: partial(forward, count) for count in pairs}, {}

    # -- the network over the cache -------------------------------------------------------------

    def refresh(self) -> Drafting[tuple[Tensor, Tensor]]:
        """Append the pending pairs; the candidates of all K positions after the last of them:
        target ids int64 ``[K, W]`` and log-probabilities."""
        features, tokens = self.take_pairs()
        for start in range(0, len(tokens), _PREFILL_CHUNK):
            part = slice(start, start + _PREFILL_CHUNK)
            pairs = Pairs(
                self.model, self._cache, self._entries, features[part], tokens[part], self.width
            )
            sink = int(self.model.config.sink and self._entries == 0)
            self._entries += len(pairs.tokens) + sink
            found = yield pairs
        return found
