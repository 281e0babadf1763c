"""A drafter's entries in the pages of an engine's cache: one entry a committed position.

Only this module reads and writes these pages, so what lies where within one is its own matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specblock.errors import SpecBlockError

__all__ = ["Pages"]


class Pages:
    """Keys and values of L layers in shared pages.

    Args:
        layers: each layer's ``[pages, kv_heads, page, 2 * d]``, as vLLM's CPU back-end lays them
            out.
        heads, dim: key-value heads and head size of the drafter.

    Raises:
        SpecBlockError: the pages have another form.
    """

    def __init__(self, layers: Sequence[Tensor], heads: int, dim: int):
        for layer in layers:
            if layer.dim() != 4 or (layer.shape[1], layer.shape[3]) != (heads, 2 * dim):
                raise SpecBlockError(
                    f"vLLM's attention keeps its pages as {list(layer.shape)}; this plug-in knows "
                    f"[pages, {heads}, positions, {2 * dim}] alone, the form of the CPU back-end."
                )
        self._layers, self._page = list(layers), layers[0].shape[2]

    def read(self, table: Tensor, count: int) -> Tensor:
        """The entries of a text's positions 0 to ``count`` - 1, ``[L, 2, kv_heads, count, d]``.

        ``table``: int [pages of the text], in order.
        """
        page, place = self._places(table, 0, count)
        return torch.stack([_split(layer[page, :, place]) for layer in self._layers])

    def write(self, table: Tensor, start: int, entries: Tensor) -> None:
        """Put ``entries [L, 2, kv_heads, n, d]`` at a text's positions from ``start``."""
        page, place = self._places(table, start, entries.shape[-2])
        for layer, own in zip(self._layers, entries, strict=True):
            layer[page, :, place] = own.permute(2, 1, 0, 3).flatten(2).to(layer.dtype)

    def _places(self, table: Tensor, start: int, count: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(start, start + count, device=table.device)
        return table[positions // self._page].long(), positions % self._page


def _split(rows: Tensor) -> Tensor:
    """``[n, kv_heads, 2 * d]`` to ``[2, kv_heads, n, d]``."""
    return rows.unflatten(-1, (2, -1)).permute(2, 1, 0, 3)
