"""A key/value cache of fixed capacity that can forget rejected draft tokens.

All layers live in one storage tensor ``[layers, 2, batch, heads, capacity, head_dim]``, so keeping
an accepted path is one gather over all layers instead of two per layer, and a forward never
concatenates. Models whose layers differ in head shape get one storage per shape, and those whose
keys are shaped otherwise than their values one for each of the two.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class PreallocatedLayer(CacheLayerMixin):
    """One layer's window into the storage of a :class:`PathCache`."""

    is_sliding = False
    is_compileable = False
    is_croppable = True

    def __init__(self, owner: PathCache):
        super().__init__()
        # a circle would keep the storage of a cache that is given up until Python looks for circles
        self.owner = weakref.proxy(owner)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = self.owner.allocate(key_states, value_states)
        self.dtype, self.device = self.keys.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Write ``[batch, heads, n, head_dim]`` behind the committed part; return all visible."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.owner.length
        stop = start + key_states.shape[-2]
        self.keys[:, :, start:stop] = key_states
        self.values[:, :, start:stop, : value_states.shape[-1]] = value_states
        keys, values = self.keys[:, :, :stop], self.values[:, :, :stop]
        # what an attention cannot tell from a shape, and finds nowhere if a layer changed them
        keys.kept_exact = values.kept_exact = self.owner.exact
        return keys, values

    def get_seq_length(self) -> int:
        return self.owner.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.length + query_length, 0

    def get_max_length(self) -> int:
        return self.owner.capacity

    def get_max_cache_shape(self) -> int:  # the older name of get_max_length
        return self.owner.capacity


@dataclass
class Storage:
    """``tensor [layers, parts, batch, heads, capacity, width]``, of which ``used`` layers are."""

    tensor: Tensor
    used: int = 0

    def take(self) -> Tensor:
        """The next layer's ``[parts, batch, heads, capacity, width]``."""
        self.used += 1
        return self.tensor[self.used - 1]


class PathCache(Cache):
    """Pre-allocated cache for ``layers`` decoder layers and ``capacity`` positions.

    ``length`` counts committed positions. A forward over n tokens writes at
    ``length .. length + n - 1`` and commits nothing: :meth:`keep` or :meth:`advance` does.

    ``exact`` keeps them as :mod:`specblock.kernels.invariant` needs them: in fp32, and every value
    with a 1 behind it. Otherwise they stay as the layers hand them over.
    """

    def __init__(self, layers: int, capacity: int, exact: bool = False):
        self.length = 0
        self.capacity, self.exact = capacity, exact
        self._storages: dict[tuple, Storage] = {}
        self._layer_count = layers
        super().__init__(layers=[PreallocatedLayer(self) for _ in range(layers)])

    def allocate(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """Hand one layer its views of keys ``[batch, heads, capacity, head_dim]`` and values, which
        are one longer in an exact cache."""
        together = key_states.shape == value_states.shape and key_states.dtype == value_states.dtype
        if together:
            keys, values = self._place("both", key_states, 2)
        else:
            keys = self._place("keys", key_states, 1)[0]
            values = self._place("values", value_states, 1)[0]
        return keys[..., : key_states.shape[-1]], values

    def _place(self, role: str, states: Tensor, parts: int) -> Tensor:
        """The next free place ``[parts, batch, heads, capacity, width]`` for states of a shape."""
        batch, heads, _, dim = states.shape
        dtype = torch.float32 if self.exact else states.dtype
        signature = (role, batch, heads, dim, dtype, states.device)
        if signature not in self._storages:
            shape = (self._layer_count, parts, batch, heads, self.capacity, dim + self.exact)
            # zeros, not empty: masked positions are still multiplied, and 0 * NaN is NaN
            tensor = torch.zeros(shape, dtype=dtype, device=states.device)
            tensor[..., dim:] = 1.0
            self._storages[signature] = Storage(tensor)
        return self._storages[signature].take()

    @property
    def position_bytes(self) -> int:
        """Bytes of one position in all layers; 0 before the first forward."""
        tensors = [storage.tensor for storage in self._storages.values()]
        return sum(t.numel() * t.element_size() for t in tensors) // self.capacity

    def continue_from(self, other: PathCache, length: int) -> None:
        """Begin with the first ``length`` positions of another cache of the same model."""
        for own, theirs in zip(self.layers, other.layers, strict=True):
            if theirs.is_initialized and not own.is_initialized:
                values = theirs.values[..., : theirs.values.shape[-1] - self.exact]
                own.lazy_initialization(theirs.keys[:, :, :0], values[:, :, :0])
        pairs = zip(self._storages.values(), other._storages.values(), strict=True)
        for mine, source in pairs:
            mine.tensor[: mine.used, ..., :length, :] = source.tensor[: mine.used, ..., :length, :]
        self.length = length

    def advance(self, count: int) -> None:
        """Commit the first ``count`` positions of the last forward (a chain, or a prompt)."""
        self.length += count

    def keep(self, rows: Tensor) -> None:
        """Commit ``rows`` (int64 [m], ascending) of the last forward, moved to the front."""
        count = rows.numel()
        source = rows + self.length
        for storage in self._storages.values():
            kept = storage.tensor[: storage.used].index_select(4, source)
            storage.tensor[: storage.used, :, :, :, self.length : self.length + count] = kept
        self.length += count

    def crop_to(self, length: int) -> None:
        """Forget everything from position ``length`` on."""
        self.length = min(self.length, length)
