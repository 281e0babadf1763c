"""A forward of the SpecBlock network with static shapes: so many conditions, so many rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specblock.drafters.specblock.entries import Entries, candidates_of
from specblock.drafters.static.cached import attend_fixed, fill_mask
from specblock.kernels.recording import Recorder, Recording
from specblock.tree.policy import BlockCandidates

__all__ = ["BlocksShape", "StaticBlocks"]


@dataclass(frozen=True)
class BlocksShape:
    """The shape of forwards over one cache: ``conditions``, ``rows``, ``blocks`` predicted from."""

    features: bool
    conditions: int
    rows: int
    blocks: int
    width: int

    @staticmethod
    def of(own: Entries, sizes: Sequence[int]) -> BlocksShape | None:
        """The smallest shape that holds a forward; None where none does, or it has the sink, or
        nothing is predicted."""
        count = len(own.tokens)
        size = next((size for size in sizes if size >= count), None)
        if size is None or own.sink or not own.blocks:
            return None
        config = own.model.config
        # every condition has its kept slots; those that are predicted from have all
        kept = config.slots_kept if own.features else config.block_size
        rows = size * kept + config.block_size - kept
        return BlocksShape(own.features, size, rows, 1 if own.features else size, own.width)


class StaticBlocks:
    """Forwards of one shape over one cache.

    Args:
        first: any of them, for its network and its cache.
    """

    def __init__(self, shape: BlocksShape, first: Entries, recorder: Recorder):
        self._shape, self._model, self._cache = shape, first.model, first.cache
        device, width = first.cache.device, first.conditions.shape[-1]
        slots = first.model.config.block_size

        def indices(*sizes: int) -> Tensor:
            return torch.zeros(sizes, dtype=torch.int64, device=device)

        dtype = first.cache.dtype
        self._conditions = torch.zeros(shape.conditions, width, dtype=dtype, device=device)
        self._tokens, self._asked = indices(shape.conditions), indices(shape.blocks, slots)
        self._chosen, self._previous = indices(shape.rows), indices(shape.rows)
        self._positions, self._places = indices(shape.rows), indices(shape.rows)
        entries = first.cache.shape[-2]
        self._mask = torch.zeros(shape.rows, entries, dtype=dtype, device=device)
        self._recording = Recording(self._compute, recorder)

    def run(self, own: Entries) -> tuple[Tensor, BlockCandidates | None]:
        """What :meth:`Entries.compute` gives for one forward."""
        count, rows = len(own.tokens), len(own.slots)
        self._conditions[:count] = own.conditions
        self._tokens[:count] = own.tokens
        self._chosen.zero_()
        self._chosen[:rows] = own.chosen
        every = torch.arange(len(self._places), device=own.slots.device)
        self._previous.copy_(every)
        self._previous[:rows] -= (own.slots > 0).long()
        self._positions[:rows] = own.positions
        # rows beyond the forward write to the last entry, at which nothing looks
        last = self._mask.shape[1] - 1
        torch.clamp(every + own.start, max=last, out=self._places)
        self._places[rows:] = last
        fill_mask(self._mask, own.mask, rows, own.start + rows)
        blocks, slots = own.blocks, self._asked.shape[1]
        asked = torch.arange(rows - blocks * slots, rows, device=own.slots.device)
        self._asked[:blocks] = asked.view(blocks, slots)
        hidden, found = self._recording.run()
        parts = found.tokens, found.log_probs, found.rank_classes
        return hidden[:blocks].clone(), BlockCandidates(*(part[:blocks].clone() for part in parts))

    def _compute(self) -> tuple[Tensor, BlockCandidates]:
        model, conditions = self._model, self._conditions
        if self._shape.features:
            conditions = model.input_layer.condition(conditions)
        slots = model.config.block_size
        entries = model.input_layer(conditions, self._tokens, slots).flatten(0, 1)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend_fixed(self._cache[layer], self._places, q, k, v, self._mask)

        hidden = model.run(
            entries.index_select(0, self._chosen),
            lambda x: x.index_select(0, self._previous),
            self._positions,
            attend,
        )
        ends = hidden.index_select(0, self._asked.flatten()).unflatten(0, self._asked.shape)
        return ends, candidates_of(model, ends, self._shape.width)
