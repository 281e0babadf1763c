"""A finished drafter on the target's answers: accuracy by slot, and decoding played back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from specblock.budget.controller import BudgetController
from specblock.budget.costs import CostTable
from specblock.budget.survival_file import load_survival
from specblock.drafters.base import FixedBudget
from specblock.drafters.lookup.copies import TextCopies
from specblock.drafters.lookup.memory import TextMemory
from specblock.drafters.registry import KINDS, read_config
from specblock.engine.loading import load_drafter
from specblock.errors import SpecBlockError
from specblock.training.data.answers import Answer
from specblock.training.distributed.workers import Workers
from specblock.training.evaluate.curve import former_states
from specblock.training.evaluate.evaluator import Evaluator, TrainingLoss
from specblock.training.evaluate.playback import play, shortened
from specblock.training.evaluate.simulate import greedy_answers
from specblock.training.features.corpus import read_all
from specblock.training.features.reader import FeatureReader
from specblock.training.kinds import training_kind
from specblock.training.recipe import DrafterRecipe
from specblock.tree.policy import GrowthPolicy


@dataclass(frozen=True)
class Setting:
    """How decoding is played back.

    Attributes:
        max_new_tokens: of each answer.
        nodes, leaves: the fixed budget.
        rank_branching: False leaves SpecBlock's rank head out (an ablation of the paper).
        costs: also play the measured budget back, with these.
        states: also judge so many states that the drafter's training kept.
    """

    max_new_tokens: int = 64
    nodes: int = 60
    leaves: int = 28
    rank_branching: bool = True
    costs: CostTable | None = None
    states: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate_drafter(
    folder: Path, network: nn.Module, tokenizer, answers: list[Answer], setting: Setting
) -> dict[str, Any]:
    """Figures of the drafter in ``folder`` for ``network``.

    Returns:
        ``accuracy_b1s0`` and so on: share of slots on the chain whose most likely token is the
        target's; ``tau`` at the fixed budget over ``greedy_answers`` of the ``answers``; with costs
        ``played_back``, ``played_back_with_copies`` and ``played_back_with_memory``, where the
        answers before are copied from as well, as :meth:`Playback.row`; with states
        ``curve``, accuracies and tau of each with its step and the answer tokens seen.

    Raises:
        SpecBlockError: no answer is the target's at temperature 0.
        CheckpointError: the drafter does not fit the network, or is damaged.
    """
    drafter = load_drafter(folder, network, tokenizer, **_policy(setting, folder))
    device = network.device
    model = drafter.model
    reader = FeatureReader(network, drafter.feature_layers, model.t2d)
    sequences = read_all(reader, answers)
    greedy = greedy_answers(sequences, model.d2t, len(sequences))
    if not greedy:
        raise SpecBlockError(
            "None of the answers is the target's at temperature 0; draw some with `specblock "
            "regenerate --temperatures 0:1 --dtype float32`."
        )
    played = [shortened(answer, setting.max_new_tokens) for answer in greedy]

    def judged() -> dict[str, float]:
        fixed = play(drafter, played, FixedBudget(setting.nodes, setting.leaves), device=device)
        return {**_accuracies(model, sequences), "tau": round(fixed.accepted_length, 3)}

    found = {"answers": len(answers), "greedy_answers": len(greedy), **judged()}
    if setting.costs is not None:
        memory = TextMemory(layers=len(drafter.feature_layers))
        for name, copies in (
            ("played_back", None),
            ("played_back_with_copies", TextCopies()),
            ("played_back_with_memory", TextCopies(memory=memory)),
        ):
            budget = BudgetController(setting.costs, load_survival(folder))
            found[name] = play(drafter, played, budget, copies, device=device).row()
    if setting.states:
        kept = former_states(folder, model, setting.states)
        found["curve"] = [{**seen, **judged()} for seen in kept]
    return found


def _policy(setting: Setting, folder: Path) -> dict[str, Any]:
    known = KINDS[read_config(folder).drafter_type].settings
    if setting.rank_branching or "policy" not in known:
        return {}
    return {"policy": GrowthPolicy(rank_branching=False)}


def _accuracies(model: nn.Module, sequences: list) -> dict[str, float]:
    kind = model.config.drafter_type
    objective = training_kind(kind).objective(DrafterRecipe(kind=kind), model.config)
    network = TrainingLoss(model, objective, mixed_precision=False)
    workers = Workers(cpu=next(model.parameters()).device.type == "cpu")
    return Evaluator(sequences)(network, workers).row()
