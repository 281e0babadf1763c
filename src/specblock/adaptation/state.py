"""An adaptation on disk: whole or absent, the last two kept, resumed after any kind of end.

A state holds the weights where they differ from the drafter's own, the optimisers, the bandit with
its ledger and log, running figures, the memory of answers (token ids), and the buffer's statistics;
feedback itself is not kept. The same figures lie beside it in ``status.json`` for people and
programs.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from specblock.adaptation.feedback.signals import Signals
from specblock.adaptation.learning.arms import ordinary_config
from specblock.adaptation.stored_state import (
    ADVICE,
    AdaptationState,
    AdaptationStatus,
    check_identity,
)
from specblock.budget.survival import SurvivalModel
from specblock.budget.survival_file import save_survival
from specblock.drafters.checkpoint import stored_shapes, write_tensors
from specblock.errors import CheckpointError, ConfigError
from specblock.storage import write_atomically
from specblock.stored import restoring
from specblock.training.loop.checkpoints import load_newest, save_next

if TYPE_CHECKING:
    from specblock.adaptation.adapter import Adaptation

STATUS = "status.json"
STATES_KEPT = 2  # files: the newest may be damaged
_log = logging.getLogger("specblock")

Weights = dict[str, Tensor]


def save(adaptation: Adaptation) -> None:
    """Write the state and the status of ``adaptation`` to its folder.

    Raises :class:`specblock.errors.SpecBlockError` if the disk is full.
    """
    folder, learner = adaptation.config.folder, adaptation.learner
    state = {
        "identity": _identity(adaptation),
        "original": _changed(learner.original, learner.start),
        "current": _changed(learner.current, learner.original),
        "former": _changed(learner.former, learner.original),
        "candidate": learner.candidate and _changed(learner.candidate, learner.current),
        "optimisers": {arm: o.state_dict() for arm, o in learner.optimisers.items() if o.state},
        "bandit": adaptation.bandit.to_dict(),
        "ledger": adaptation.ledger.to_dict(),
        "costs": adaptation.costs.measured,
        "signals": adaptation.signals.to_dict(),
        "watch": {**adaptation.watch.to_dict(), "watching": adaptation.watch.watching},
        "journal": adaptation.journal.to_dict(),
        "buffer": adaptation.buffer.statistics(),
        "pays": adaptation.asking.pays,
        "gains": [adaptation.total_gain, adaptation.former_gain],
        "last_swap": adaptation.last_swap,
        "memory": None if adaptation.memory is None else adaptation.memory.to_dict(),
        "served": None if adaptation.served is None else adaptation.served.to_dict(),
        "calibration": [budget.model.to_dict() for budget in adaptation.budgets],
    }
    # torch.load takes nothing but plain values and tensors
    save_next(folder, _plain(state), STATES_KEPT)
    write_atomically(folder / STATUS, json.dumps(adaptation.status(), indent=1) + "\n")


def resume(adaptation: Adaptation) -> bool:
    """Restore the newest whole state of the folder; False if there is none.

    Raises:
        ConfigError: the state is another target's or drafter's.
        CheckpointError: every state in the folder is damaged, or the newest is something else.
    """
    folder, learner = adaptation.config.folder, adaptation.learner
    found = load_newest(folder, _log.warning)
    if found is None:
        return False
    path, values = found
    check_identity(path, _identity(adaptation), values)
    state = AdaptationState.of(values, path, ADVICE)
    with restoring(path, "original", ADVICE):
        learner.original = _completed(state.original or {}, learner.start)
    for name in ("current", "former"):
        with restoring(path, name, ADVICE):
            setattr(learner, name, _completed(getattr(state, name), learner.original))
    with restoring(path, "candidate", ADVICE):
        if state.candidate:
            learner.candidate = _completed(state.candidate, learner.current)
    if not _changed(learner.former, learner.start):
        learner.former = learner.start  # known by identity
    if adaptation.served is not None and state.served is not None:
        with restoring(path, "served", ADVICE):
            adaptation.served.restore(state.served)
    with restoring(path, "optimisers", ADVICE):
        for arm, optimiser in state.optimisers.items():
            learner.optimisers[arm].load_state_dict(optimiser)
    for name in ("bandit", "ledger", "watch", "journal", "buffer"):
        with restoring(path, name, ADVICE):
            getattr(adaptation, name).restore(getattr(state, name))
    adaptation.costs.measured = state.costs
    with restoring(path, "signals", ADVICE):
        adaptation.signals = Signals.from_dict(state.signals)
    if state.watch.get("watching"):
        adaptation.watch.begin()
    adaptation.asking.pays = adaptation.asking.pays or bool(state.pays)
    with restoring(path, "gains", ADVICE):
        adaptation.total_gain, adaptation.former_gain = state.gains
    if adaptation.memory is not None and state.memory is not None:
        with restoring(path, "memory", ADVICE):
            adaptation.memory.restore(state.memory)
    with restoring(path, "last_swap", ADVICE):
        last = state.last_swap
        adaptation.last_swap = None if last is None else (last[0], tuple(last[1]))
    with restoring(path, "calibration", ADVICE):
        for budget, kept in zip(adaptation.budgets, state.calibration, strict=False):
            budget.model = SurvivalModel.from_dict(kept)
    return True


def export(adaptation: Adaptation, folder: Path) -> None:
    """Write the adapted drafter as an ordinary one, with its calibration where there is one.

    Raises :class:`specblock.errors.SpecBlockError` if the folder cannot be written.
    """
    learner, live = adaptation.learner, adaptation.drafter.model
    if not learner.begun:
        raise ConfigError(
            "This drafter came with nothing and has not begun to draft: export it when enough was "
            "served ('specblock adapt status' says so)."
        )
    config = ordinary_config(live.config, learner.current)
    weights = {**live.state_dict(), **learner.live_weights()}
    tensors = {}
    for name in stored_shapes(config, type(live)):
        tensor = weights[name].detach().cpu()
        kind = torch.bfloat16 if tensor.is_floating_point() else tensor.dtype
        tensors[name] = tensor.to(kind).contiguous()
    status = adaptation.status()
    extra = {"adapted": {name: status[name] for name in ("attempts", "rollbacks", "gain")}}
    write_tensors(config, tensors, Path(folder), extra)
    if adaptation.budgets:
        save_survival(adaptation.budgets[0].model, Path(folder))


def read_status(folder: Path) -> dict[str, Any]:
    """What :meth:`Adaptation.status` said when the state was last saved.

    Raises :class:`CheckpointError` if there is no adaptation in ``folder``, or another file.
    """
    path = Path(folder) / STATUS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"There is no adaptation in {folder} ({path.name} cannot be read): give the folder "
            "that was named with --adapt."
        ) from error
    AdaptationStatus.of(found, path, "it is made anew when the adaptation is saved")
    return found


def _identity(adaptation: Adaptation) -> dict[str, Any]:
    """What must be the same for a state to fit: the target, the drafter that it started from."""
    learner = adaptation.learner
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(learner.start.items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
    own = {"weights": digest.hexdigest(), "rank": adaptation.config.rank}
    return {**own, "target": adaptation.target}


def _changed(weights: Weights, original: Weights) -> Weights:
    return {n: t.cpu() for n, t in weights.items() if not torch.equal(t, original[n])}


def _completed(changed: Weights, original: Weights) -> Weights:
    if not changed:
        return original
    return {
        name: changed[name].to(own) if name in changed else own for name, own in original.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
