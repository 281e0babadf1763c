"""What the text so far suggests, as a draft tree: no weights, no features, hardly any time."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from specblock.drafters.lookup.match import (
    Branch,
    best,
    continuation,
    joined,
    longest_match,
    merge,
)
from specblock.drafters.lookup.memory import TextMemory
from specblock.tree.draft_tree import DraftTree
from specblock.tree.source import Source

_FIELDS = ("token", "parent", "depth", "score", "log_prob", "bucket", "source")


class TextCopies:
    """The text of a sequence, and what followed the last time it went like this.

    The first token of the prompt is never shown and so not looked up.

    Args:
        depth: tokens copied from an occurrence.
        continuations: occurrences that are copied, the newest first; 1 copies a chain.
        shortest, longest: least and most tokens that are matched.
        max_nodes: most draft nodes in a tree.
        memory: earlier texts, which are looked at too.

    Raises ValueError for numbers below 1.
    """

    def __init__(
        self,
        *,
        depth: int = 10,
        continuations: int = 4,
        shortest: int = 1,
        longest: int = 16,
        max_nodes: int = 60,
        memory: TextMemory | None = None,
    ):
        if min(depth, continuations, shortest, max_nodes) < 1 or longest < shortest:
            raise ValueError("depth, continuations, shortest and max_nodes are at least 1")
        self.depth, self.continuations = depth, continuations
        self.shortest, self.longest, self.max_nodes = shortest, longest, max_nodes
        self.memory = memory
        self.reset(0)

    def another(self) -> TextCopies:
        """The same for another text; the memory is shared."""
        other = copy.copy(self)
        other.reset(0)
        return other

    def reset(self, capacity: int) -> None:
        """Start an empty text of about ``capacity`` tokens; it grows where more come."""
        self._text = np.zeros(capacity, dtype=np.int64)
        self._length = 0
        self._newest: Tensor | None = None

    def observe(self, tokens: Tensor, features: Tensor | None = None) -> None:
        """What came: of the prompt all tokens but the first, then every round's.

        Args:
            tokens: int64 [n].
            features: [n, F * H], of the positions before them; a memory of states needs the last.
        """
        self._newest = None if features is None or not features.shape[1] else features[-1]
        end = self._length + len(tokens)
        if end > len(self._text):
            self._text = np.resize(self._text, 2 * end)
        self._text[self._length : end] = tokens.cpu().numpy()
        self._length = end

    def tree(self, root_token: int, device: torch.device | str | None = None) -> DraftTree:
        """A tree after the newest token; the root alone where nothing matches.

        Their source is ``COPIED``, of those from the memory alone ``REMEMBERED``. A path of both is
        of the longer match.
        """
        text = self._text[: self._length]
        length, own = self._own(text)
        matched, others = self._remembered(text)
        nodes = joined(own, others) if length >= matched else joined(others, own)
        if len(nodes) == 1:
            return DraftTree.root_only(root_token, device)
        nodes = best(nodes, self.max_nodes)
        nodes[0].token, nodes[0].source = root_token, Source.NETWORK
        columns = ([getattr(node, name) for node in nodes] for name in _FIELDS)
        return DraftTree(*(torch.tensor(column, device=device) for column in columns))

    def _own(self, text: np.ndarray) -> tuple[int, list[Branch]]:
        """What the text itself suggests, and the length of its match."""
        length, ends = longest_match(text, self.longest)
        ends = ends[: self.continuations] if length >= self.shortest else ends[:0]
        nodes = merge([continuation(text, int(end), self.depth) for end in ends], length)
        return length, nodes

    def _remembered(self, text: np.ndarray) -> tuple[int, list[Branch]]:
        if self.memory is None:
            return 0, merge([], 0)
        length, nodes = self.memory.branches(text, self.depth, self._newest)
        for node in nodes[1:]:
            node.source = Source.REMEMBERED
        return length, nodes
