"""Which folder holds the weights of which kind of drafter."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from specblock.config import DEFAULT_MODEL
from specblock.drafters.registry import KINDS, find_kind, read_config
from specblock.errors import CheckpointError, ConfigError

__all__ = ["find_weights", "shipped_weights"]


def find_weights(model: str, given: Sequence[str]) -> dict[str, Path]:
    """Folders by kind: what ships for ``model``, replaced by what is given.

    Args:
        given: ``KIND=FOLDER`` each, or a folder alone, whose config names its kind; ``auto`` adds
            nothing and ``none`` leaves out what ships.

    Raises:
        ConfigError: an unknown kind, or a folder of another kind than it was given for.
        CheckpointError: there is no drafter in a folder.
    """
    found = {} if "none" in given else shipped_weights(model)
    for entry in given:
        if entry in ("auto", "none"):
            continue
        kind, named, folder = entry.partition("=")
        if not named:
            kind, folder = "", entry
        if kind and find_kind(kind) is None:
            raise ConfigError(f"There is no kind of drafter '{kind}'; known: {', '.join(KINDS)}.")
        actual = read_config(Path(folder)).drafter_type
        if kind and actual != kind:
            raise ConfigError(
                f"The drafter in {folder} is of kind '{actual}', not '{kind}'; "
                f"give it as {actual}={folder}."
            )
        found[actual] = Path(folder)
    return found


def shipped_weights(model: str) -> dict[str, Path]:
    """The drafters that ship with the program for ``model``, by kind."""
    # the converted model's folder is the name with a digest behind it
    if not Path(model).name.lower().startswith(DEFAULT_MODEL):
        return {}
    found = {}
    for folder in sorted(Path(str(resources.files("specblock") / "weights")).glob("*")):
        if not folder.name.startswith(DEFAULT_MODEL):
            continue
        try:
            found.setdefault(read_config(folder).drafter_type, folder)
        except CheckpointError:
            continue  # a folder of something else
    return found
