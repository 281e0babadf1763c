"""Feedback that lies, a bug's or an attacker's, to see in a replay what adaptation does with it."""

from __future__ import annotations

import torch
from torch import Tensor

from specblock.adaptation.feedback.observer import TargetReducer


class LyingReducer:
    """A :class:`TargetReducer` that swaps every token for another one, always for the same.

    A lie without system would not survive being judged on held-out feedback, which lies alike; this
    one can be learned, and makes every draft wrong.

    Args:
        honest: whose answers are twisted. vocabulary: its number of draft ids. seed: of the lie.
    """

    def __init__(self, honest: TargetReducer, vocabulary: int, seed: int = 0):
        self.honest, self.top = honest, honest.top
        generator = torch.Generator().manual_seed(seed)
        self._other = torch.randperm(vocabulary, generator=generator).int()

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the honest one, with other ids."""
        ids, probabilities, usable = self.honest(logits)
        return self._other.to(ids.device)[ids.long()], probabilities, usable
