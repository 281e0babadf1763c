"""One path of a draft tree, for engines that verify a chain."""

from __future__ import annotations

import torch
from torch import Tensor

from specblock.tree.draft_tree import DraftTree

__all__ = ["best_path", "expected_lengths"]


def expected_lengths(tree: DraftTree, survival: Tensor) -> Tensor:
    """Draft tokens that are accepted on average if only the path to a node is verified, float
    [N+1]: the sum of the survival of its nodes; the root's is 0.

    Args:
        survival: float [N+1], probability that the walk of acceptance reaches each node.
    """
    lengths = survival.double().clone()
    lengths[0] = 0.0
    for node in range(1, len(tree)):  # parents come first
        lengths[node] += lengths[tree.parents[node]]
    return lengths


def best_path(tree: DraftTree, survival: Tensor, most: int) -> list[int]:
    """Tokens of the path, of at most ``most`` draft tokens, with the best expected length; of equal
    ones the first in the tree, which is the shortest. Empty where there is no draft node."""
    lengths = expected_lengths(tree, survival).masked_fill(tree.depths > most, -torch.inf)
    node = int(lengths.argmax())
    tokens: list[int] = []
    while node > 0:
        tokens.append(int(tree.tokens[node]))
        node = int(tree.parents[node])
    return tokens[::-1]
