"""A cache whose forwards always see all of it: fixed addresses, fixed shapes, places as a tensor.

For forwards that are recorded once and replayed (CUDA graphs). The storage is that of a
:class:`specblock.target.cache.PathCache`, so prompts may be read and paths kept as ever.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from specblock.target.cache import PathCache, PreallocatedLayer

__all__ = ["FixedView"]


class _FixedLayer(CacheLayerMixin):
    """One layer's keys and values ``[1, heads, capacity, head_dim]``."""

    is_sliding = False
    is_compileable = False
    is_croppable = False
    is_initialized = True

    def __init__(self, layer: PreallocatedLayer, places: Tensor):
        super().__init__()
        self.keys, self.values, self.places = layer.keys, layer.values, places

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The storage is there."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Write ``[1, heads, rows, head_dim]`` at the places; return all positions."""
        self.keys.index_copy_(2, self.places, key_states)
        self.values.index_copy_(2, self.places, value_states)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return 0  # positions and masks are given explicitly

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[2], 0

    def get_max_length(self) -> int:
        return self.keys.shape[2]

    def get_max_cache_shape(self) -> int:  # the older name of get_max_length
        return self.keys.shape[2]


class FixedView(Cache):
    """All positions of ``cache``, which must have been written to before.

    ``places`` int64 [rows]: where a forward writes; its content may change, its address may not.
    """

    def __init__(self, cache: PathCache, rows: int, device: torch.device):
        self.places = torch.zeros(rows, dtype=torch.int64, device=device)
        layers: Sequence[PreallocatedLayer] = cache.layers
        super().__init__(layers=[_FixedLayer(layer, self.places) for layer in layers])
