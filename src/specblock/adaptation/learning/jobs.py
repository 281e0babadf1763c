"""What an update is made of, drawn from the buffer before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from specblock.adaptation.config import AdaptationConfig
from specblock.adaptation.feedback.buffer import FeedbackBuffer, Record
from specblock.adaptation.learning.arms import FIT
from specblock.drafters.objectives.noise import mixed_seed

__all__ = ["Job", "job_of"]


@dataclass(frozen=True)
class Job:
    """What one update needs: drawn before it starts, so that it may run beside decoding.

    ``batches``: the records of each step. ``vocabulary``: bool [V], what is drafted after it, where
    that may change.
    """

    arm: str
    batches: list[list[Record]]
    held_out: list[Record]
    seed: int
    vocabulary: Tensor | None = None


def job_of(
    arm: str,
    buffer: FeedbackBuffer,
    config: AdaptationConfig,
    number: int,
    vocabulary: Tensor | None = None,
) -> Job:
    """The ``number``-th update: steps on drawn records, or the closed form on all there are."""
    seed = mixed_seed(config.seed, number)
    batches = [buffer.training()]
    if arm != FIT:
        draws = (mixed_seed(seed, step) for step in range(config.steps))
        batches = [buffer.draw(config.sequences, draw) for draw in draws]
    return Job(arm, batches, buffer.held_out(config.judge_records), seed, vocabulary)
