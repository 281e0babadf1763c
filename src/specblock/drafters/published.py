"""Reading what others publish: their configs, and weights in torch's own format."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import torch

from specblock.drafters.checkpoint import CONFIG
from specblock.errors import CheckpointError

# What torch's restricted reader raises on bytes that are no archive of tensors.
_UNREADABLE = (
    *(pickle.UnpicklingError, struct.error, EOFError, OSError, RuntimeError),
    *(ValueError, LookupError, TypeError, AttributeError),
)


def read_pickle(path: Path) -> dict[str, Any]:
    """The tensors in a file of ``torch.save``; nothing else in it is ever executed.

    Returns an empty dict for an archive of another kind. Raises :class:`CheckpointError` if the
    file is damaged or holds more than tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors; copy or download it again."
        ) from error
    return content if isinstance(content, dict) else {}


def read_published(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; raises :class:`CheckpointError` where there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{path} is missing; check the path.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON; copy it again.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a model's config; check the path.")
    return data


def target_layer_count(path: str | Path) -> int:
    """Number of decoder layers in the ``config.json`` of a target (the file or its folder).

    Raises:
        CheckpointError: there is no such file, or it does not say.
    """
    path = Path(path)
    if path.is_dir():
        path = path / CONFIG
    data = read_published(path)
    text = data.get("text_config")
    count = {**data, **(text if isinstance(text, dict) else {})}.get("num_hidden_layers")
    if not isinstance(count, int):
        raise CheckpointError(
            f"{path} does not say how many layers the target has (num_hidden_layers); "
            "give --target-layers."
        )
    return count


def check_request(source: Path, out: Path, target_layers: int | None) -> None:
    """Raise :class:`CheckpointError` for a conversion that lacks a number or would destroy."""
    if target_layers is None:
        raise CheckpointError(
            "A published checkpoint does not say how many layers its target has, and the feature "
            "layers follow from it; give --target-layers (32 for Llama-3.1-8B, 36 for Qwen3-8B)."
        )
    if out.resolve() == source.resolve():
        raise CheckpointError(
            f"Converting in place would overwrite {source / CONFIG}; name another output folder."
        )
