"""The rows of many texts in one forward, without padding.

All rows lie one behind the other in the sequence dimension, so every linear layer sees them at
once. Attention is the only place where texts differ. A layer hands its new keys and values to a
:class:`PackedCache`, which writes each text's rows into that text's own cache and leaves a note of
the parts on what it returns; the attentions that SpecBlock registers find it there and run each
text's rows against that text's keys (:func:`part_by_part`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

__all__ = ["PackedCache", "TextRows", "part_by_part"]

NOTE = "specblock_parts"  # the attribute of a layer's keys that holds their parts


@dataclass(frozen=True)
class TextRows:
    """What one text adds to a forward.

    Attributes:
        cache: the text's own; a layer's ``update`` writes its rows behind the text.
        count: rows.
        masks: additive ``[1, 1, count, length + count]`` by kind of attention; None where a
            single row sees everything.
    """

    cache: Cache
    count: int
    masks: dict[str, Tensor] | None


@dataclass(frozen=True)
class Part:
    """One text's share of a layer: its rows, all its keys and values, and its mask."""

    rows: slice
    keys: Tensor
    values: Tensor
    mask: Tensor | None


class PackedLayer(CacheLayerMixin):
    """One layer of a :class:`PackedCache`."""

    is_sliding = False
    is_compileable = False
    is_croppable = False
    is_initialized = True

    def __init__(self, texts: Sequence[TextRows], index: int, kind: str):
        super().__init__()
        # not the cache that holds this layer: a circle would keep the texts' keys for long
        self.texts, self.index, self.kind = texts, index, kind

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The texts' caches look after themselves."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Write ``[1, heads, R, head_dim]`` text by text; returns them with a note of the parts."""
        parts, start = [], 0
        for text in self.texts:
            rows = slice(start, start + text.count)
            layer = text.cache.layers[self.index]
            keys, values = layer.update(key_states[:, :, rows], value_states[:, :, rows])
            mask = None if text.masks is None else text.masks[self.kind]
            parts.append(Part(rows, keys, values, mask))
            start = rows.stop
        # a tensor of its own: the layer's may be a view that it goes on using
        key_states = key_states.view_as(key_states)
        setattr(key_states, NOTE, parts)
        return key_states, value_states

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1


class PackedCache(Cache):
    """For one forward over the rows of ``texts``, in this order.

    Args:
        kinds: the kind of attention of every layer, as :func:`specblock.target.masks.layer_kinds`
            gives them.
    """

    def __init__(self, texts: Sequence[TextRows], kinds: Sequence[str]):
        super().__init__(layers=[PackedLayer(texts, i, kind) for i, kind in enumerate(kinds)])


def part_by_part(attention: Callable) -> Callable:
    """An attention function that also takes packed rows: each text's part by itself."""

    def attend(module, query, key, value, attention_mask, **settings):
        parts: list[Part] | None = getattr(key, NOTE, None)
        if parts is None:
            return attention(module, query, key, value, attention_mask, **settings)
        outputs = [
            attention(module, query[:, :, part.rows], part.keys, part.values, part.mask, **settings)
            for part in parts
        ]
        return torch.cat([output for output, _ in outputs], dim=1), None

    return attend
