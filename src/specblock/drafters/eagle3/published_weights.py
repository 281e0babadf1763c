"""The weights of a published EAGLE-3 drafter, under our names.

They lie in one file or in several with an index, in safetensors or torch's own format. Ours are the
authors' names; *speculators* call the layer ``layers.0``, and some files put all into ``model``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from specblock.drafters.checkpoint import WEIGHTS, read_tensors
from specblock.drafters.published import read_pickle, read_published
from specblock.errors import CheckpointError

PICKLED = "pytorch_model.bin"
_INDEX = ".index.json"
_MAPS = {"d2t": torch.int64, "t2d": torch.bool}
_OURS = {"layers.0.": "midlayer.", "fc_norm.": "feature_norms.", "fc_norms.": "feature_norms."}
# Copies of the target's, for training; and what follows from the config.
_IGNORED = ("verifier_norm.weight", "verifier_lm_head.weight", "rotary_emb.inv_freq")


@dataclass(frozen=True)
class PublishedWeights:
    """``tensors`` under our names, the names ``theirs`` by ours, and the file they are from.

    ``dtypes`` are the vocabulary maps' in that file, by name; ``metadata`` its header's texts, None
    where it has none.
    """

    tensors: dict[str, Tensor]
    theirs: dict[str, str]
    path: Path
    dtypes: dict[str, str]
    metadata: dict[str, str] | None

    def spelled(self, name: str) -> str:
        """One of our names as this file has or would have it."""
        if name in _MAPS:
            return name
        if name in self.theirs:
            return self.theirs[name]
        for our in _OURS.values():
            alike = [known for known in self.theirs if known.startswith(our)]
            if name.startswith(our) and alike:
                return self.theirs[alike[0]][: -len(alike[0]) + len(our)] + name[len(our) :]
        return name


def read_weights(folder: Path) -> PublishedWeights:
    """All weights of a folder; those with a meaning of their own for us, under our names.

    Raises :class:`CheckpointError` if a file is missing, damaged or not what the index says.
    """
    found, path, metadata = _read_files(folder)
    tensors: dict[str, Tensor] = {}
    theirs: dict[str, str] = {}
    for name, tensor in found.items():
        our = _our_name(name)
        if our.endswith(_IGNORED):
            continue
        if our in tensors:
            raise CheckpointError(f"{path} has {theirs[our]} and {name}, which are the same.")
        tensors[our], theirs[our] = tensor, name
    dtypes = {
        name: str(tensors[name].dtype).removeprefix("torch.") for name in _MAPS if name in tensors
    }
    for name, dtype in _MAPS.items():
        if name in tensors and not tensors[name].is_floating_point():
            tensors[name] = tensors[name].to(dtype)
    return PublishedWeights(tensors, theirs, path, dtypes, metadata)


def _our_name(name: str) -> str:
    name = name.removeprefix("model.")
    for their, our in _OURS.items():
        if name.startswith(their):
            return our + name.removeprefix(their)
    return name


Read = tuple[dict[str, Tensor], dict[str, str] | None]  # tensors, and the header's texts


def _read_files(folder: Path) -> tuple[dict[str, Tensor], Path, dict[str, str] | None]:
    for name in (WEIGHTS, PICKLED):
        path, index = folder / name, folder / (name + _INDEX)
        if path.exists():
            tensors, metadata = _read_file(path)
            return tensors, path, metadata
        if index.exists():
            tensors, metadata = _read_shards(index)
            return tensors, index, metadata
    return _read_file(folder / WEIGHTS)[0], folder / WEIGHTS, None  # says that it is missing


def _read_file(path: Path) -> Read:
    if path.suffix == ".safetensors":
        tensors, metadata = read_tensors(path)
        return tensors, metadata or None
    # copies of their own: tensors that share memory cannot be stored
    tensors = {
        str(name): value.clone(memory_format=torch.contiguous_format)
        for name, value in read_pickle(path).items()
        if isinstance(value, Tensor)
    }
    return tensors, None


def _read_shards(index: Path) -> Read:
    places = read_published(index).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in places.values()
    ):
        raise CheckpointError(f"{index} does not say which file holds what; copy it again.")
    found: dict[str, Tensor] = {}
    metadata: dict[str, str] | None = None
    for file in sorted(set(places.values())):
        tensors, metadata = _read_file(index.parent / file)
        found |= tensors
    missing = sorted(places.keys() - found.keys())
    if missing:
        raise CheckpointError(
            f"The files that {index} names do not hold {', '.join(missing)}; copy them again."
        )
    return found, metadata
