"""Random numbers that belong to a sequence, whatever batch, padding or process it is in."""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = (1 << 64) - 1  # 64-bit words


def mixed_seed(*parts: int) -> int:
    """A 32-bit seed that depends on every part (splitmix64)."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) & _WORD
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _WORD
        state ^= state >> 31
    return state >> 32


def keyed_noise(keys: Tensor, length: int, width: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers fp32 [B, length, width] on the CPU, row b a function of ``keys[b]`` alone.

    Row b begins with the same numbers at every ``length``: padding changes nothing. One number is
    taken from ``generator``, so that every call differs.
    """
    base = int(torch.randint(2**31, (), generator=generator))
    rows = [
        torch.rand(
            length, width, generator=torch.Generator().manual_seed(mixed_seed(base, int(key)))
        )
        for key in keys.tolist()
    ]
    return torch.stack(rows)
