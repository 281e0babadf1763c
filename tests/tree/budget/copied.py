"""Copies of a text, made up."""

import math

import torch

from specblock.tree.draft_tree import DraftTree
from specblock.tree.survival import COPIED


def chain(probability: float, length: int = 8) -> DraftTree:
    """A copy of ``length`` tokens 1, 2, ..., each claimed with ``probability``."""
    index = torch.arange(length + 1)
    log_probs = torch.full((length + 1,), math.log(probability))
    log_probs[0] = 0.0
    classes = torch.full_like(index, COPIED)
    classes[0] = 0
    return DraftTree(index, index - 1, index, log_probs.cumsum(0), log_probs, classes)
