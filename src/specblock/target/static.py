"""Verification with static shapes: as many rows as one of a few sizes, over a cache of fixed size.

On a GPU each size is recorded once as a CUDA graph and replayed: a round launches one graph instead
of hundreds of kernels. On a CPU the same path runs without a graph; tests hold it to the dynamic
one. Rows beyond the tree repeat its root behind it; nothing ever looks at what they write.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from specblock.errors import ConfigError
from specblock.kernels.recording import Recorder, Recording
from specblock.target.cache import PathCache
from specblock.target.fixed import FixedView
from specblock.target.masks import SLIDING
from specblock.target.model import Target
from specblock.target.pieces import Piece, TargetOutput
from specblock.target.text import Text
from specblock.tree.draft_tree import DraftTree

__all__ = ["ROWS", "StaticTarget"]

ROWS = (1, 8, 16, 32, 64)  # of a forward; smaller trees are filled up
_SMALLEST = 1024  # positions of the cache; larger ones double


class _Recorded:
    """A forward of so many rows: its inputs, and its outputs once it ran."""

    def __init__(self, target: StaticTarget, cache: PathCache, rows: int):
        self._target = target
        self._view = FixedView(cache, rows, target.device)
        self._ids = torch.zeros(1, rows, dtype=torch.int64, device=target.device)
        self._positions = torch.zeros_like(self._ids)
        shape = (1, 1, rows, cache.capacity)
        self._mask = torch.zeros(shape, dtype=target.dtype, device=target.device)
        self._rows = torch.arange(rows, device=target.device)
        self._lowest = torch.finfo(target.dtype).min
        self._recording = Recording(self._forward, target.recorder)

    def run(self, tree: DraftTree, length: int) -> TargetOutput:
        """Logits and features of the tree's nodes behind ``length`` positions."""
        count = len(tree)
        self._ids.copy_(tree.tokens[:1].expand_as(self._ids))
        self._ids[0, :count] = tree.tokens
        self._positions.fill_(length)
        self._positions[0, :count] = tree.positions(length)
        torch.add(self._rows, length, out=self._view.places)
        self._mask.fill_(self._lowest)
        self._mask[..., :length] = 0.0
        seen = tree.ancestor_mask()
        self._mask[0, 0, :count, length : length + count].masked_fill_(seen, 0.0)
        output = self._recording.run()
        # the next replay writes over them
        return TargetOutput(output.logits[:count].clone(), output.features[:count].clone())

    def _forward(self) -> TargetOutput:
        return self._target.forward_static(self._ids, self._mask, self._positions, self._view)


class StaticTarget(Target):
    """A target that verifies the tree of a single text with static shapes.

    Prompts, several texts at a time and trees beyond the largest size go through the dynamic path,
    over the same cache.

    Args:
        model, feature_layers: as for :class:`specblock.target.model.Target`.
        capacity: positions of the cache to begin with.

    Attributes:
        recorder: says whether forwards are recorded as CUDA graphs.

    Raises :class:`ConfigError` where a forward's shapes depend on the text: sliding windows,
    frequencies that depend on the longest position.
    """

    def __init__(
        self, model: nn.Module, feature_layers: tuple[int, ...] = (), capacity: int = _SMALLEST
    ):
        super().__init__(model, feature_layers, exact=False, owned=True)
        fixed = SLIDING not in self.kinds and self.positions.independent and not self._reuses_keys
        if not (fixed and self._replaces_attention):
            raise ConfigError(
                "Static shapes need full attention in every layer and positions that do not depend "
                "on the text's length, which this model lacks; decode it with Target."
            )
        self.recorder = Recorder(self.device)
        self._capacity = capacity
        self._cache: PathCache | None = None
        self._owner: ReferenceType[Text] | None = None
        self._recorded: dict[int, _Recorded] = {}

    @property
    def _free(self) -> bool:
        """Whether no open text has the fixed cache."""
        text = None if self._owner is None else self._owner()
        return text is None

    def open(self, capacity: int, prompt: Tensor | None = None) -> Text:
        """A text; the first that is open has the fixed cache and begins empty."""
        if not self._free:
            return super().open(capacity, prompt)
        self.begin()
        needed = capacity + ROWS[-1]  # rows beyond the tree write behind it
        if self._cache is None or needed > self._cache.capacity:
            while self._capacity < needed:
                self._capacity *= 2
            self._cache = PathCache(self.config.num_hidden_layers, self._capacity)
            self._recorded = {}
        self._cache.length = 0
        text = Text(self._cache)
        self._owner = ref(text)
        return text

    def release(
        self, text: Text, tokens: Tensor | None = None, features: Tensor | None = None
    ) -> None:
        """A text's end; the fixed cache is free for another one."""
        if text.cache is not self._cache:
            super().release(text, tokens, features)
        elif text is not self.text:
            self._owner = None

    @torch.inference_mode()
    def verify_all(
        self, texts: Sequence[Text], trees: Sequence[DraftTree], prompts: Sequence[Piece] = ()
    ) -> list[TargetOutput]:
        """See :meth:`Target.verify_all`; a single tree over the fixed cache has static shapes."""
        if len(texts) != 1 or prompts or not self._fits(texts[0], trees[0]):
            return super().verify_all(texts, trees, prompts)
        (text,), (tree,) = texts, trees
        text.tree = tree
        return [self._verify(text, tree)]

    def _fits(self, text: Text, tree: DraftTree) -> bool:
        room = text.length + ROWS[-1] <= text.cache.capacity
        return text.cache is self._cache and text.length > 0 and len(tree) <= ROWS[-1] and room

    def _verify(self, text: Text, tree: DraftTree) -> TargetOutput:
        rows = next(size for size in ROWS if size >= len(tree))
        if rows not in self._recorded:
            self._recorded[rows] = _Recorded(self, self._cache, rows)
        return self._recorded[rows].run(tree, text.length)

    def forward_static(
        self, ids: Tensor, mask: Tensor, positions: Tensor, view: FixedView
    ) -> TargetOutput:
        """A forward of ``ids [1, rows]`` at ``positions [1, rows]``, with an additive ``mask
        [1, 1, rows, capacity]``."""
        with self.loan:
            output = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                **{self._cache_name: view},
            )
        features = self._tap.take()
        if features is None:
            features = output.logits.new_zeros(1, ids.shape[1], 0)
        return TargetOutput(output.logits[0], features[0])
