"""Grouped-query attention without copying the cache, for tree verification.

``sdpa`` in transformers repeats every key/value head when a mask is given. A tree always has a
mask, so each verification would copy the whole cache per layer. Here the query heads of a group
become extra query rows of their key/value head instead: same products, no copy.
Registered through transformers' public ``AttentionInterface``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

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
    """Attention of ``query [b, heads, n, d]`` over ``key/value [b, kv_heads, t, d]``.

    Falls back to transformers' own ``sdpa`` wherever the grouping does not apply.
    Returns ``[b, n, heads, d]`` and no weights.
    """
    groups = query.shape[1] // key.shape[1]
    plain = attention_mask is None or groups == 1 or attention_mask.shape[1] != 1
    if (
        plain
        or dropout
        or kwargs.get("position_bias") is not None
        or kwargs.get("cache") is not None
    ):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    batch, heads, rows, dim = query.shape
    kv_heads = key.shape[1]
    mask = attention_mask[..., : key.shape[-2]]
    folded = query.reshape(batch, kv_heads, groups * rows, dim)
    mask = mask.expand(batch, 1, rows, -1).repeat(1, 1, groups, 1)
    output = torch.nn.functional.scaled_dot_product_attention(
        folded, key, value, attn_mask=mask, scale=scaling
    )
    output = output.view(batch, heads, rows, dim).transpose(1, 2).contiguous()
    return output, None


def register() -> str:
    """Make the attention known to transformers; returns the name to select it by."""
    AttentionInterface.register(NAME, grouped_sdpa)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
