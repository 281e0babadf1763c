"""What drafter to train, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from specblock.config import StrictConfig, described
from specblock.drafters.specblock.objective_config import ObjectiveConfig
from specblock.training.loop.config import TrainConfig

Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]


class DrafterShape(StrictConfig):
    """The drafter to train and what it is shown; the defaults are those of the shipped one."""

    kind: str = described(
        "specblock", "Drafter: specblock, eagle3, parallel, or a kind of your own."
    )
    init: Path | None = described(
        None, "Continue from the weights and the vocabulary map of this drafter."
    )
    limit: Count | None = described(None, "Only the first answers.")
    held_out: Count = described(48, "Answers kept aside for evaluation.")
    simulated: CountOrNone = described(
        8, "Greedy ones of them that decoding is simulated on, for τ."
    )
    warm_start_answers: Count = described(600, "Answers that the closed form is solved on.")
    draft_vocab_size: Count = described(12_288, "Tokens that the drafter can propose.")
    layers: Count = described(2, "Decoder layers of the drafter.")
    feature_layers: tuple[CountOrNone, ...] | None = described(
        None, "Target layers (from 0) whose outputs are the features: 14,21,27 by default for 30."
    )
    for_engines: bool = described(
        False,
        "An eagle3 drafter without what other engines lack (sink, feature norms, feature layers of "
        "one's own), to be exported: docs/engines.md.",
    )
    block_size: Count = described(4, "Tokens a block proposes (K).")
    chain_positions: CountOrNone = described(
        0, "Positions per sequence of kinds without blocks; 0 is all."
    )
    cached_slots: Count = described(1, "Slots cached of a committed position.")
    feature_norm: bool = described(True, "RMS norm on every feature layer.")
    slot_rank: CountOrNone = described(192, "Rank of a slot's own projection.")
    sink: bool = described(True, "A learned entry before position 0.")
    target_lm_head: bool = described(True, "Frozen head: the target's rows, not stored.")
    layer_shift: bool = described(True, "Between layers, slot k receives slot k - 1.")
    prefix_broadcast: bool = described(True, "Every slot reads the features, not slot 0 alone.")
    ttt_steps: Count = described(7, "Steps of training-time test (eagle3).")
    features_file: Path | None = described(
        None, "Store features in this folder and read them again; otherwise they stay in memory."
    )
    online: bool = described(False, "Compute features anew for every batch: needs no room.")

    @field_validator("feature_layers", mode="before")
    @classmethod
    def _numbers_of_text(cls, value: Any) -> Any:
        return tuple(value.split(",")) if isinstance(value, str) else value


class DrafterRecipe(DrafterShape):
    """All that :func:`specblock.training.pipeline.train_drafter` is told.

    ``from_scratch`` starts from random layers instead of the target's last ones. With ``init`` the
    shape is that of the drafter there.
    """

    from_scratch: bool = False
    objective: ObjectiveConfig = ObjectiveConfig()
    train: TrainConfig = TrainConfig()
