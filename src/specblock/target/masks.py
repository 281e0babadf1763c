"""Attention masks of chains and trees over a cache, with sliding windows where the model has them.

Visibility is boolean ``[rows, length + rows]``: True where row i may look at key j. Keys
``0 .. length-1`` are the committed context, the rest are the rows themselves. Models get it as an
additive mask: attention on the CPU would turn a boolean one into that in every layer anew.
"""

from __future__ import annotations

import torch
from torch import Tensor

FULL, SLIDING = "full_attention", "sliding_attention"


def attention_kinds(config) -> tuple[str, ...]:
    """The kinds of attention among the layers, e.g. ``("full_attention",)``."""
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return (SLIDING,) if getattr(config, "sliding_window", None) else (FULL,)
    return tuple(sorted(set(kinds)))


def layer_kinds(config) -> tuple[str, ...]:
    """The kind of attention of every layer."""
    kinds = getattr(config, "layer_types", None)
    return tuple(kinds) if kinds else attention_kinds(config) * config.num_hidden_layers


def chain_mask(rows: int, length: int, device: torch.device) -> Tensor:
    """Causal visibility ``[rows, length + rows]`` of a chain behind ``length`` positions."""
    keys = torch.arange(length + rows, device=device)
    return keys[None, :] <= torch.arange(length, length + rows, device=device)[:, None]


def tree_mask(ancestors: Tensor, length: int) -> Tensor:
    """Visibility ``[rows, length + rows]``: all context, then ancestors-or-self."""
    context = ancestors.new_ones(ancestors.shape[0], length)
    return torch.cat((context, ancestors), dim=1)


def within_window(visible: Tensor, positions: Tensor, length: int, window: int) -> Tensor:
    """``visible`` cut to keys less than ``window`` positions before their query."""
    context = torch.arange(length, device=positions.device)
    keys = torch.cat((context, positions))
    return visible & (positions[:, None] - keys[None, :] < window)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, the lowest finite number of ``dtype`` elsewhere."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)


def build_masks(
    visible: Tensor,
    positions: Tensor,
    length: int,
    kinds: tuple[str, ...],
    window: int | None,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """One additive ``[1, 1, rows, length + rows]`` mask per kind of attention."""
    masks = {}
    for kind in kinds:
        seen = visible
        if kind == SLIDING and window is not None:
            seen = within_window(visible, positions, length, window)
        masks[kind] = additive(seen, dtype)[None, None]
    return masks
