"""Attention in which no row's result depends on the others: a verified tree gives plain logits.

Floating-point sums depend on their order, and the usual kernels choose it by the number of rows
and by where a key lies. A draft token lies elsewhere when it is verified in a tree than when it is
decoded plainly, so its logits come out a rounding apart; in half precision that changes half of all
answers at some near-tie. Here the order of every sum is that of the keys' *positions*, whatever
else is in the batch:

* scores: each is a product of two vectors of the head's size, which no kernel splits;
* weights: exponentials, element by element; their sum is taken with the values, which end in a 1
  (an exact :class:`~specblock.target.cache.PathCache` keeps them so), and divides at the end;
* values: matrix products over a block of keys of a sequence plus the tree. Such a product adds key
  after key; keys that a row may not see carry the weight 0 and change nothing. Products over more
  keys are split by the kernel, so blocks are added up here, and a block's limits are positions:
  rows that reach over limits are multiplied in as many parts.

All of it is in fp32, with at least `_MIN_ROWS` rows, `_MIN_KEYS` keys and values `_MIN_WIDTH` wide,
since fewer are given to other kernels. That these products keep to one order is a property of the
library, not of the standard, and how many keys it adds in one go depends on the processor (MKL: 384
with AVX-512 of Intel, 192 on an AMD EPYC). So :func:`block_length` tries it, and
:mod:`specblock.engine.machine.exactness` tries the whole.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from specblock.kernels.attention import grouped_sdpa, is_special
from specblock.kernels.packed import part_by_part

NAME, _TRIAL = "specblock_invariant", "specblock_trial"
_BLOCKS = (256, 64)  # positions; the longest that the processor allows
_MAX_ROWS = 128  # computed at a time; a prompt's are more, and may come in any pieces
_MIN_ROWS, _MIN_KEYS, _MIN_WIDTH = 16, 32, 32  # of what is tried for the same sums in any company


def invariant_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Attention of ``query [1, heads, n, d]`` over ``key [1, kv_heads, t, d]``.

    The last n keys are the rows' own. ``value [1, kv_heads, t, e]`` of an exact cache ends in ones,
    and says so; to others they are added. ``attention_mask`` is additive ``[1, 1, n, t]``, or None
    for one row that sees all. Batches and other masks go to :func:`grouped_sdpa`.
    Returns ``[1, n, heads, e]``, the ones not counted, and no weights.
    """
    batch, _, rows, dim = query.shape
    ones = getattr(value, "kept_exact", False)
    if batch > 1 or not _adds(attention_mask, rows) or is_special(dropout, kwargs):
        key, value = key.to(query.dtype), (value[..., :-1] if ones else value).to(query.dtype)
        return grouped_sdpa(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    keys, values = key[0].float(), value[0].float()
    if not ones:
        values = F.pad(values, (0, 1), value=1.0)
    mask = None if attention_mask is None else attention_mask[0, 0, :, : keys.shape[1]]
    scale = dim**-0.5 if scaling is None else scaling
    mixed = []
    for first in range(0, rows, _MAX_ROWS):
        last = min(first + _MAX_ROWS, rows)
        seen = keys.shape[1] - rows + last  # no row sees a later one
        part = None if mask is None else mask[first:last, :seen]
        mixed.append(_mixed(query[0, :, first:last], keys[:, :seen], values[:, :seen], part, scale))
    return torch.cat(mixed)[None].to(query.dtype), None


def _mixed(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """``[n, heads, e]`` of ``query [heads, n, d]``, whose own keys are the last n."""
    heads, rows, _ = query.shape
    weights = _weights(query, keys, mask, scale)
    total = None
    for part, where in _parts(weights, rows, mask):
        added = _product(part, values[:, where])
        total = added if total is None else total.add_(added)
    total = total[:, : heads // len(keys) * rows]
    return (total[..., :-1] / total[..., -1:]).view(heads, rows, -1).transpose(0, 1)


def _adds(mask: Tensor | None, rows: int) -> bool:
    """Whether a mask is to be added to the scores of every head, or there is nothing to mask."""
    if mask is None:
        return rows == 1
    return mask.is_floating_point() and mask.shape[:2] == (1, 1)


def _weights(query: Tensor, keys: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Unnormalised weights ``[kv_heads, R, t]``: a group's heads are rows of their key head, and
    there are at least `_MIN_ROWS` of them; those without a query weigh nothing."""
    heads, rows, dim = query.shape
    groups = heads // len(keys)
    flat = query.float().reshape(len(keys), groups * rows, dim)
    if groups * rows < _MIN_ROWS:
        flat = F.pad(flat, (0, 0, 0, _MIN_ROWS - groups * rows))
    nothing, count = flat.new_empty(1, 1, 1), keys.shape[1]
    if count < _MIN_KEYS:
        keys = F.pad(keys, (0, 0, 0, _MIN_KEYS - count))
    scores = torch.baddbmm(nothing, flat, keys.transpose(1, 2), beta=0, alpha=scale)[..., :count]
    used = scores[:, : groups * rows]
    if mask is not None:
        used.unflatten(1, (groups, rows)).add_(mask)
    used.sub_(used.amax(-1, keepdim=True)).exp_()
    return scores


def _product(weights: Tensor, values: Tensor) -> Tensor:
    """``weights [kv_heads, R, k]`` by ``values [kv_heads, k, d + 1]``, filled up with zeros."""
    short, width = _MIN_KEYS - weights.shape[-1], values.shape[-1]
    if short > 0 or width < _MIN_WIDTH:
        weights = F.pad(weights, (0, max(0, short)))
        values = F.pad(values, (0, max(0, _MIN_WIDTH - width), 0, max(0, short)))
    return torch.bmm(weights, values)[..., :width]


@functools.cache
def block_length() -> int:
    """Positions of a block that products here add in one order with a tree beside them; the
    shortest where none are."""
    fitting = (block for block in _BLOCKS if keeps_one_order(block + _MAX_ROWS))
    return next(fitting, _BLOCKS[-1])


def keeps_one_order(keys: int, seed: int = 0) -> bool:
    """Whether `_MIN_KEYS` keys give the same sums alone and anywhere among ``keys``."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(2, _MIN_ROWS, _MIN_KEYS, generator=generator)
    for width in (_MIN_WIDTH, 65, 129):
        values = torch.randn(2, _MIN_KEYS, width, generator=generator)
        alone = torch.bmm(weights, values)
        for count in (keys // 2 + 5, keys - 1, keys):
            places = torch.randperm(count, generator=generator)[:_MIN_KEYS].sort().values
            among = torch.zeros(2, 3 * _MIN_ROWS, count)
            among[:, :_MIN_ROWS, places] = weights
            others = torch.randn(2, count, width, generator=generator)
            others[:, places] = values
            if not torch.bmm(among, others)[:, :_MIN_ROWS].equal(alone):
                return False
    return True


def _parts(weights: Tensor, rows: int, mask: Tensor | None) -> Iterator[tuple[Tensor, slice]]:
    """Weights and their keys, block of positions by block."""
    context = weights.shape[-1] - rows
    block = block_length()
    last = context // block * block
    for start in range(0, last, block):
        where = slice(start, start + block)
        yield weights[..., where], where
    rest, where = weights[..., last:], slice(last, None)
    if mask is None or context + rows <= last + block:
        yield rest, where
        return
    places = torch.arange(last, context + rows, device=weights.device)
    places[context - last :] = context + _depths(mask[:, context:] == 0)
    blocks = places // block
    for number in range(last // block, int(blocks.max()) + 1):
        yield rest.masked_fill(blocks != number, 0.0), where


def _depths(visible: Tensor) -> Tensor:
    """int64 [n]: how many ancestors each row has, of bool ``visible [n, n]`` among the rows. A
    window may hide the first of them, never the parent, which is the last."""
    order = torch.arange(1, len(visible) + 1, device=visible.device)
    parents = (visible.tril(-1) * order).amax(-1).tolist()  # 0: none
    depths = [-1]
    for parent in parents:
        depths.append(depths[parent] + 1)
    return torch.tensor(depths[1:], device=visible.device)


def register_trial(seen: list[bool]) -> str:
    """Make an attention known that notes whether it could be the exact one.

    Layers that expand or repeat what the cache returns cannot run with an exact cache, and those
    that mask their heads one by one not with exact attention. Returns the name.
    """

    def watch(module, query, key, value, attention_mask, **kwargs):
        cached = hasattr(key, "kept_exact") and hasattr(value, "kept_exact")
        seen.append(cached and (attention_mask is None or attention_mask.shape[1] == 1))
        return grouped_sdpa(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register(_TRIAL, watch)
    AttentionMaskInterface.register(_TRIAL, sdpa_mask)
    return _TRIAL


def register() -> str:
    """Make the attention known to transformers; returns the name to select it by."""
    AttentionInterface.register(NAME, part_by_part(invariant_attention))
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
