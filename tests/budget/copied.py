"""Copies of a text, made up."""

import math

import torch

from specblock.tree.draft_tree import DraftTree
from specblock.tree.source import Source


def chain(probability: float, length: int = 8) -> DraftTree:
    """A copy of ``length`` tokens 1, 2, ..., each claimed with ``probability``."""
    index = torch.arange(length + 1)
    log_probs = torch.full((length + 1,), math.log(probability))
    log_probs[0] = 0.0
    sources = torch.full_like(index, Source.COPIED)
    sources[0] = Source.NETWORK
    nothing = torch.zeros_like(index)
    return DraftTree(index, index - 1, index, log_probs.cumsum(0), log_probs, nothing, sources)
