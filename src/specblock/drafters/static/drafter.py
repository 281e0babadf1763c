"""A drafter whose forwards have static shapes: the same trees, recorded where there is a GPU.

The drafter itself decides everything as ever; only the forwards that its coroutine asks for are
computed in static shapes. The first read of a prompt, and what is larger than the largest size,
stays dynamic.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from specblock.drafters.base import Budget, Drafter
from specblock.drafters.eagle3.rows import Rows
from specblock.drafters.proposing.proposal import Proposal
from specblock.drafters.proposing.together import Drafting, Forward, alone
from specblock.drafters.specblock.entries import Entries
from specblock.drafters.static.blocks import BlocksShape, StaticBlocks
from specblock.drafters.static.levels import LevelShape, StaticLevel
from specblock.kernels.recording import Recorder
from specblock.tree.draft_tree import DraftTree

__all__ = ["StaticDrafter"]

SIZES = (8, 16, 28)  # conditions of a forward: pairs of a round, nodes of a level, leaves
_ROUND_UP = 1024  # positions of the cache come in such steps: its address then seldom changes
_SPARE = 1  # entries that rows beyond a forward write to
# how the forwards of a kind of drafter become static
_KINDS: dict[type, tuple[Any, Any]] = {
    Entries: (BlocksShape.of, StaticBlocks),
    Rows: (LevelShape.of, StaticLevel),
}


@dataclass(frozen=True, eq=False)
class _StaticForward:
    """A forward that is computed by itself, in a static shape."""

    shape: StaticBlocks | StaticLevel
    own: Forward

    @property
    def kind(self) -> Hashable:
        return id(self)

    @staticmethod
    def compute(forwards: Sequence[_StaticForward]) -> list[Any]:
        return [forward.shape.run(forward.own) for forward in forwards]


class StaticDrafter:
    """A :class:`specblock.drafters.base.Drafter` around one of EAGLE-3 or SpecBlock.

    Attributes:
        recorder: says whether forwards are recorded as CUDA graphs.
    """

    def __init__(self, drafter: Drafter):
        self.drafter = drafter
        self.recorder = Recorder(drafter.model.norm.weight.device)
        self._shapes: dict[Hashable, StaticBlocks | StaticLevel] = {}
        self._address = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.drafter, name)

    def another(self) -> Self:
        """A drafter of the same network and settings for another text, to be used beside this."""
        return type(self)(self.drafter.another())

    def reset(self, capacity: int) -> None:
        """Start an empty sequence of up to ``capacity`` positions."""
        self.drafter.reset(-(-(capacity + _SPARE) // _ROUND_UP) * _ROUND_UP)
        if self.drafter._cache.data_ptr() != self._address:
            self._address, self._shapes = self.drafter._cache.data_ptr(), {}

    def propose(
        self, root_token: int, budget: Budget, copied: DraftTree | None = None
    ) -> DraftTree:
        """The tree of a text that is alone, as large as the budget says."""
        return alone(self.drafting(root_token, budget, copied)).chosen(budget)

    def drafting(
        self, root_token: int, budget: Budget, copied: DraftTree | None = None
    ) -> Drafting[Proposal]:
        """The drafter's own coroutine, its forwards made static."""
        inner, given = self.drafter.drafting(root_token, budget, copied), None
        while True:
            try:
                forward = inner.send(given)
            except StopIteration as stop:
                return stop.value
            given = yield self._static(forward)

    def _static(self, forward: Forward) -> Forward:
        shape_of, build = _KINDS[type(forward)]
        shape = shape_of(forward, SIZES)
        if shape is None or self._missing_room(forward):
            return forward
        if shape not in self._shapes:
            self._shapes[shape] = build(shape, forward, self.recorder)
        return _StaticForward(self._shapes[shape], forward)

    def _missing_room(self, forward: Entries | Rows) -> bool:
        entries: Tensor = forward.cache
        return forward.start + len(forward.positions) > entries.shape[-2] - _SPARE
