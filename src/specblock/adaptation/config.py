"""How a drafter adapts while it serves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from specblock.config import StrictConfig

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]

MEMORY = "memory"  # the policy that updates no weights
IDLE, BETWEEN = "idle", "between-requests"  # where updates run


class AdaptationConfig(StrictConfig):
    """Settings of :class:`specblock.adaptation.adapter.Adaptation`; see ``docs/adaptation.md``.

    ``folder`` keeps the state and is resumed from; without one nothing outlasts the process.
    ``policy``: the bandit, or for comparison always the same arm, or the memory of answers alone.
    ``where`` updates run: in small steps in the gaps between requests (``"idle"``, what programs
    that serve choose), or at once between two requests. Times are wall-clock seconds.
    """

    folder: Path | None = None
    policy: Literal["bandit", "memory", "always-heads", "always-last-layer", "always-full"] = (
        "bandit"
    )
    seed: Annotated[int, Field(ge=0)] = 0
    where: Literal["idle", "between-requests"] = "between-requests"
    save_every_seconds: Annotated[float, Field(ge=0)] = 60.0
    memory_mib: Annotated[float, Field(ge=0)] = 16.0  # of answers to copy from, 132 bytes a token
    # feedback
    # of the cheapest update's seconds: with less to spend none is near, and none is prepared for
    collect_share: Annotated[float, Field(ge=0)] = 0.5
    buffer_mib: Positive = 256.0
    held_out_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    half_life_requests: Positive = 128.0  # of a record's weight when training records are drawn
    max_prompt_pairs: Count = 256
    max_answer_pairs: Count = 512
    target_top: Count = 32  # probabilities kept of every target distribution
    # an update
    min_requests: Count = 8  # new ones between two decisions
    steps: Count = 16
    sequences: Count = 8  # records in a step
    positions: Count = 32  # positions per record that run a whole block
    rank: Count = 16  # of the correction of the output head
    # ten times as much spoils a trained drafter in ten steps (docs/experiments.md, 45)
    heads_lr: Positive = 1e-4
    layers_lr: Positive = 3e-5
    fresh_lr: Positive = 2e-4  # of all that is trained of a drafter that came with nothing
    clip: Positive = 0.5
    mixed_precision: bool = True
    max_update_seconds: Positive = 60.0
    # judging it
    judge_records: Count = 24
    judge_positions: Count = 32
    accept_z: Annotated[float, Field(ge=0)] = 0.5  # standard errors that it must be better by
    watch_rounds: Count = 256
    watch_z: Positive = 3.0  # standard errors of a drop of the accepted length that rolls back
    # deciding on it
    horizon_tokens: Count = 100_000
    prior_gain: Annotated[float, Field(ge=-1, lt=1)] = 0.02  # expected of an arm never tried
    exploration_seconds: Annotated[float, Field(ge=0)] = 1.0
    exploration_share: Annotated[float, Field(ge=0, le=1)] = 0.005  # of the decoding seconds
    first_update_seconds: Positive = 12.0  # what updating the heads is taken to cost at first
    discount: Share = 0.99  # what a decision leaves of the weight of earlier experience

    @property
    def step_records(self) -> int | None:
        """Most records of one step of an update, which is lost where a request comes; None: as many
        as are quickest."""
        return 1 if self.where == IDLE else None
