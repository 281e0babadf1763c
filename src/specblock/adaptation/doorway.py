"""The adaptation that a drafter can have."""

from __future__ import annotations

from collections.abc import Iterable

from specblock.adaptation.adapter import Adaptation
from specblock.adaptation.config import AdaptationConfig
from specblock.adaptation.remembering import Remembering
from specblock.drafters.base import Budget, Drafter
from specblock.drafters.specblock.model import SpecBlockModel
from specblock.errors import ConfigError


def adaptation_of(
    drafter: Drafter | None, config: AdaptationConfig, budgets: Iterable[Budget], vocabulary: int
) -> Adaptation | Remembering:
    """Learning and remembering for a SpecBlock drafter, remembering alone for another.

    Args:
        budgets: whose calibration follows the drafter. vocabulary: tokens of the target.

    Raises :class:`ConfigError` without a drafter, or as the classes do.
    """
    if drafter is None:
        raise ConfigError(
            "Without a drafter there is nothing to adapt: choose one with --drafter ('lookup' "
            "needs no weights), or leave out adapt."
        )
    if isinstance(getattr(drafter, "model", None), SpecBlockModel):
        return Adaptation(drafter, config, budgets)
    return Remembering(vocabulary, drafter.feature_layers, config)
