"""Checkpoints of every drafter: ``config.json`` beside ``model.safetensors``.

The vocabulary maps ``d2t`` and ``t2d`` are stored with the weights. What belongs to the target is
not: neither the embeddings, unless the config says that the drafter has its own, nor
``lm_head.weight`` where the config says that it is the target's.
The weights carry a copy of the config in their header, because two files cannot be replaced in one
step: a pair of different origin is refused instead of computing nonsense.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from specblock.drafters.config import StoredConfig
from specblock.drafters.header import sort_metadata
from specblock.drafters.vocabulary import check_vocabulary_map
from specblock.errors import CheckpointError
from specblock.kernels.eight_bit import unpack
from specblock.storage import atomic_file, write_atomically

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
EMBEDDINGS = "embed_tokens.weight"  # how the name of the target's embeddings ends
HEAD = "lm_head.weight"
# What a user may correct in config.json by hand without making the weights another drafter's.
_DESCRIPTIVE = ("target_name", "tokenizer_fingerprint")

Network = Callable[[Any], nn.Module]  # config to network


def save_checkpoint(
    model: nn.Module,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write ``model`` to ``folder``; an interrupted write leaves the former checkpoint.

    Args:
        model: a drafter network with its ``config``.
        dtype: of the stored weights; the model itself is not changed.
        extra: what to remember of its origin (JSON values), see :func:`read_extra`.

    Raises:
        CheckpointError: the model's vocabulary maps contradict each other.
        SpecBlockError: the disk is full or the folder cannot be written.
    """
    wanted = stored_shapes(model.config, type(model))
    tensors = {
        name: _cast(tensor.detach(), "cpu", dtype).contiguous()
        for name, tensor in model.state_dict().items()
        if name in wanted
    }
    check_vocabulary_map(tensors["d2t"], tensors["t2d"], Path(folder))
    write_tensors(model.config, tensors, Path(folder), extra)


