"""The drafter over whole sequences at once, as training needs it.

Two passes. The *trunk* computes the entries that decoding keeps in its cache (``slots_kept`` per
position) for all positions, causally over the flattened index ``position * c + slot``. *Blocks*
then run all K slots at chosen positions against the trunk's keys; a block sees

1. the trunk's entries of earlier positions,
2. the slots ``s < M`` of the earlier blocks it descends from, at its own position,
3. its own slots up to each query's.

That is what a block sees in decoding. (The authors' training also lets later blocks see those of
other positions, which decoding can never have; it is left out here.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from specblock.drafters.objectives.attention import Sight
from specblock.drafters.specblock.network import SpecBlockModel, previous_slot


@dataclass(frozen=True)
class Trunk:
    """What every position leaves behind.

    ``condition [B, S, H]``; ``hidden [B, S, c, H]``; per layer keys and values
    ``[B, kv_heads, (sink + S) * c, d]``; ``offset``: entries before position 0.
    """

    condition: Tensor
    hidden: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    offset: int
    slots: int


@dataclass(frozen=True)
class Block:
    """One block at M positions of each sequence: ``hidden [B, M, K, H]`` and, per layer, keys and
    values ``[B, M, K, kv_heads, d]``."""

    hidden: Tensor
    keys: list[Tensor]
    values: list[Tensor]


def run_trunk(model: SpecBlockModel, features: Tensor, tokens: Tensor) -> Trunk:
    """The trunk of pairs (``features [B, S, F * H]``, next token ``tokens [B, S]``)."""
    slots = model.config.slots_kept
    condition = model.input_layer.condition(features)
    x = model.input_layer(condition, tokens, slots)
    batch, length = tokens.shape
    positions = torch.arange(length, device=x.device)[:, None] + 1
    positions = positions + torch.arange(slots, device=x.device)
    offset = 0
    if model.config.sink:
        offset = 1
        sink = model.sink.to(x.dtype).expand(batch, 1, slots, -1)
        x = torch.cat((sink, x), dim=1)
        positions = torch.cat((positions.new_zeros(1, slots), positions))
    keys, values = [], []

    def attend(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        flat = [part.flatten(1, 2).transpose(1, 2) for part in (q, k, v)]
        keys.append(flat[1])
        values.append(flat[2])
        out = F.scaled_dot_product_attention(*flat, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).flatten(2).unflatten(1, (-1, slots))

    hidden = model.run(x, previous_slot, positions, attend)
    return Trunk(condition, hidden[:, offset:], keys, values, offset, slots)


def run_block(
    model: SpecBlockModel,
    trunk: Trunk,
    condition: Tensor,
    tokens: Tensor,
    positions: Tensor,
    parents: list[tuple[Block, Tensor]] | None = None,
) -> Block:
    """One block at ``positions`` (int64 [B, M], pair indices) of each sequence.

    Args:
        condition: [B, M, H], the trunk's condition (block 1) or the parent slot's hidden state.
        tokens: int64 [B, M], the token each block starts from.
        parents: earlier blocks of the same positions with the number of their slots that this
            block descends from, int64 [B, M].
    """
    count = model.config.block_size
    slots = torch.arange(count, device=tokens.device)
    x = model.input_layer(condition, tokens, count)
    own = slots[None, :] <= slots[:, None]  # [K queries, K keys]
    visible = [own.expand(*tokens.shape, -1, -1)]
    for _, used in reversed(parents or []):
        before = slots < used[..., None]
        visible.insert(0, before[:, :, None].expand(-1, -1, count, -1))
    seen = (trunk.offset + positions) * trunk.slots
    sight = Sight.of(seen, torch.cat(visible, dim=-1), model.config.num_attention_heads)
    keys, values = [], []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys.append(k)
        values.append(v)
        history = [block for block, _ in parents or []]
        own_k = torch.cat([*(b.keys[layer] for b in history), k], dim=2)
        own_v = torch.cat([*(b.values[layer] for b in history), v], dim=2)
        return sight.attend(q, trunk.keys[layer], trunk.values[layer], own_k, own_v)

    hidden = model.run(x, previous_slot, positions[..., None] + 1 + slots, attend)
    return Block(hidden, keys, values)
