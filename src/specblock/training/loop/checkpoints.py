"""The state of a training run on disk: numbered, whole or absent, the last few kept."""

from __future__ import annotations

import pickle
import random
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from specblock.errors import CheckpointError
from specblock.storage import atomic_file

_PREFIX, _SUFFIX = "step-", ".pt"


def save_state(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write ``step-000123.pt``; of all states in ``folder`` the newest ``keep`` stay.

    Raises :class:`specblock.errors.SpecBlockError` if the disk is full.
    """
    path = folder / f"{_PREFIX}{step:06d}{_SUFFIX}"
    with atomic_file(path) as temporary:
        torch.save(state, temporary)
    for _, old in numbered(folder)[max(1, keep) :]:
        old.unlink(missing_ok=True)
    for torn in folder.glob(f".{_PREFIX}*.tmp"):  # what a kill in the middle of a write left
        torn.unlink(missing_ok=True)
    return path


def save_next(folder: Path, state: dict[str, Any], keep: int) -> Path:
    """As :func:`save_state`, numbered one above the newest in ``folder``."""
    states = numbered(folder)
    return save_state(folder, states[0][0] + 1 if states else 1, state, keep)


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """(step, file) of every state in ``folder``, the newest first."""
    found = []
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        digits = path.name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
        if digits.isdigit():
            found.append((int(digits), path))
    return sorted(found, reverse=True)


def load_newest(folder: Path, warn: Callable[[str], None]) -> tuple[Path, Any] | None:
    """The newest file that can be read, and what it holds; None if there is none at all.

    ``warn`` is told of damaged ones. Raises :class:`CheckpointError` if all are damaged.
    """
    states = numbered(folder)
    for _, path in states:
        with suppress(CheckpointError):
            return path, load_state(path)
        warn(f"{path} is damaged: going back to the state before it")
    if states:
        raise CheckpointError(
            f"Every training state in {folder} is damaged; delete the folder to start again."
        )
    return None


def load_state(path: Path) -> Any:
    """What is in a file. Raises :class:`CheckpointError` if it is damaged or something else."""
    damaged = CheckpointError(f"{path} is damaged; delete it or copy it again.")
    if not _whole(path):
        raise damaged
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, KeyError, EOFError, ValueError) as error:
        raise damaged from error  # a whole archive of something else


def _whole(path: Path) -> bool:
    """Whether every part of the archive has its checksum (loading alone does not look)."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError):
        return False


def random_states() -> dict[str, Any]:
    """The states of Python's and PyTorch's own generators."""
    version, numbers, rest = random.getstate()
    states: dict[str, Any] = {"torch": torch.get_rng_state(), "python": [version, numbers, rest]}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Set what :func:`random_states` saved; as many GPUs as there are on both sides."""
    version, numbers, rest = states["python"]
    random.setstate((version, tuple(numbers), rest))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available():
        for index, state in enumerate(states.get("cuda", [])[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, index)
