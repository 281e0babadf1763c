"""A forward of the EAGLE-3 network with static shapes: so many rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specblock.drafters.eagle3.rows import Found, Rows
from specblock.drafters.shortlist import best_logits
from specblock.drafters.static.cached import attend_fixed, fill_mask
from specblock.kernels.recording import Recorder, Recording

__all__ = ["LevelShape", "StaticLevel"]


@dataclass(frozen=True)
class LevelShape:
    """The shape of forwards over one cache: ``rows``, of which ``asked`` are predicted from."""

    features: bool
    rows: int
    asked: int
    width: int

    @staticmethod
    def of(own: Rows, sizes: Sequence[int]) -> LevelShape | None:
        """The smallest shape that holds a forward; None where none does."""
        size = next((size for size in sizes if size >= len(own.tokens)), None)
        if size is None:
            return None
        return LevelShape(own.features, size, 1 if own.asked == 1 else size, own.width)


class StaticLevel:
    """Forwards of one shape over one cache.

    Args:
        first: any of them, for its network and its cache.
    """

    def __init__(self, shape: LevelShape, first: Rows, recorder: Recorder):
        self._shape, self._model, self._cache = shape, first.model, first.cache
        device, dtype = first.cache.device, first.cache.dtype

        def indices(size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.int64, device=device)

        self._conditions = torch.zeros(
            shape.rows, first.conditions.shape[-1], dtype=dtype, device=device
        )
        self._tokens, self._positions = indices(shape.rows), indices(shape.rows)
        self._places, self._asked = indices(shape.rows), indices(shape.asked)
        entries = first.cache.shape[-2]
        self._mask = torch.zeros(shape.asked, entries, dtype=dtype, device=device)
        self._recording = Recording(self._compute, recorder)

    def run(self, own: Rows) -> Found:
        """What :meth:`Rows.compute` gives for one forward."""
        rows, asked = len(own.tokens), own.asked
        self._conditions[:rows] = own.conditions
        self._tokens[:rows] = own.tokens
        self._positions[:rows] = own.positions
        last = self._cache.shape[-2] - 1  # rows beyond the forward write there: nothing looks at it
        every = torch.arange(len(self._places), device=own.tokens.device)
        torch.clamp(every + own.start, max=last, out=self._places)
        self._places[rows:] = last
        fill_mask(self._mask, own.mask, asked, own.start + rows)
        self._asked[:asked] = every[rows - asked : rows]
        found = self._recording.run()
        parts = found.hidden, found.tokens, found.log_probs
        return Found(*(part[:asked].clone() for part in parts))

    def _compute(self) -> Found:
        model, layer, asked = self._model, self._model.midlayer, self._asked
        given = self._conditions
        conditions = model.condition(given) if self._shape.features else model.fed_back(given)
        x = model.inputs(conditions, self._tokens)
        cos, sin = model.rotary(self._positions)
        keys, values = layer.self_attn.keys_values(x, cos, sin)
        queries = layer.self_attn.queries(x[asked], cos[asked], sin[asked])
        attended = attend_fixed(self._cache, self._places, queries, keys, values, self._mask)
        hidden = layer.finish(conditions[asked], attended)
        top, ids, total = best_logits(model.lm_head, model.norm(hidden), self._shape.width)
        return Found(hidden, model.to_target_ids(ids), top - total)
