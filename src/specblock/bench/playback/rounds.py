"""What a budget let every round do, and what that takes by a cost table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from specblock.budget.costs import CostTable
from specblock.budget.survival import Trials
from specblock.drafters.base import Budget
from specblock.tree.draft_tree import DraftTree

__all__ = ["PlayedRound", "Priced", "RecordingBudget", "priced"]


@dataclass(frozen=True)
class PlayedRound:
    """One round: ``pairs`` that the drafter's first call read (0: it was not asked), the leaves of
    every later call, the draft nodes that were verified."""

    pairs: int
    leaves: tuple[int, ...]
    nodes: int

    @property
    def calls(self) -> int:
        """Forwards of the drafter's network."""
        return bool(self.pairs) + len(self.leaves)


@dataclass(frozen=True)
class Priced:
    """Seconds of some rounds: of drafting, of the target's forwards, of everything else."""

    draft: float
    verify: float
    rest: float

    @property
    def seconds(self) -> float:
        return self.draft + self.verify + self.rest


def priced(rounds: Sequence[PlayedRound], table: CostTable) -> Priced:
    """What ``rounds`` take by ``table``. A round that verifies nothing is a plain step."""
    draft = verify = rest = 0.0
    for one in rounds:
        later = sum(map(table.draft_next_seconds, one.leaves))
        draft += table.draft_first_seconds(one.pairs) + later
        verify += table.target_seconds(one.nodes + 1)
        rest += table.overhead if one.pairs or one.nodes else 0.0
    return Priced(draft, verify, rest)


@dataclass
class RecordingBudget:
    """A budget that is listened to; all else is the budget's own.

    ``rounds``: of the text at hand.
    """

    budget: Budget
    rounds: list[PlayedRound] = field(default_factory=list)
    _pending: int = 1  # pairs that the network has not read yet
    _leaves: list[int] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.budget, name)

    def begin(self, pairs: int = 1) -> None:
        self.rounds, self._pending = [], pairs
        self.budget.begin(pairs)

    def speculate(self, copied: DraftTree | None = None) -> bool:
        self._leaves = []
        return self.budget.speculate(copied)

    def leaves(self, leaf_survival: Tensor, max_leaves: int) -> int:
        chosen = self.budget.leaves(leaf_survival, max_leaves)
        if chosen:  # all start in one forward; none, no forward
            self._leaves.append(chosen)
        return chosen

    def update(self, log_probs: Tensor, classes: Tensor, trials: Trials) -> None:
        nodes = len(log_probs) - 1
        self.rounds.append(PlayedRound(self._pending, tuple(self._leaves), nodes))
        self._pending = len(trials)
        self.budget.update(log_probs, classes, trials)

    def update_without(self, tokens: int = 1, nodes: int = 0) -> None:
        self.rounds.append(PlayedRound(0, (), nodes))
        self._pending += tokens
        self.budget.update_without(tokens, nodes)
