"""The kinds of drafters there are, by the ``drafter_type`` in their ``config.json``.

A kind from outside joins by :func:`register`, or by the entry point of an installed package, which
is read when its name is first asked for (docs/add-a-drafter.md)::

    [project.entry-points."specblock.drafters"]
    bigram = "my_package.bigram:KIND"
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specblock.drafters import checkpoint
from specblock.drafters.base import Drafter
from specblock.drafters.config import StoredConfig, read_json
from specblock.drafters.eagle3.kind import KIND as EAGLE3
from specblock.drafters.eagle3.published_config import is_published
from specblock.drafters.kind import DrafterKind
from specblock.drafters.parallel.kind import KIND as PARALLEL
from specblock.drafters.specblock.kind import KIND as SPECBLOCK
from specblock.errors import CheckpointError, ConfigError

__all__ = [
    "KINDS",
    "DrafterKind",
    "find_kind",
    "kind_of",
    "load_model",
    "make_drafter",
    "read_config",
    "register",
]

KINDS: dict[str, DrafterKind] = {kind.name: kind for kind in (SPECBLOCK, EAGLE3, PARALLEL)}
_ENTRY_POINTS = "specblock.drafters"


def register(kind: DrafterKind) -> None:
    """Make a kind known by its name, to training, decoding and benchmarks of this program.

    Raises :class:`ConfigError` if another kind has the name.
    """
    if KINDS.setdefault(kind.name, kind) is not kind:
        raise ConfigError(f"There is a drafter kind {kind.name!r} already: choose another name.")


def find_kind(name: str) -> DrafterKind | None:
    """The kind of this name, if need be of an installed package; None where there is none."""
    if name not in KINDS:
        for point in entry_points(group=_ENTRY_POINTS, name=name):
            register(point.load())
    return KINDS.get(name)


def kind_of(drafter_type: object) -> DrafterKind:
    """Raises :class:`CheckpointError` that lists the known types if it is none of them."""
    kind = find_kind(drafter_type) if isinstance(drafter_type, str) else None
    if kind is None:
        raise CheckpointError(
            f"config.json describes a drafter of type {drafter_type!r}, not one of "
            f"{', '.join(map(repr, KINDS))}; published checkpoints are turned into this format "
            "by `specblock convert`."
        )
    return kind


def read_config(folder: str | Path) -> StoredConfig:
    """The config of a drafter's folder, of whatever kind it is.

    Raises :class:`CheckpointError` if there is none, it is damaged, of an unknown kind, or in a
    published layout.
    """
    folder = Path(folder)
    data = read_json(folder)
    specblock = "specblock" in str(data.get("architectures")).lower()
    if "drafter_type" not in data and (specblock or is_published(data)):
        raise CheckpointError(
            f"{folder} holds a drafter as others publish it; run `specblock convert {folder} OUT "
            "--target MODEL` and use OUT."
        )
    kind = kind_of(data.get("drafter_type"))
    return checkpoint.read_config(folder, kind.config)


def load_model(
    folder: str | Path,
    *,
    embeddings: Tensor,
    target_head: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """The network in a drafter's folder, of whatever kind it is; arguments and errors as in
    :func:`specblock.drafters.checkpoint.load_checkpoint`."""
    folder = Path(folder)
    kind = kind_of(read_config(folder).drafter_type)
    return checkpoint.load_checkpoint(
        folder,
        kind.config,
        kind.network,
        embeddings=embeddings,
        target_head=target_head,
        dtype=dtype,
        device=device,
    )


def make_drafter(model: nn.Module, **settings: Any) -> Drafter:
    """What decodes with ``model``.

    Raises :class:`ConfigError` for a setting that drafters of its kind do not have.
    """
    kind = kind_of(model.config.drafter_type)
    unknown = [name for name in settings if name not in kind.settings]
    if unknown:
        raise ConfigError(
            f"A drafter of type {model.config.drafter_type!r} has no setting "
            f"{', '.join(unknown)}; it has {', '.join(kind.settings)}."
        )
    return kind.drafter(model, **settings)
