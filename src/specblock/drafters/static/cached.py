"""Attention over a whole drafter cache, written at places that a tensor names."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["attend_fixed", "fill_mask"]


def attend_fixed(
    cache: Tensor, places: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor
) -> Tensor:
    """Write n entries of a layer's cache and attend from R rows to all of it, ``[R, heads * d]``.

    Args:
        cache: [2, kv_heads, entries, d]. places: int64 [n].
        q: [R, heads, d]; k, v: [n, kv_heads, d]. mask: additive [R, entries].
    """
    cache[0].index_copy_(1, places, k.transpose(0, 1))
    cache[1].index_copy_(1, places, v.transpose(0, 1))
    rows, keys, values = q.transpose(0, 1)[None], *cache[:, None].unbind(0)
    out = F.scaled_dot_product_attention(rows, keys, values, mask, enable_gqa=True)
    return out[0].transpose(0, 1).flatten(1)


def fill_mask(mask: Tensor, own: Tensor | None, rows: int, stop: int) -> None:
    """Let the first ``rows`` of ``mask [R, entries]`` see what ``own`` [rows, stop] lets them, or
    all before ``stop``; the others see the first entry, so that no row sees nothing."""
    mask.fill_(torch.finfo(mask.dtype).min)
    mask[:, :1] = 0.0
    if own is None:
        mask[:rows, :stop] = 0.0
    else:
        mask[:rows, :stop] = own
