"""The kinds of drafters there are, by the ``drafter_type`` in their ``config.json``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specblock.drafters import checkpoint
from specblock.drafters.base import Drafter
from specblock.drafters.config import StoredConfig, read_json
from specblock.drafters.eagle3.config import Eagle3Config
from specblock.drafters.eagle3.network import Eagle3Model
from specblock.drafters.eagle3.propose import Eagle3Drafter
from specblock.drafters.eagle3.published_config import is_published
from specblock.drafters.parallel.config import ParallelConfig
from specblock.drafters.parallel.network import ParallelModel
from specblock.drafters.parallel.propose import ParallelDrafter
from specblock.drafters.specblock.config import SpecBlockConfig
from specblock.drafters.specblock.network import SpecBlockModel
from specblock.drafters.specblock.propose import SpecBlockDrafter
from specblock.errors import CheckpointError, ConfigError

__all__ = ["KINDS", "DrafterKind", "kind_of", "load_model", "make_drafter", "read_config"]


@dataclass(frozen=True)
class DrafterKind:
    """One method: the class of its config, its network, what decodes with the network, and the
    keyword settings that this takes."""

    config: type[StoredConfig]
    network: Callable[[Any], nn.Module]
    drafter: Callable[..., Drafter]
    settings: tuple[str, ...]


KINDS = {
    kind.config.drafter_type: kind
    for kind in (
        DrafterKind(
            SpecBlockConfig,
            SpecBlockModel,
            SpecBlockDrafter,
            ("blocks", "policy", "max_leaves", "max_nodes"),
        ),
        DrafterKind(Eagle3Config, Eagle3Model, Eagle3Drafter, ("depth", "top_k", "max_nodes")),
        DrafterKind(ParallelConfig, ParallelModel, ParallelDrafter, ("width", "max_nodes")),
    )
}


def kind_of(drafter_type: object) -> DrafterKind:
    """Raises :class:`CheckpointError` that lists the known types if it is none of them."""
    if not isinstance(drafter_type, str) or drafter_type not in KINDS:
        raise CheckpointError(
            f"config.json describes a drafter of type {drafter_type!r}, not one of "
            f"{', '.join(map(repr, KINDS))}; published checkpoints are turned into this format "
            "by `specblock convert`."
        )
    return KINDS[drafter_type]


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
