"""What drafter to train, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from specblock.drafters.specblock.objective import ObjectiveConfig
from specblock.training.loop.trainer import TrainConfig


@dataclass(frozen=True)
class DrafterRecipe:
    """The drafter to train; the defaults are those of the shipped one.

    ``from_scratch`` starts from random layers instead of the target's last ones, ``init`` from the
    weights and the vocabulary map of a drafter's folder, whose shape then counts.
    ``features_file``: folder that features are stored in and read from again; without one they are
    kept in main memory, or computed for every batch if ``online``.
    """

    kind: str = "specblock"  # or eagle3, parallel
    layers: int = 2
    feature_layers: tuple[int, ...] | None = None  # of the target, from 0; None: low, middle, high
    for_engines: bool = False  # None means the paper's layers, which every engine reads
    block_size: int = 4
    draft_vocab_size: int = 12288
    cached_slots: int = 1
    feature_norm: bool = True
    slot_rank: int = 192
    sink: bool = True
    target_lm_head: bool = True
    layer_shift: bool = True
    prefix_broadcast: bool = True
    from_scratch: bool = False
    init: Path | None = None
    limit: int | None = None  # answers to read
    held_out: int = 48  # answers kept aside for evaluation
    simulated: int = 8  # greedy ones of them to simulate decoding on
    warm_start_answers: int = 600
    features_file: Path | None = None
    online: bool = False
    ttt_steps: int = 7  # of EAGLE-3
    chain_positions: int = 0  # positions a sequence, of kinds without blocks; 0: all
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
