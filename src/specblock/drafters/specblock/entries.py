"""A forward of the SpecBlock network over cached texts, of one text or of many."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specblock.drafters.layers import attend_texts
from specblock.drafters.shortlist import best_logits
from specblock.drafters.specblock.network import RANK_TOP, SpecBlockModel
from specblock.tree.policy import BlockCandidates

__all__ = ["Entries", "candidates_of"]


@dataclass(frozen=True, eq=False)
class Entries:
    """Entries of one text that are computed, written to its cache and predicted from.

    A :class:`specblock.drafters.proposing.together.Forward`.

    Attributes:
        model: the network.
        cache: the text's, ``[L, 2, kv_heads, entries, d]``.
        start: where in it the entries are written.
        features: whether ``conditions`` are the target's features ``[n, F * H]``; else they are
            hidden states of other blocks ``[n, H]``.
        tokens: int64 [n], the token after each condition.
        chosen: int64 [R], of the n * K entries of the conditions those that are computed.
        slots: int64 [R]. positions: int64 [R], rotary. With the sink both have one more.
        mask: additive [R, start + R]; None lets a single row see all.
        blocks: the last so many blocks of K rows are predicted from.
        width: candidates of a slot.
        sink: the learned entry comes before all others.
    """

    model: SpecBlockModel
    cache: Tensor
    start: int
    features: bool
    conditions: Tensor
    tokens: Tensor
    chosen: Tensor
    slots: Tensor
    positions: Tensor
    mask: Tensor | None
    blocks: int
    width: int
    sink: bool

    @property
    def kind(self) -> Hashable:
        return id(self.model), self.features, self.width

    @staticmethod
    def compute(forwards: Sequence[Entries]) -> list[tuple[Tensor, BlockCandidates | None]]:
        """Of each the hidden states ``[B, K, H]`` and the candidates of its blocks; None where
        nothing is predicted."""
        model, width = forwards[0].model, forwards[0].width
        sizes = [len(forward.slots) for forward in forwards]
        slots = torch.cat([forward.slots for forward in forwards])
        rows = torch.arange(len(slots), device=slots.device)
        previous = torch.where(slots > 0, rows - 1, rows)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            places = [(own.cache[layer], own.start, own.mask) for own in forwards]
            return attend_texts(places, q, k, v, sizes, sizes)

        positions = torch.cat([forward.positions for forward in forwards])
        hidden = model.run(_inputs(forwards), lambda x: x[previous], positions, attend)
        counts, slots_of_block = [f.blocks for f in forwards], model.config.block_size
        ends = [
            own[len(own) - count * slots_of_block :].unflatten(0, (count, slots_of_block))
            for own, count in zip(hidden.split(sizes), counts, strict=True)
        ]
        if not any(counts):
            return [(own, None) for own in ends]
        candidates = candidates_of(model, torch.cat(ends), width)
        return list(zip(ends, candidates.split(counts), strict=True))


def _inputs(forwards: Sequence[Entries]) -> Tensor:
    """``[R, H]``: the entries of all, one text's behind the other's."""
    model, slots = forwards[0].model, forwards[0].model.config.block_size
    conditions = torch.cat([forward.conditions for forward in forwards])
    if forwards[0].features:
        conditions = model.input_layer.condition(conditions.to(forwards[0].cache.dtype))
    tokens = torch.cat([forward.tokens for forward in forwards])
    entries = model.input_layer(conditions, tokens, slots).flatten(0, 1)
    parts, first = [], 0
    for forward in forwards:
        if forward.sink:
            parts.append(model.sink[None].to(entries.dtype))
        parts.append(entries.index_select(0, first + forward.chosen))
        first += len(forward.tokens) * slots
    return torch.cat(parts)


def candidates_of(model: SpecBlockModel, hidden: Tensor, width: int) -> BlockCandidates:
    """Candidates of the slots ``hidden [B, K, H]``."""
    normed = model.norm(hidden)
    top, ids, total = best_logits(model.lm_head, normed, RANK_TOP)
    log_probs = top[..., :width] - total
    tokens = model.to_target_ids(ids[..., :width])
    rank = model.rank_logits_of_top(normed, top).argmax(-1)
    return BlockCandidates(tokens, log_probs, rank)
