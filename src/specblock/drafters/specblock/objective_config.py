"""Switches of SpecBlock's training objective."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from specblock.config import StrictConfig, described


class ObjectiveConfig(StrictConfig):
    """Switches of the training objective; defaults follow the paper where the CPU allows."""

    blocks: Annotated[int, Field(ge=1)] = described(2, "Blocks trained one behind the other.")
    positions: Annotated[int, Field(ge=1)] = described(
        32, "Positions per sequence that run whole blocks; all others slot 0 alone."
    )
    slot_decay: Annotated[float, Field(ge=0, le=1)] = described(
        0.8, "Weight of slot k is this to the power k."
    )
    valid_prefix_mask: bool = described(True, "Train a slot only behind right ones.")
    mean_over_valid: bool = described(
        False,
        "A slot's loss is the mean over its valid rows alone, as in the paper; otherwise a "
        "row weighs the same in every slot.",
    )
    rank_budget: float = described(10.0, "Frequency weight of the rank loss; 0 or less is off.")
