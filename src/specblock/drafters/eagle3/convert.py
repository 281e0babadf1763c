"""Turns a published EAGLE-3 checkpoint, the authors' layout or that of *speculators*, into ours.

The layers that the features come from, where a checkpoint does not name them, follow from the
target's number of layers, which therefore has to be given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specblock.drafters.checkpoint import (
    CONFIG,
    HEAD,
    check_tensors,
    stored_shapes,
    write_tensors,
)
from specblock.drafters.eagle3.config import Eagle3Config
from specblock.drafters.eagle3.network import Eagle3Model
from specblock.drafters.eagle3.origin import PublishedOrigin
from specblock.drafters.eagle3.published_config import (
    flat,
    is_published,
    named_layers,
    network_fields,
)
from specblock.drafters.eagle3.published_weights import PublishedWeights, read_weights
from specblock.drafters.published import check_request, read_published
from specblock.drafters.vocabulary import check_vocabulary_map
from specblock.errors import CheckpointError

__all__ = ["convert_eagle3", "is_eagle3"]


def is_eagle3(source: str | Path) -> bool:
    """Whether the folder's config is that of a published EAGLE-3 drafter; False if unreadable."""
    try:
        return is_published(read_published(Path(source) / CONFIG))
    except CheckpointError:
        return False


def convert_eagle3(
    source: str | Path,
    out: str | Path,
    *,
    target_layers: int | None,
    feature_layers: tuple[int, ...] | None = None,
    tokenizer_fingerprint: str = "",
    target_name: str = "",
) -> Eagle3Config:
    """Read a published layout in ``source``, write ours to ``out``; weights keep their dtype.

    Embeddings among the weights are stored: whether they are the target's shows when the two meet
    (:func:`specblock.drafters.checkpoint.load_checkpoint`).

    Args:
        target_layers: number of decoder layers of the target.
        feature_layers: 0-based layers whose outputs are the features; None takes those that the
            checkpoint names, or else the paper's, layers 1, n/2 - 1 and n - 4 of a target of n.
        tokenizer_fingerprint: of the target's tokenizer; empty leaves it out.
        target_name: recorded for error messages.

    Returns:
        The config written.

    Raises:
        CheckpointError: ``target_layers`` is not given, a file is missing or damaged, the network
            is one that this version cannot run, or weights differ (all names are listed).
        SpecBlockError: the disk is full or ``out`` cannot be written.
    """
    source, out = Path(source), Path(out)
    published = read_published(source / CONFIG)
    check_request(source, out, target_layers)
    found = flat(published)
    weights = read_weights(source)
    network = network_fields(found, weights.tensors)
    if HEAD not in weights.tensors and network["draft_vocab_size"] == network["vocab_size"]:
        network["target_lm_head"] = True
    config = Eagle3Config(
        target_layers=target_layers,
        feature_layers=feature_layers or _published_layers(found, target_layers, weights),
        tokenizer_fingerprint=tokenizer_fingerprint,
        target_name=target_name,
        **network,
    )
    tensors = weights.tensors | _vocabulary_maps(config, weights.tensors)
    _check(config, tensors, weights)
    files = PublishedOrigin.of_files((source / CONFIG).read_text(encoding="utf-8"), weights)
    origin = {"converted_from": "published", "architectures": published.get("architectures")}
    write_tensors(config, tensors, out, origin | files.to_extra())
    return config


def _published_layers(
    found: dict[str, Any], target_layers: int, weights: PublishedWeights
) -> tuple[int, ...]:
    """The feature layers of a published folder as we count; raises as :func:`named_layers`."""
    fc = weights.tensors.get("fc.weight")
    if fc is None or fc.ndim != 2:
        raise CheckpointError(f"{weights.path} lacks the matrix fc.weight; copy it again.")
    return named_layers(found, target_layers, fc.shape[1] // found["hidden_size"])


def _check(config: Eagle3Config, tensors: dict[str, Tensor], weights: PublishedWeights) -> None:
    wanted = stored_shapes(config, Eagle3Model)
    check_tensors(
        {weights.spelled(name): tensor for name, tensor in tensors.items()},
        {weights.spelled(name): shape for name, shape in wanted.items()},
        weights.path,
    )
    check_vocabulary_map(tensors["d2t"], tensors["t2d"], weights.path)


def _vocabulary_maps(config: Eagle3Config, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The maps that the file lacks and that follow: both of a full vocabulary, where the file's
    are not used, or one from the other."""
    draft, full = config.draft_vocab_size, config.vocab_size
    if draft == full:
        return {
            "d2t": torch.zeros(full, dtype=torch.int64),
            "t2d": torch.ones(full, dtype=torch.bool),
        }
    d2t, t2d = tensors.get("d2t"), tensors.get("t2d")
    if d2t is None and t2d is not None and t2d.dtype == torch.bool:
        marked = t2d.nonzero().flatten()
        return {"d2t": marked - torch.arange(len(marked))}
    if t2d is None and d2t is not None and d2t.dtype == torch.int64:
        ids = torch.arange(len(d2t)) + d2t
        if len(ids) and int(ids.min()) >= 0 and int(ids.max()) < full:
            return {"t2d": torch.zeros(full, dtype=torch.bool).index_fill_(0, ids, True)}
    return {}
