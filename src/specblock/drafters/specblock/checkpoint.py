"""Checkpoints of the SpecBlock drafter; the format is that of all drafters."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from specblock.drafters import checkpoint
from specblock.drafters.checkpoint import read_extra, save_checkpoint
from specblock.drafters.specblock.config import SpecBlockConfig
from specblock.drafters.specblock.network import SpecBlockModel

__all__ = ["load_checkpoint", "read_config", "read_extra", "save_checkpoint", "stored_shapes"]

EMBEDDINGS = "input_layer.embed_tokens.weight"


def load_checkpoint(
    folder: str | Path,
    *,
    embeddings: Tensor,
    target_head: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> SpecBlockModel:
    """:func:`specblock.drafters.checkpoint.load_checkpoint` of a SpecBlock drafter."""
    return checkpoint.load_checkpoint(
        folder,
        SpecBlockConfig,
        SpecBlockModel,
        embeddings=embeddings,
        target_head=target_head,
        dtype=dtype,
        device=device,
    )


def read_config(folder: Path) -> SpecBlockConfig:
    """The config of a folder; every way for it to be wrong is a :class:`CheckpointError`."""
    return checkpoint.read_config(folder, SpecBlockConfig)


def stored_shapes(config: SpecBlockConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in a checkpoint of this config."""
    return checkpoint.stored_shapes(config, SpecBlockModel)
