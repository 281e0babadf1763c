"""What a target keeps of one text."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from specblock.target.cache import PathCache

if TYPE_CHECKING:
    from specblock.tree.draft_tree import DraftTree

__all__ = ["Text", "TextPool"]

SPARE = 8  # caches of ended texts that are kept for the next ones


@dataclass(eq=False)
class Text:
    """One text's keys and values, and what was verified of it last.

    Attributes:
        cache: keys and values of its committed positions.
        ids: int64 [length], its tokens; kept only where the cache may have to be filled anew.
        tree: the tree of the last verification.
    """

    cache: PathCache
    ids: Tensor | None = None
    tree: DraftTree | None = None

    @property
    def length(self) -> int:
        """Committed positions."""
        return self.cache.length


class TextPool:
    """Opens texts, in the room of ended ones where that suffices.

    Args:
        layers: of the model.
    """

    def __init__(self, layers: int):
        self._layers, self._kind = layers, None
        self._spare: list[PathCache] = []

    def open(self, capacity: int, exact: bool, kind: Hashable) -> Text:
        """A text with room for ``capacity`` positions.

        Args:
            exact: see :class:`PathCache`.
            kind: device and dtype; the owner may have moved or converted the model meanwhile.
        """
        if (kind, exact) != self._kind:
            self._kind, self._spare = (kind, exact), []
        fitting = [cache for cache in self._spare if cache.capacity >= capacity]
        if not fitting:
            return Text(PathCache(self._layers, capacity, exact))
        cache = min(fitting, key=lambda cache: cache.capacity)
        self._spare.remove(cache)
        cache.crop_to(0)
        return Text(cache)

    def release(self, text: Text) -> None:
        """The text has ended; giving it back twice does no harm."""
        if text.cache not in self._spare:
            self._spare = [text.cache, *self._spare][:SPARE]
