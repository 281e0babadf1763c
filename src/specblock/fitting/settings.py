"""What ``fit`` can be told, and how its minutes are spent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from specblock.training.settings import DEFAULT_MODEL, Positive, RunSettings, described

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


class FitSettings(RunSettings):
    """From a model to its drafter."""

    model: str = described(DEFAULT_MODEL, "Embedded name, folder, GGUF file or hub id.")
    minutes: Positive = described(10.0, "How long it may take, about.")
    prompts: Path | None = described(
        None, "Prompts like those that will be asked; without, the model writes its own."
    )
    out: Path | None = described(
        None, "Folder of the drafter, drafter-MODEL by default; a run that was cut off goes on."
    )
    seed: int = described(0, "The same seed draws the same prompts and answers.")
    dtype: str = described("float32", "float32, bfloat16, float16 or auto.")
    device: str = described("cpu", "A torch device such as cpu or cuda.")
    threads: Annotated[int, Field(ge=1)] | None = described(None, "CPU threads.")

    @property
    def folder(self) -> Path:
        """Where the drafter goes."""
        return self.out or Path(f"drafter-{Path(self.model).name.lower()}")
