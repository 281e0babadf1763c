"""How large the stages are: on a GPU, and in the rehearsal on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from specblock.bench.costs.shapes import SHAPES, Shape

__all__ = ["FULL", "REHEARSAL", "Scale"]


@dataclass(frozen=True)
class Scale:
    """Attributes:

    device, dtype: of everything that is measured.
    shapes: of targets whose costs are measured, by name.
    decoded: shape of the random target and drafters that are decoded with; None: the embedded
        model and its drafters.
    rounds: of each drafter and budget, under the clock. context: positions before them.
    nodes: budgets of drafting.
    calls: of everything that is timed alone.
    methods: of the bench. prompts, new_tokens: of it.
    clients: that ask at the same time.
    steps: most optimiser steps of each kind of drafter; 0: as the clock allows.
    save_seconds: between two copies of the weights.
    limits: seconds of each stage, everything included.
    """

    device: str
    dtype: torch.dtype
    shapes: Mapping[str, Shape]
    decoded: Shape | None
    rounds: int
    context: int
    nodes: tuple[int, ...]
    calls: int
    methods: tuple[str, ...]
    prompts: int
    new_tokens: int
    clients: tuple[int, ...]
    steps: int
    save_seconds: float
    limits: Mapping[str, float] = field(default_factory=dict)


FULL = Scale(
    device="cuda",
    dtype=torch.bfloat16,
    shapes={name: SHAPES[name] for name in ("llama-3.1-8b", "qwen3-8b")},
    decoded=None,
    rounds=20,
    context=256,
    nodes=(60, 90),
    calls=20,
    methods=("plain", "plain-compiled", "lookup", "eagle3", "specblock-paper", "specblock"),
    prompts=12,
    new_tokens=96,
    clients=(1, 16),
    steps=0,
    save_seconds=120.0,
    limits={"check": 90, "cost": 150, "train": 300, "bench": 150, "profile": 45},
)
_TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
REHEARSAL = Scale(
    device="cpu",
    dtype=torch.float32,
    shapes={"tiny": Shape("llama", 8, 97, 64, 1e4, _TINY)},
    decoded=Shape("llama", 8, 49152, 512, 1e4, _TINY),  # the vocabulary of the tokenizer
    rounds=1,
    context=16,
    nodes=(8,),
    calls=2,
    methods=("plain", "eagle3", "specblock-paper", "specblock"),
    prompts=1,
    new_tokens=6,
    clients=(1, 2),
    steps=2,
    save_seconds=0.0,
    limits=dict.fromkeys(FULL.limits, 300),
)
