"""Grouped-query attention without copying the cache, for tree verification.

``sdpa`` in transformers repeats every key/value head when a mask is given. A tree always has a
mask, so each verification would copy the whole cache per layer. Here PyTorch's CPU kernel is told
of the groups, and where it cannot be, the query heads of a group become extra query rows of their
key/value head: same products, no copy.
Registered through transformers' public ``AttentionInterface``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from specblock.kernels.packed import part_by_part

NAME = "specblock_sdpa"


def grouped_sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Attention of ``query [b, heads, n, d]`` over ``key [b, kv_heads, t, d]`` and ``value
    [b, kv_heads, t, e]``.

    Falls back to transformers' own ``sdpa`` wherever the grouping does not apply.
    Returns ``[b, n, heads, e]`` and no weights.
    """
    groups = query.shape[1] // key.shape[1]
    plain = attention_mask is None or groups == 1 or attention_mask.shape[1] != 1
    if plain or is_special(dropout, kwargs):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    batch, heads, rows, dim = query.shape
    mask = attention_mask[..., : key.shape[-2]]
    if query.device.type == "cpu" and rows > 1:
        # this kernel shares a group's keys by itself; folded rows would leave a core idle
        output = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True
        )
    else:
        folded = query.reshape(batch, key.shape[1], groups * rows, dim)
        mask = mask.expand(batch, 1, rows, -1).repeat(1, 1, groups, 1)
        output = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
        output = output.view(batch, heads, rows, value.shape[-1])
    return output.transpose(1, 2).contiguous(), None


def is_special(dropout: float, settings: Mapping[str, Any]) -> bool:
    """Whether a layer wants more of its attention than query, key, value, mask and scale."""
    asked = (settings.get("position_bias"), settings.get("cache"))
    return bool(dropout) or any(setting is not None for setting in asked)


def register() -> str:
    """Make the attention known to transformers; returns the name to select it by."""
    AttentionInterface.register(NAME, part_by_part(grouped_sdpa))
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
