"""A forward of the EAGLE-3 network over cached texts, of one text or of many."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specblock.drafters.eagle3.network import Eagle3Model
from specblock.drafters.layers import attend_texts
from specblock.drafters.shortlist import best_logits

__all__ = ["Found", "Rows"]


@dataclass(frozen=True)
class Found:
    """What n rows give: ``hidden [n, H]``, and of each the W best continuations: target ids
    int64 ``tokens [n, W]`` and ``log_probs [n, W]``."""

    hidden: Tensor
    tokens: Tensor
    log_probs: Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one text, written to its cache; the last of them are predicted from.

    A :class:`specblock.drafters.proposing.together.Forward`. As the network has a single layer, of
    rows that nothing is predicted from keys and values suffice.

    Attributes:
        model: the network.
        cache: the text's, ``[2, kv_heads, entries, d]``.
        start: where in it the rows are written.
        features: whether ``conditions`` are the target's features ``[n, F * H]``; else they are
            the network's own hidden states ``[n, H]``.
        tokens: int64 [n], the token after each. positions: int64 [n], rotary.
        mask: additive [asked, start + n]; None lets these rows see all.
        asked: the last so many rows are predicted from.
        width: continuations of a row.
    """

    model: Eagle3Model
    cache: Tensor
    start: int
    features: bool
    conditions: Tensor
    tokens: Tensor
    positions: Tensor
    mask: Tensor | None
    asked: int
    width: int

    @property
    def kind(self) -> Hashable:
        return id(self.model), self.features, self.width

    @staticmethod
    def compute(forwards: Sequence[Rows]) -> list[Found]:
        """What each gives."""
        model, layer = forwards[0].model, forwards[0].model.midlayer
        sizes, asked = [len(rows.tokens) for rows in forwards], [rows.asked for rows in forwards]
        conditions = torch.cat([rows.conditions for rows in forwards])
        if forwards[0].features:
            conditions = model.condition(conditions.to(forwards[0].cache.dtype))
        else:
            conditions = model.fed_back(conditions)
        x = model.inputs(conditions, torch.cat([rows.tokens for rows in forwards]))
        cos, sin = model.rotary(torch.cat([rows.positions for rows in forwards]))
        keys, values = layer.self_attn.keys_values(x, cos, sin)

        def last(rows: Tensor) -> Tensor:
            if asked == sizes:
                return rows
            own = zip(rows.split(sizes), asked, strict=True)
            return torch.cat([part[len(part) - count :] for part, count in own])

        queries = layer.self_attn.queries(last(x), last(cos), last(sin))
        places = [(own.cache, own.start, own.mask) for own in forwards]
        attended = attend_texts(places, queries, keys, values, asked, sizes)
        hidden = layer.finish(last(conditions), attended)
        top, ids, total = best_logits(model.lm_head, model.norm(hidden), forwards[0].width)
        found = hidden, model.to_target_ids(ids), top - total
        return [Found(*own) for own in zip(*(f.split(asked) for f in found), strict=True)]
