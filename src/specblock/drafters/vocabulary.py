"""Which target tokens a drafter can draft: the maps ``d2t`` and ``t2d``."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from specblock.errors import VocabularyMapError

__all__ = ["check_vocabulary_map"]


def check_vocabulary_map(d2t: Tensor, t2d: Tensor, path: Path) -> None:
    """Raise :class:`VocabularyMapError` unless ``arange(V_d) + d2t`` are the ids that t2d marks.

    Args:
        d2t: int64 [V_d], target id minus draft id; t2d: bool [V].
    """
    listed = torch.arange(d2t.numel(), device=d2t.device) + d2t
    marked = t2d.nonzero().flatten()
    if torch.equal(d2t, marked) and not torch.equal(listed, marked):
        detail = "d2t holds target ids where target id minus draft id is wanted"
    elif listed.numel() != marked.numel():
        detail = f"t2d marks {marked.numel()} tokens, d2t lists {listed.numel()}"
    elif not torch.equal(listed, marked):
        first = int((listed != marked).nonzero()[0])
        detail = (
            f"draft token {first} is target token {int(listed[first])} by d2t "
            f"and {int(marked[first])} by t2d"
        )
    else:
        return
    raise VocabularyMapError(f"The vocabulary maps in {path} contradict each other: {detail}.")
