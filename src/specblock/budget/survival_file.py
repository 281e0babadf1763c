"""What was learned of a drafter's probabilities, kept beside its weights."""

from __future__ import annotations

import json
from pathlib import Path

from specblock.budget.survival import SurvivalModel
from specblock.errors import CheckpointError
from specblock.storage import write_atomically

FILE = "survival.json"


def save_survival(model: SurvivalModel, folder: Path) -> None:
    """Keep the model in a drafter's folder."""
    state = model.to_dict()
    state["counts"] = [
        [[round(value, 3) for value in row] for row in part] for part in state["counts"]
    ]
    write_atomically(folder / FILE, json.dumps(state) + "\n")


def load_survival(folder: Path) -> SurvivalModel:
    """The model kept in a drafter's folder; a fresh one where there is none.

    Raises :class:`specblock.errors.CheckpointError` for a file that holds something else.
    """
    path = folder / FILE
    try:
        return SurvivalModel.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return SurvivalModel.fresh()
    except (ValueError, KeyError, TypeError) as damage:
        raise CheckpointError(
            f"{path} is damaged: copy it again, or delete it to begin without."
        ) from damage
