"""What ``fit`` can be told, and how its minutes are spent."""

from __future__ import annotations

from pathlib import Path

from specblock.config import Placement, described
from specblock.training.settings import Positive, RunSettings

__all__ = [
    "ANSWERS_SHARE",
    "MEASURING_SHARE",
    "TRAINING_SHARE",
    "FitSettings",
]

# Shares of the minutes. New answers are worth several times as much as another pass over old ones
# (docs/experiments.md, 29), and a pass takes about as long as answering. What is left goes to
# loading, features, the closed form and calibration.
ANSWERS_SHARE, TRAINING_SHARE, MEASURING_SHARE = 0.4, 0.3, 0.15


class FitSettings(Placement, RunSettings):
    """From a model to its drafter."""

    minutes: Positive = described(10.0, "How long it may take, about.")
    prompts: Path | None = described(
        None, "Prompts like those that will be asked; without, the model writes its own."
    )
    out: Path | None = described(
        None, "Folder of the drafter, drafter-MODEL by default; a run that was cut off goes on."
    )
    seed: int = described(0, "The same seed draws the same prompts and answers.")

    @property
    def folder(self) -> Path:
        """Where the drafter goes."""
        return self.out or Path(f"drafter-{Path(self.model).name.lower()}")
