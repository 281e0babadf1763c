"""Decoding with what the text says already: no weights, no features, hardly any time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from specblock.drafters.base import Budget, FixedBudget
from specblock.drafters.lookup.match import best, continuation, longest_match, merge
from specblock.tree.draft_tree import DraftTree
from specblock.tree.survival import trim


class LookupDrafter:
    """A :class:`specblock.drafters.base.Drafter` that copies what followed the longest match.

    The first token of the prompt is never shown to a drafter and so not looked up.

    Args:
        depth: tokens copied from an occurrence.
        continuations: occurrences that are copied, the newest first; 1 drafts a chain.
        shortest, longest: least and most tokens that are matched.
        max_nodes: most draft nodes in a tree.

    Raises ValueError for numbers below 1.
    """

    feature_layers: tuple[int, ...] = ()

    def __init__(
        self,
        *,
        depth: int = 10,
        continuations: int = 4,
        shortest: int = 1,
        longest: int = 16,
        max_nodes: int = 60,
    ):
        if min(depth, continuations, shortest, max_nodes) < 1 or longest < shortest:
            raise ValueError("depth, continuations, shortest and max_nodes are at least 1")
        self.depth, self.continuations = depth, continuations
        self.shortest, self.longest, self.max_nodes = shortest, longest, max_nodes
        self.reset(0)

    def reset(self, capacity: int) -> None:
        """Start an empty sequence of up to ``capacity`` positions."""
        self._text = np.zeros(capacity, dtype=np.int64)
        self._length = 0
        self._device = torch.device("cpu")

    def prefill(self, features: Tensor, tokens: Tensor) -> None:
        """The prompt's tokens, all but the first, and the one after; features are not read."""
        self.observe(features, tokens)

    def observe(self, features: Tensor, tokens: Tensor) -> None:
        """The tokens that a round added, int64 [n]."""
        end = self._length + len(tokens)
        if end > len(self._text):
            self._text = np.resize(self._text, 2 * end)
        self._text[self._length : end] = tokens.cpu().numpy()
        self._length, self._device = end, tokens.device

    def propose(self, root_token: int, budget: Budget) -> DraftTree:
        """A tree after the newest token; the root alone where nothing matches."""
        text = self._text[: self._length]
        length, ends = longest_match(text, self.longest)
        if length < self.shortest:
            return DraftTree.root_only(root_token, self._device)
        ends = ends[: self.continuations]
        copies = [continuation(text, int(end), self.depth) for end in ends]
        nodes = best(merge(copies, length), self.max_nodes)
        nodes[0].token = root_token
        tree = DraftTree(
            *(
                torch.tensor([getattr(node, name) for node in nodes], device=self._device)
                for name in ("token", "parent", "depth", "score", "log_prob", "rank_class")
            )
        )
        survival = budget.model.survival(tree.log_probs, tree.rank_classes, tree.parents)
        reached = survival[1:].sort(descending=True, stable=True).values
        return trim(tree, survival, budget.nodes(reached))

    def shape_name(self) -> str:
        """Names the rounds, for keeping measured costs apart."""
        return f"lookup-{self.depth}-{self.continuations}-{self.longest}"

    def measurements(
        self, features: Tensor, tokens: Tensor, pairs: tuple[int, ...], leaves: tuple[int, ...]
    ) -> tuple[dict[int, Callable[[], object]], dict[int, Callable[[], object]]]:
        """Calls to time: a search that finds something, whatever the number of pairs is.

        ``tokens`` int64 [S] are the context, said twice so that there is a match.
        """
        self.reset(2 * len(tokens))
        self.observe(features, tokens.repeat(2))
        budget = FixedBudget(8, 0)
        return {count: partial(self.propose, int(tokens[-1]), budget) for count in pairs}, {}
