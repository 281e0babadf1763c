"""What real rounds take beyond the calls that were timed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from specblock.budget.costs import CostTable
from specblock.drafters.base import Drafter, FixedBudget
from specblock.engine.rounds import decode
from specblock.engine.statistics import GenerationStats
from specblock.kernels.deadline import Deadline
from specblock.target.model import Target
from specblock.tree.draft_tree import DraftTree
from specblock.tree.sampling import SamplingParams

PLAIN, FIRST, ALL = range(3)  # rounds: without the drafter, of its first call, of all its calls
_NODES, _LEAVES, _GROUP, _TURNS = 8, 2, 6, 5  # of a tree; rounds in a group; groups of a kind
_LEAST, _MOST = 0.5, 2.0  # times what a later call took alone; beyond that something was amiss


def typical(seconds: Sequence[float]) -> float:
    """The first quartile: noise only adds, and the least of a few is luck."""
    return sorted(seconds)[len(seconds) // 4]


class TakingTurns(FixedBudget):
    """Groups of plain rounds, of rounds with the drafter's first call, and with all its calls.

    ``asked``: by the table, the seconds of the later calls of the newest round.
    """

    def __init__(self, nodes: int, leaves: int, group: int, costs: CostTable):
        super().__init__(nodes, leaves)
        self.group, self.costs = group, costs
        self.rounds, self.asked = 0, 0.0

    @property
    def kind(self) -> int:
        return (self.rounds - 1) // self.group % 3

    @property
    def settled(self) -> bool:
        """Not the first round of a group, which pays for the change."""
        return self.rounds % self.group != 1

    def speculate(self, copied: DraftTree | None = None) -> bool:
        self.rounds, self.asked = self.rounds + 1, 0.0
        return self.kind != PLAIN

    def leaves(self, leaf_survival: torch.Tensor, max_leaves: int) -> int:
        chosen = super().leaves(leaf_survival, max_leaves) if self.kind == ALL else 0
        self.asked += self.costs.draft_next_seconds(chosen)
        return chosen


def fitted_to_rounds(
    table: CostTable,
    target: Target,
    drafter: Drafter,
    prompt: Sequence[int],
    deadline: Deadline | None = None,
) -> CostTable:
    """``table`` with the overhead of a round and with later calls as long as they are in a round.

    A call that is timed over and over finds its weights in the cache, where in a round the target's
    have been. Compared are ratios to a plain round, in real rounds of three kinds in turn and in
    the table, so that a machine whose speed has changed since does not matter. Ends early at
    ``deadline``.
    """
    deadline = deadline or Deadline()
    budget, stats = TakingTurns(_NODES, _LEAVES, _GROUP, table), GenerationStats()
    seconds: dict[int, list[float]] = {PLAIN: [], FIRST: [], ALL: []}
    later: list[float] = []
    before = 0.0
    for _ in decode(target, drafter, budget, list(prompt), SamplingParams(), 512, stats):
        if stats.rounds and budget.settled:
            seconds[budget.kind].append(stats.seconds - before)
            later += [budget.asked] if budget.kind == ALL else []
        before = stats.seconds
        if stats.rounds >= 3 * _GROUP * _TURNS or not deadline.left:
            break
    if not all(seconds.values()):
        return table  # the context was full before all kinds had been seen
    scale = table.target_seconds(1) / typical(seconds[PLAIN])
    first, every = (scale * typical(seconds[kind]) for kind in (FIRST, ALL))
    overhead = max(0.0, first - table.round_seconds(1, (), _NODES))
    draft_next, asked = table.draft_next, typical(later)
    if asked > 0:
        longer = min(_MOST, max(_LEAST, (every - first) / asked))
        draft_next = {count: longer * taken for count, taken in draft_next.items()}
    return replace(table, draft_next=draft_next, overhead=overhead)
