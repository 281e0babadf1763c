"""What a fit has done so far, in the folder where its drafter will be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from specblock.errors import ConfigError
from specblock.storage import write_atomically
from specblock.stored import Stored

__all__ = ["AFTER", "Fit", "FitFolder", "Stage"]

_FILE = "fit.json"
_ADVICE = "name another folder with --out, or delete this one"
Stage = Literal["answers", "training", "measuring", "done"]
AFTER: dict[Stage, Stage] = {"answers": "training", "training": "measuring", "measuring": "done"}


class Fit(Stored):
    """A fit under way. ``target``: by content, as ``prompts`` (None: its own); ``seconds`` that
    answers have taken."""

    target: str
    seed: int
    prompts: str | None = None
    stage: Stage = "answers"
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class FitFolder:
    """The folder of a fit, begun or found.

    Raises:
        ConfigError: the folder is another model's, of other prompts or another seed, or something
            else is in it.
        CheckpointError: what is there cannot be read.
    """

    def __init__(self, path: Path, wanted: Fit):
        self.path, self._file = path, path / _FILE
        if not self._file.exists():
            if path.is_file() or (path.is_dir() and any(path.iterdir())):
                raise ConfigError(f"{path} holds something else than a fit: {_ADVICE}.")
            self.fit = wanted
            self._write()
            return
        self.fit = Fit.read(self._file, _ADVICE)
        names = {"target": "model", "prompts": "prompts", "seed": "seed"}
        other = [said for name, said in names.items()
                 if getattr(self.fit, name) != getattr(wanted, name)]  # fmt: skip
        if other:
            raise ConfigError(f"{path} is the fit of another {' and '.join(other)}: {_ADVICE}.")

    @property
    def prompts(self) -> Path:
        """The prompts that the model wrote."""
        return self.path / "prompts.jsonl"

    @property
    def answers(self) -> Path:
        return self.path / "answers.jsonl"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    def spent(self, seconds: float) -> None:
        """Note more seconds of answering."""
        self.fit = self.fit.model_copy(update={"seconds": self.fit.seconds + seconds})
        self._write()

    def reach(self, stage: Stage) -> None:
        self.fit = self.fit.model_copy(update={"stage": stage})
        self._write()

    def _write(self) -> None:
        write_atomically(self._file, self.fit.model_dump_json(indent=1) + "\n")
