"""What a target keeps of texts: of those being written, and of ended ones.

All caches together stay within a limit. An ended text's is kept until its room is needed, the one
least recently used goes first. A text that begins with the same tokens as an ended one begins with
a copy of those positions.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakSet

import torch
from torch import Tensor, nn

from specblock.target.cache import PathCache

if TYPE_CHECKING:
    from specblock.tree.draft_tree import DraftTree

__all__ = ["Text", "TextPool", "weights_seen"]


@dataclass(eq=False)
class Text:
    """One text's keys and values, and what was verified of it last.

    Attributes:
        cache: keys and values of its committed positions.
        known: float [n, F * H], features of the positions that it began with; None: it began empty.
        ids: int64 [length], its tokens; kept only where the cache may have to be filled anew.
        tree: the tree of the last verification.
    """

    cache: PathCache
    known: Tensor | None = None
    ids: Tensor | None = None
    tree: DraftTree | None = None

    @property
    def length(self) -> int:
        """Committed positions."""
        return self.cache.length


@dataclass(frozen=True, eq=False)
class _Ended:
    """A cache, and the int64 ``tokens [n]`` and ``features [n, F * H]`` of its positions."""

    cache: PathCache
    tokens: Tensor
    features: Tensor

    def common(self, prompt: Tensor) -> int:
        """How many of its positions a text with this prompt begins with; one token of the prompt
        has to be read anyway."""
        most = min(len(self.tokens), len(prompt) - 1)
        same = self.tokens[:most] == prompt[:most]
        return most if bool(same.all()) else int(same.int().argmin())


class TextPool:
    """Opens texts within a limit of memory.

    Args:
        layers: of the model.
        most_bytes: of all caches together, and of the features kept with them.

    Attributes:
        hits, tokens_saved: texts that began like an ended one, and the positions they began with.
    """

    def __init__(self, layers: int, most_bytes: int):
        self.most_bytes = most_bytes
        self.hits = self.tokens_saved = 0
        self._layers, self._kind = layers, None
        self._open: WeakSet[Text] = WeakSet()  # a forgotten one is not open
        self._ended: list[_Ended] = []  # the most recently used first
        self._position_bytes = 0  # 0 before a text was read

    @property
    def most_positions(self) -> int | None:
        """Of all caches together; None before a text was read, which tells how large one is."""
        self._measure()
        return self.most_bytes // self._position_bytes if self._position_bytes else None

    def fits(self, capacity: int) -> bool:
        """Whether a text of so many positions may be opened beside those that are open."""
        most = self.most_positions
        if most is None:
            return not self._open
        return self._opened + capacity <= most

    @property
    def _opened(self) -> int:
        return sum(text.cache.capacity for text in self._open)

    def _measure(self) -> None:
        caches = [text.cache for text in self._open] + [ended.cache for ended in self._ended]
        if not self._position_bytes:
            self._position_bytes = max((cache.position_bytes for cache in caches), default=0)

    @torch.inference_mode()
    def open(
        self, capacity: int, exact: bool, kind: Hashable, prompt: Tensor | None = None
    ) -> Text:
        """A text with room for ``capacity`` positions.

        Args:
            exact: see :class:`PathCache`.
            kind: device, dtype and weights; what ended under another is forgotten.
            prompt: int64 [n]; the text begins with the positions of an ended one that begins
                with the same tokens.
        """
        if (kind, exact) != self._kind:
            self._kind, self._ended = (kind, exact), []
            self._position_bytes = 0
        source, common = self._like(prompt)
        if source is not None:
            self.hits, self.tokens_saved = self.hits + 1, self.tokens_saved + common
            goes_on = common >= len(source.tokens) - 1  # with all of it but the newest token
            if goes_on and source.cache.capacity >= capacity:
                self._ended.remove(source)
                source.cache.crop_to(common)
                return self._opening(Text(source.cache, source.features[:common]))
        cache = self._room(capacity, source) or PathCache(self._layers, capacity, exact)
        cache.crop_to(0)
        if source is None:
            return self._opening(Text(cache))
        cache.continue_from(source.cache, common)
        text = self._opening(Text(cache, source.features[:common]))
        self._forget_beyond_the_limit()
        return text

    def _opening(self, text: Text) -> Text:
        self._open.add(text)
        return text

    def _like(self, prompt: Tensor | None) -> tuple[_Ended | None, int]:
        """The ended text with the longest common beginning, and its length."""
        if prompt is None:
            return None, 0
        found = [(ended.common(prompt), ended) for ended in self._ended if len(ended.tokens)]
        common, source = max(found, key=lambda pair: pair[0], default=(0, None))
        if not common:
            return None, 0
        self._ended.remove(source)
        self._ended.insert(0, source)
        return source, common

    def _room(self, capacity: int, source: _Ended | None) -> PathCache | None:
        """Forget ended texts until there is room; the cache of one that is large enough."""
        empty = [e for e in self._ended if not len(e.tokens) and e.cache.capacity >= capacity]
        if empty:
            chosen = min(empty, key=lambda ended: ended.cache.capacity)
            self._ended.remove(chosen)
            return chosen.cache
        most = self.most_positions
        while most is not None and self._held + capacity > most:
            oldest = next((e for e in reversed(self._ended) if e is not source), None)
            if oldest is None:
                break
            self._ended.remove(oldest)
            if oldest.cache.capacity >= capacity:
                return oldest.cache
        return None

    @property
    def _held(self) -> int:
        return self._opened + sum(ended.cache.capacity for ended in self._ended)

    def release(
        self, text: Text, tokens: Tensor | None = None, features: Tensor | None = None
    ) -> None:
        """The text has ended; giving it back twice does no harm.

        With its int64 ``tokens [length]`` and ``features [length, F * H]`` it is kept for texts
        that begin alike; without them its room alone.
        """
        if text not in self._open:
            return
        self._open.remove(text)
        self._measure()
        if features is not None and len(features):
            own = text.cache.position_bytes + features[0].numel() * features.element_size()
            self._position_bytes = max(self._position_bytes, own)
        if tokens is None or features is None:
            tokens, features = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0)
        self._ended.insert(0, _Ended(text.cache, tokens.cpu(), features))
        self._forget_beyond_the_limit()

    def _forget_beyond_the_limit(self) -> None:
        most = self.most_positions
        while most is not None and self._held > most and self._ended:
            self._ended.pop()


def weights_seen(model: nn.Module) -> int:
    """Another number when a weight is another tensor, or was written to."""
    return hash(tuple((weight.data_ptr(), weight._version) for weight in model.parameters()))
