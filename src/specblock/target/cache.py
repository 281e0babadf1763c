"""A key/value cache of fixed capacity that can forget rejected draft tokens.

All layers live in one storage tensor ``[layers, 2, batch, heads, capacity, head_dim]``, so keeping
an accepted path is one gather over all layers instead of two per layer, and a forward never
concatenates. Models whose layers differ in head shape get one storage per shape.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from specblock.errors import ModelError

_ARGUMENTS = ("cache", "past_key_values")  # of a forward: the newer name, the older name


def cache_argument(model: nn.Module) -> str:
    """What the forward of ``model`` calls its key/value cache.

    A wrapper that hands everything on, as adapter libraries put around a model, names nothing: the
    first module within it that does answers. Raises :class:`ModelError` where none does.
    """
    for module in model.modules():
        parameters = inspect.signature(module.forward).parameters
        for name in _ARGUMENTS:
            if name in parameters:
                return name
    raise ModelError(
        f"{type(model).__name__} takes no key/value cache; use a decoder-only causal language "
        "model of transformers."
    )


class PreallocatedLayer(CacheLayerMixin):
    """One layer's window into the storage of a :class:`PathCache`."""

    is_sliding = False
    is_compileable = False
    is_croppable = True

    def __init__(self, owner: PathCache):
        super().__init__()
        self.owner = owner

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
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def get_seq_length(self) -> int:
        return self.owner.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.length + query_length, 0

    def get_max_length(self) -> int:
        return self.owner.capacity

    def get_max_cache_shape(self) -> int:  # the older name of get_max_length
        return self.owner.capacity


class PathCache(Cache):
    """Pre-allocated cache for ``layers`` decoder layers and ``capacity`` positions.

    ``length`` counts committed positions. A forward over n tokens writes at
    ``length .. length + n - 1`` and commits nothing: :meth:`keep` or :meth:`advance` does.

    ``exact`` keeps them as :mod:`specblock.target.invariant` needs them: in fp32, and every value
    with a 1 behind it. Otherwise they stay as the layers hand them over.
    """

    def __init__(self, layers: int, capacity: int, exact: bool = False):
        self.length = 0
        self.capacity, self.exact = capacity, exact
        self._storages: dict[tuple, tuple[Tensor, int]] = {}
        self._layer_count = layers
        super().__init__(layers=[PreallocatedLayer(self) for _ in range(layers)])

    def allocate(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """Hand one layer its views of keys ``[batch, heads, capacity, head_dim]`` and values, which
        are one longer in an exact cache."""
        if key_states.shape != value_states.shape:
            raise ValueError(
                "keys and values of different shapes are not supported: "
                f"{tuple(key_states.shape)} and {tuple(value_states.shape)}"
            )
        batch, heads, _, dim = key_states.shape
        dtype = torch.float32 if self.exact else key_states.dtype
        signature = (batch, heads, dim, dtype, key_states.device)
        if signature not in self._storages:
            shape = (self._layer_count, 2, batch, heads, self.capacity, dim + self.exact)
            # zeros, not empty: masked positions are still multiplied, and 0 * NaN is NaN
            storage = torch.zeros(shape, dtype=dtype, device=key_states.device)
            storage[..., dim:] = 1.0
            self._storages[signature] = (storage, 0)
        storage, used = self._storages[signature]
        self._storages[signature] = (storage, used + 1)
        return storage[used, 0, ..., :dim], storage[used, 1]

    def advance(self, count: int) -> None:
        """Commit the first ``count`` positions of the last forward (a chain, or a prompt)."""
        self.length += count

    def keep(self, rows: Tensor) -> None:
        """Commit ``rows`` (int64 [m], ascending) of the last forward, moved to the front."""
        count = rows.numel()
        source = rows + self.length
        for storage, used in self._storages.values():
            kept = storage[:used].index_select(4, source)
            storage[:used, :, :, :, self.length : self.length + count] = kept
        self.length += count

    def crop_to(self, length: int) -> None:
        """Forget everything from position ``length`` on."""
        self.length = min(self.length, length)

    def select_batch(self, rows: Tensor) -> None:
        """Keep only the sequences ``rows`` (int64 [b]) of the batch."""
        storages = {}
        index = 0
        for storage, used in self._storages.values():
            chosen = storage.index_select(2, rows)
            signature = (rows.numel(), *chosen.shape[3:4], chosen.shape[-1])
            storages[(*signature, chosen.dtype, chosen.device)] = (chosen, used)
        remaining = dict.fromkeys(storages, 0)
        for layer in self.layers:
            heads, dim = layer.keys.shape[1], layer.keys.shape[-1]
            key = (rows.numel(), heads, dim, layer.keys.dtype, layer.keys.device)
            index = remaining[key]
            layer.keys, layer.values = storages[key][0][index, 0], storages[key][0][index, 1]
            remaining[key] = index + 1
        self._storages = storages
