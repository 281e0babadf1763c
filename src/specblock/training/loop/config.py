"""How to train."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from specblock.config import StrictConfig, described

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]

# what the trained weights do not depend on
_WITHOUT_EFFECT = {
    "sharded",
    "log_every",
    "eval_every_seconds",
    "save_every_seconds",
    "keep_checkpoints",
    "tensorboard",
    "wandb",
}


class TrainConfig(StrictConfig):
    """How to train.

    A step takes ``batch_sequences`` times ``accumulation`` sequences in every process. ``lr`` peaks
    after ``warmup_steps`` and falls to ``lr_floor`` of itself along a cosine over the whole run.
    ``clip`` is of the gradient's norm over all parameters and processes.
    """

    epochs: Count = described(5, "Passes over the answers.")
    batch_sequences: Count = described(8, "Sequences per forward.")
    accumulation: Count = described(1, "Forwards per optimiser step.")
    lr: Positive = described(2e-4, "Peak learning rate.")
    lr_floor: Annotated[float, Field(ge=0, le=1)] = described(
        0.05, "Share of it that is left at the end."
    )
    warmup_steps: Annotated[int, Field(ge=0)] = described(20, "Steps up to the peak.")
    betas: tuple[float, float] = described((0.9, 0.95), "AdamW's decays of both moments.")
    clip: Positive = described(0.5, "Largest norm of the gradient.")
    seed: int = described(0, "The same seed gives the same weights.")
    mixed_precision: bool = described(True, "bf16 products over fp32 weights.")
    sharded: bool = described(
        False, "Under torchrun, divide the trained weights among the processes (FSDP2)."
    )
    log_every: Count = described(20, "Steps between two lines of the log.")
    eval_every_seconds: Annotated[float, Field(ge=0)] = described(
        600.0, "Seconds between evaluations."
    )
    save_every_seconds: Annotated[float, Field(ge=0)] = described(
        300.0, "Seconds between checkpoints."
    )
    keep_checkpoints: Count = described(3, "Checkpoints kept.")
    tensorboard: bool = described(False, "Log to TensorBoard as well.")
    wandb: bool = described(False, "Log to Weights & Biases as well.")

    @field_validator("betas", mode="before")
    @classmethod
    def _numbers_of_text(cls, value: Any) -> Any:
        return tuple(value.split(",")) if isinstance(value, str) else value

    def decisive(self) -> dict[str, Any]:
        """The settings that the trained weights depend on."""
        return {name: getattr(self, name) for name in TrainConfig.model_fields
                if name not in _WITHOUT_EFFECT}  # fmt: skip
