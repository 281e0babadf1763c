"""EAGLE-3 as a kind of drafter."""

from __future__ import annotations

from specblock.drafters.eagle3.config import Eagle3Config
from specblock.drafters.eagle3.network import Eagle3Model
from specblock.drafters.eagle3.objective import Eagle3Objective, run_trunk
from specblock.drafters.eagle3.propose import Eagle3Drafter
from specblock.drafters.eagle3.start import start
from specblock.drafters.kind import DrafterKind, Recipe, Training
from specblock.drafters.objectives.workload import Workload


def _objective(recipe: Recipe, _config: Eagle3Config) -> Eagle3Objective:
    return Eagle3Objective(recipe.ttt_steps, recipe.objective.slot_decay, recipe.chain_positions)


def _workload(recipe: Recipe, _config: Eagle3Config, batch: int, length: int) -> Workload:
    steps, rows = recipe.ttt_steps, batch * length
    later = batch * min(recipe.chain_positions or length, length) * (steps - 1)
    return Workload(rows, later, steps - 1, length + steps // 2, rows + later)


KIND = DrafterKind(
    Eagle3Config,
    Eagle3Model,
    Eagle3Drafter,
    ("depth", "top_k", "max_nodes"),
    Training(
        _objective,
        lambda model, features, tokens: run_trunk(model, features, tokens).hidden,
        start,
        _workload,
    ),
)