def load_checkpoint(
    folder: str | Path,
    config_class: type[StoredConfig],
    network: Network,
    *,
    embeddings: Tensor,
    target_head: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Read a drafter, strictly: every weight there, none left over, every shape as configured.

    Args:
        config_class, network: what the folder is to hold: its config's class, and what builds the
            network from a config.
        embeddings: [V, H], the target's input embeddings; shared, not copied, where dtype and
            device are already right. Never trained. Own ones give way if they are the same.
        target_head: [V, H], the target's output head; needed if ``config.target_lm_head``, whose
            ``lm_head`` is a frozen copy of its rows of the draft vocabulary.

    Returns:
        The model in evaluation mode; its own weights still take gradients.

    Raises:
        CheckpointError: the folder holds no drafter, a file is damaged, names or shapes differ
            (all of them are listed), or the target's matrices have another shape.
    """
    folder = Path(folder)
    config, tensors = read_stored(folder, config_class, network)
    check_vocabulary_map(tensors["d2t"], tensors["t2d"], folder / WEIGHTS)
    state = {name: _cast(tensor, device, dtype) for name, tensor in tensors.items()}
    model = _skeleton(config, network)
    _check_matrix("input embeddings", embeddings, config)
    (name,) = (name for name in model.state_dict() if name.endswith(EMBEDDINGS))
    targets = embeddings.detach().to(device, dtype)
    state[name] = targets if torch.equal(state.get(name, targets), targets) else state[name]
    if config.target_lm_head:
        if target_head is None:
            raise CheckpointError(f"The drafter in {folder} needs the target's output head.")
        _check_matrix("output head", target_head, config)
        state[HEAD] = target_head.detach()[tensors["t2d"].to(target_head.device)].to(device, dtype)
    model.load_state_dict(state, strict=True, assign=True)
    if config.target_lm_head:
        model.lm_head.weight.requires_grad_(False)
    return model.eval()


def read_stored(
    folder: Path, config_class: type[StoredConfig], network: Network
) -> tuple[StoredConfig, dict[str, Tensor]]:
    """The config and the tensors of a drafter's folder; what does not depend on its target is
    checked, but for the vocabulary maps.

    Raises:
        CheckpointError: as :func:`load_checkpoint`.
    """
    config = read_config(folder, config_class)
    packed, metadata = read_tensors(folder / WEIGHTS)
    tensors = unpack(packed)
    check_tensors(tensors, stored_shapes(config, network), folder / WEIGHTS)
    _check_same_origin(config, metadata, folder)
    return config, tensors


def read_extra(folder: str | Path) -> dict[str, Any]:
    """What :func:`save_checkpoint` was given as ``extra``; empty where nothing was.

    Raises:
        CheckpointError: the weights are missing or damaged.
    """
    with _opened(Path(folder) / WEIGHTS) as file:
        return json.loads((file.metadata() or {}).get("extra", "{}"))


def read_config(folder: Path, config_class: type[StoredConfig]) -> StoredConfig:
    """The config of a folder; every way for it to be wrong is a :class:`CheckpointError`."""
    try:
        return config_class.load(folder)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / CONFIG} does not describe a drafter ({error}); copy it again."
        ) from error


def stored_shapes(config: StoredConfig, network: Network) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in a checkpoint of this config.

    Raises:
        CheckpointError: no network can be built from the config's values.
    """
    try:
        state = _skeleton(config, network).state_dict()
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"config.json has values that make no network ({reason}); copy it again."
        ) from error
    return {
        name: tuple(tensor.shape)
        for name, tensor in state.items()
        if (config.own_embeddings or not name.endswith(EMBEDDINGS))
        and not (config.target_lm_head and name == HEAD)
    }


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file on the CPU, and the texts in its header.

    The tensors are copies: a file changed on the disk later does not change a loaded drafter.
    """
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata() or {}


def check_tensors(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], path: Path
) -> None:
    """Raise :class:`CheckpointError` that lists missing, extra and mis-shaped names."""
    common = sorted(wanted.keys() & tensors.keys())
    kinds = {"d2t": "int64", "t2d": "bool"}
    findings = {
        "missing": sorted(wanted.keys() - tensors.keys()),
        "extra": sorted(tensors.keys() - wanted.keys()),
        "mis-shaped": [
            f"{name} is {list(tensors[name].shape)} instead of {list(wanted[name])}"
            for name in common
            if tuple(tensors[name].shape) != tuple(wanted[name])
        ],
        "of a wrong type": [
            f"{name} is {kind} instead of {kinds.get(name, 'floating point')}"
            for name in common
            for kind in [str(tensors[name].dtype).removeprefix("torch.")]
            if kinds.get(name, kind) != kind
            or (name not in kinds and not tensors[name].is_floating_point())
        ],
    }
    problems = [f"{what}: {', '.join(names)}" for what, names in findings.items() if names]
    if problems:
        raise CheckpointError(
            f"{path} does not hold the drafter that its config.json describes; "
            f"{'; '.join(problems)}."
        )


def write_tensors(
    config: StoredConfig,
    tensors: Mapping[str, Tensor],
    folder: Path,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write both files, each complete before it takes its name; config.json last."""
    text = json.dumps(config.to_dict(), indent=2)
    metadata = {"format": "pt", "config": text, "extra": json.dumps(extra or {})}
    with atomic_file(folder / WEIGHTS) as temporary:
        _write_safetensors(tensors, temporary, metadata)
        temporary.chmod(0o644)
    write_atomically(folder / CONFIG, text + "\n")


def _write_safetensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    try:
        save_file(dict(tensors), path, metadata=metadata)
        sort_metadata(path)
    except SafetensorError as error:
        # safetensors gives the system's error number as text only
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            if f"os error {number})" in str(error):
                raise OSError(number, os.strerror(number), str(path)) from error
        raise


def _skeleton(config: StoredConfig, network: Network) -> nn.Module:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return network(config)


def _cast(tensor: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """Move a weight and give it ``dtype``; the vocabulary maps keep theirs."""
    return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; copy the whole checkpoint folder.") from error
    except (SafetensorError, OSError) as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise CheckpointError(
            f"{path} is damaged or only half copied ({reason}); copy or download it again."
        ) from error


def _check_same_origin(config: StoredConfig, metadata: dict[str, str], folder: Path) -> None:
    if "config" not in metadata:
        return
    trained = type(config).from_dict(json.loads(metadata["config"]))
    changed = [
        field.name
        for field in dataclasses.fields(config)
        if field.name not in _DESCRIPTIVE
        and getattr(config, field.name) != getattr(trained, field.name)
    ]
    if changed:
        values = ", ".join(
            f"{name} is {getattr(config, name)} there but {getattr(trained, name)} in {WEIGHTS}"
            for name in changed
        )
        raise CheckpointError(f"{folder / CONFIG} belongs to other weights: {values}.")


def _check_matrix(what: str, matrix: Tensor, config: StoredConfig) -> None:
    wanted = (config.vocab_size, config.hidden_size)
    if tuple(matrix.shape) != wanted:
        raise CheckpointError(
            f"The target's {what} are {list(matrix.shape)} but the drafter was made for "
            f"{list(wanted)} (vocabulary, hidden size); choose the drafter of this target."
        )
