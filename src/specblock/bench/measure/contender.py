"""A method that is ready to answer, and what an answer of it is measured by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from specblock.bench.measure.compiled import CompiledTarget
from specblock.bench.measure.meter import Counts, MeteredDrafter
from specblock.config import GenerationConfig

__all__ = ["Answer", "Contender", "Method"]


@dataclass(frozen=True)
class Answer:
    """A generation, what its drafter did, and the most GPU memory held (None on a CPU)."""

    generation: Any
    counts: Counts = field(default_factory=Counts)
    peak_bytes: int | None = None


# A method answers token ids under a config.
Method = Callable[[Sequence[int], GenerationConfig], Answer]


class Contender:
    """A method over a target that others use too.

    Args:
        speculator: its own loop; its drafter, if any, is a
            :class:`~specblock.bench.measure.meter.MeteredDrafter`.
    """

    def __init__(self, speculator: Any):
        self.speculator = speculator

    def __call__(self, ids: Sequence[int], config: GenerationConfig) -> Answer:
        target, drafter = self.speculator.target, self.speculator.drafter
        cuda = target.device if target.device.type == "cuda" else None
        if isinstance(target, CompiledTarget):
            target.prepare(len(ids) + config.max_new_tokens + 1)
        if cuda is not None:
            torch.cuda.synchronize(cuda)
            torch.cuda.reset_peak_memory_stats(cuda)
        generation = self.speculator.generate(list(ids), config, use_drafter=drafter is not None)
        peak = None if cuda is None else torch.cuda.max_memory_allocated(cuda)
        counts = drafter.take() if isinstance(drafter, MeteredDrafter) else Counts()
        return Answer(generation, counts, peak)
