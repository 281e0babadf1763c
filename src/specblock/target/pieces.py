"""What texts add to a forward: a tree to verify, a piece of a prompt to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from specblock.errors import ContextError
from specblock.kernels.packed import PackedCache, TextRows
from specblock.target import masks
from specblock.target.text import Text

if TYPE_CHECKING:
    from specblock.tree.draft_tree import DraftTree

__all__ = ["Piece", "TargetOutput", "grouped", "kept_rows", "packed", "split"]


@dataclass(frozen=True)
class TargetOutput:
    """What one forward gives: ``logits [rows, V]`` and ``features [rows, F * H]``."""

    logits: Tensor
    features: Tensor


@dataclass(frozen=True, eq=False)
class Piece:
    """Rows of one text.

    Attributes:
        text: whose they are.
        ids: int64 [n].
        places: int64 [n], positions.
        visible: bool [n, length + n], see :mod:`specblock.target.masks`; None: one row, sees all.
        last: int64 [n], the longest position of the forward in which plain decoding computes a row.
        wanted: rows from the end whose logits are asked for; 0: all.
    """

    text: Text
    ids: Tensor
    places: Tensor
    visible: Tensor | None
    last: Tensor
    wanted: int = 0

    @staticmethod
    def of_tree(text: Text, tree: DraftTree, window: int | None) -> Piece:
        """A tree behind a text; ``window`` is that of the layers that have one."""
        places, visible = tree.positions(text.length), None
        # without a mask a model makes its own, of another kind, as soon as the window is full
        hides = window is not None and text.length + len(tree) >= window
        if len(tree) > 1 or hides:
            visible = masks.tree_mask(tree.ancestor_mask(), text.length)
        return Piece(text, tree.tokens, places, visible, places)

    @staticmethod
    def of_prompt(text: Text, ids: Tensor, last: int, wanted: int) -> Piece:
        """The next ``ids`` of a prompt whose last position is ``last``."""
        length, rows = text.length, ids.numel()
        places = torch.arange(length, length + rows, device=ids.device)
        visible = masks.chain_mask(rows, length, ids.device)
        return Piece(text, ids, places, visible, torch.full_like(places, last), wanted)

    def __len__(self) -> int:
        return self.ids.numel()

    @property
    def logit_rows(self) -> int:
        """How many rows' logits are asked for."""
        return self.wanted or len(self)

    def check_room(self) -> None:
        """Raises :class:`ContextError` if the rows do not fit the text's cache."""
        if self.text.length + len(self) > self.text.cache.capacity:
            raise ContextError(
                f"{self.text.length + len(self)} positions do not fit the cache of "
                f"{self.text.cache.capacity}; reset the target with a larger capacity."
            )

    def masks(
        self, kinds: tuple[str, ...], window: int | None, dtype: torch.dtype
    ) -> dict[str, Tensor] | None:
        """Additive masks by kind of attention; None for a row that sees everything."""
        if self.visible is None:
            return None
        length = self.text.length
        return masks.build_masks(self.visible, self.places, length, kinds, window, dtype)


def grouped(pieces: Sequence[Piece], most: int | None) -> list[list[Piece]]:
    """Those of each forward, in order: of ``most`` rows, or one piece; None: all in one."""
    groups: list[list[Piece]] = []
    for piece in pieces:
        if not groups or (most is not None and sum(map(len, groups[-1])) + len(piece) > most):
            groups.append([])
        groups[-1].append(piece)
    return groups


def packed(
    pieces: Sequence[Piece],
    kinds: tuple[str, ...],
    layers: tuple[str, ...],
    window: int | None,
    dtype: torch.dtype,
) -> tuple[Cache, Any]:
    """The cache and the mask that a model is given for a forward over all pieces.

    Args:
        kinds: of attention, among the layers. layers: the kind of each.
    """
    built = [piece.masks(kinds, window, dtype) for piece in pieces]
    if len(pieces) == 1:
        cache, own = pieces[0].text.cache, built[0]
    else:
        texts = zip(pieces, built, strict=True)
        cache = PackedCache([TextRows(p.text.cache, len(p), m) for p, m in texts], layers)
        rows = sum(map(len, pieces))
        # read by nobody: our attention has each part's own; but without one a model makes its own
        nothing = torch.zeros(1, 1, rows, 1, dtype=dtype, device=pieces[0].ids.device)
        own = dict.fromkeys(kinds, nothing.expand(-1, -1, -1, rows))
    if own is None:
        return cache, None
    return cache, own if len(own) > 1 else next(iter(own.values()))


def kept_rows(pieces: Sequence[Piece]) -> dict[str, Any]:
    """The argument that says which rows' logits are asked for."""
    if len(pieces) == 1:
        return {"logits_to_keep": pieces[0].wanted}
    if all(not piece.wanted for piece in pieces):
        return {"logits_to_keep": 0}
    rows, start = [], 0
    for piece in pieces:
        stop = start + len(piece)
        rows.append(torch.arange(stop - piece.logit_rows, stop, device=piece.ids.device))
        start = stop
    return {"logits_to_keep": torch.cat(rows)}


def split(pieces: Sequence[Piece], logits: Tensor, features: Tensor) -> list[TargetOutput]:
    """Each piece's own rows of logits ``[kept rows or all, V]`` and features ``[R, F * H]``."""
    sizes = [len(piece) for piece in pieces]
    asked = [piece.logit_rows for piece in pieces]
    if len(logits) != sum(asked):  # a model that gives all
        parts = [rows[-n:] for rows, n in zip(logits.split(sizes), asked, strict=True)]
    else:
        parts = list(logits.split(asked))
    # layers that reuse others' keys compute the kept rows alone
    whole = len(features) == sum(sizes)
    shown = features.split(sizes if whole else asked)
    return [TargetOutput(*pair) for pair in zip(parts, shown, strict=True)]
