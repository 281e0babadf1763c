"""Parallel heads as a kind of drafter."""

from __future__ import annotations

from specblock.drafters.kind import DrafterKind, Recipe, Training
from specblock.drafters.objectives.workload import Workload
from specblock.drafters.parallel.config import ParallelConfig
from specblock.drafters.parallel.network import ParallelModel
from specblock.drafters.parallel.objective import ParallelObjective, run_trunk
from specblock.drafters.parallel.propose import ParallelDrafter
from specblock.drafters.parallel.start import start


def _objective(recipe: Recipe, config: ParallelConfig) -> ParallelObjective:
    decay = recipe.objective.slot_decay
    return ParallelObjective(config.positions, decay, recipe.chain_positions)


def _workload(recipe: Recipe, config: ParallelConfig, batch: int, length: int) -> Workload:
    rows = batch * min(recipe.chain_positions or length, length) * (config.positions - 1)
    return Workload(batch * length, 0, 0, 0, batch * length + rows)


KIND = DrafterKind(
    ParallelConfig,
    ParallelModel,
    ParallelDrafter,
    ("width", "max_nodes"),
    Training(
        _objective,
        run_trunk,
        start,
        _workload,
        {"num_hidden_layers": "layers", "positions": "block_size"},
    ),
)
