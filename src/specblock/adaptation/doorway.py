"""How a Speculator comes to adapt."""

from __future__ import annotations

from collections.abc import Iterable

from specblock.adaptation.adapter import Adaptation
from specblock.adaptation.config import AdaptationConfig
from specblock.adaptation.day0 import beginning_for
from specblock.adaptation.folder_lock import hold
from specblock.adaptation.remembering import Remembering
from specblock.drafters.base import Budget, Drafter
from specblock.drafters.fingerprint import target_digest
from specblock.drafters.specblock.network import SpecBlockModel
from specblock.engine.speculator import Speculator
from specblock.errors import ConfigError
from specblock.target.model import Target


def adapt(speculator: Speculator, config: AdaptationConfig) -> Speculator:
    """Let ``speculator`` learn from what it serves; its ``close`` saves what it learned.

    Only a SpecBlock drafter learns; answers are remembered for all, and copied where it copies.
    Raises as :func:`adaptation_of` does.
    """
    budgets = speculator.budget, speculator.sampling_budget
    learner = adaptation_of(speculator.drafter, config, budgets, speculator.target)
    speculator.adaptation = learner
    if speculator.copies is not None:
        speculator.copies.memory = learner.memory
    return speculator


def adaptation_of(
    drafter: Drafter | None, config: AdaptationConfig, budgets: Iterable[Budget], target: Target
) -> Adaptation | Remembering:
    """Learning and remembering for a SpecBlock drafter, remembering alone for another.

    Args:
        budgets: whose calibration follows the drafter.
        target: whose feedback it is; a folder must be of the same.

    Raises :class:`ConfigError` without a drafter, where another program uses the folder, or as the
    classes do.
    """
    if drafter is None:
        raise ConfigError(
            "Without a drafter there is nothing to adapt: choose one with --drafter ('lookup' "
            "needs no weights), or leave out adapt."
        )
    if config.folder is None:
        return _made(drafter, config, budgets, target, None)
    lock = hold(config.folder)
    try:
        made = _made(drafter, config, budgets, target, target_digest(target.model))
    except BaseException:
        lock.release()
        raise
    made.lock = lock
    return made


def _made(
    drafter: Drafter,
    config: AdaptationConfig,
    budgets: Iterable[Budget],
    target: Target,
    digest: str | None,
) -> Adaptation | Remembering:
    if isinstance(getattr(drafter, "model", None), SpecBlockModel):
        budgets = [budget for budget in budgets if budget is not None]
        beginning = beginning_for(target, budgets) if drafter.untrained else None
        return Adaptation(drafter, config, budgets, digest, beginning)
    return Remembering(target.vocab_size, drafter.feature_layers, config, digest)
