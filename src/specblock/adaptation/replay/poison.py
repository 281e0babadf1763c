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
        honest: whose answers are twisted. t2d: bool [V], the tokens that are swapped among
            themselves: those that can be drafted. seed: of the lie.
    """

    def __init__(self, honest: TargetReducer, t2d: Tensor, seed: int = 0):
        self.honest = honest
        generator = torch.Generator().manual_seed(seed)
        drafted = t2d.cpu().nonzero().flatten()
        self._other = torch.arange(len(t2d), dtype=torch.int32)
        shuffled = torch.randperm(len(drafted), generator=generator)
        self._other[drafted] = drafted[shuffled].int()

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """As the honest one, with other ids."""
        ids, probabilities = self.honest(logits)
        return self._other.to(ids.device)[ids.long()], probabilities
