"""SpecBlock as a kind of drafter."""

from __future__ import annotations

from specblock.drafters.kind import DrafterKind, Recipe, Training
from specblock.drafters.objectives.workload import Workload
from specblock.drafters.specblock.config import SpecBlockConfig
from specblock.drafters.specblock.forward import run_trunk
from specblock.drafters.specblock.network import SpecBlockModel
from specblock.drafters.specblock.objective import SpecBlockObjective
from specblock.drafters.specblock.propose import SpecBlockDrafter
from specblock.drafters.specblock.start import start


def _workload(recipe: Recipe, config: SpecBlockConfig, batch: int, length: int) -> Workload:
    chosen, blocks = min(recipe.objective.positions, length), recipe.objective.blocks
    slots = config.block_size
    later = batch * chosen * slots * blocks
    seen = length * config.slots_kept + slots * (blocks + 1) // 2
    rows = batch * length
    return Workload(rows * config.slots_kept, later, blocks, seen, rows + later)


KIND = DrafterKind(
    SpecBlockConfig,
    SpecBlockModel,
    SpecBlockDrafter,
    ("blocks", "policy", "max_leaves", "max_nodes"),
    Training(
        lambda recipe, config: SpecBlockObjective(recipe.objective, config.block_size),
        lambda model, features, tokens: run_trunk(model, features, tokens).hidden[:, :, 0],
        start,
        _workload,
        {"num_hidden_layers": "layers"},
    ),
)
