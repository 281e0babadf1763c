"""Turns a checkpoint of the public EAGLE-3 layout into ours.

Theirs is ``config.json`` (a Llama config with ``draft_vocab_size``) and ``model.safetensors`` or
``pytorch_model.bin``, with the vocabulary maps among the weights. The names of the weights are the
same as ours. The layers that the features come from follow from the target's number of layers,
which therefore has to be given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specblock.drafters.checkpoint import (
    CONFIG,
    EMBEDDINGS,
    WEIGHTS,
    check_tensors,
    check_vocabulary_map,
    read_tensors,
    stored_shapes,
    write_tensors,
)
from specblock.drafters.config import paper_feature_layers
from specblock.drafters.eagle3.config import Eagle3Config
from specblock.drafters.eagle3.model import Eagle3Model
from specblock.drafters.published import check_request, read_pickle, read_published
from specblock.errors import CheckpointError

__all__ = ["convert_eagle3", "is_eagle3"]

PICKLED = "pytorch_model.bin"
_MAPS = ("d2t", "t2d")
_REQUIRED = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")


def is_eagle3(source: str | Path) -> bool:
    """Whether the folder's config is that of a published EAGLE-3 drafter; False if unreadable.

    Early ones call themselves LlamaForCausalLM; the draft vocabulary gives them away.
    """
    try:
        published = read_published(Path(source) / CONFIG)
    except CheckpointError:
        return False
    names = " ".join(map(str, published.get("architectures") or [])).lower()
    if "specblock" in names or "drafter_type" in published:
        return False
    return "eagle3" in names or "draft_vocab_size" in published


def convert_eagle3(
    source: str | Path,
    out: str | Path,
    *,
    target_layers: int | None,
    feature_layers: tuple[int, ...] | None = None,
    tokenizer_fingerprint: str = "",
    target_name: str = "",
) -> Eagle3Config:
    """Read the public layout in ``source``, write ours to ``out``; weights keep their dtype.

    Args:
        target_layers: number of decoder layers of the target.
        feature_layers: 0-based layers whose outputs are the features; None takes the paper's,
            layers 1, n/2 - 1 and n - 4 of a target of n layers.
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
    _refuse_unsupported(published, feature_layers)
    tensors, path = _read_weights(source)
    network = _network(published, tensors)
    if network["draft_vocab_size"] == network["vocab_size"]:
        tensors.update(_identity(network["vocab_size"]))  # the maps are not used then
    config = Eagle3Config(
        target_layers=target_layers,
        feature_layers=tuple(feature_layers or paper_feature_layers(target_layers)),
        tokenizer_fingerprint=tokenizer_fingerprint,
        target_name=target_name,
        **network,
    )
    check_tensors(tensors, stored_shapes(config, Eagle3Model), path)
    check_vocabulary_map(tensors["d2t"], tensors["t2d"], path)
    origin = {"converted_from": "published", "architectures": published.get("architectures")}
    write_tensors(config, tensors, out, origin)
    return config


def _identity(size: int) -> dict[str, Tensor]:
    return {
        "d2t": torch.zeros(size, dtype=torch.int64),
        "t2d": torch.ones(size, dtype=torch.bool),
    }


def _read_weights(source: Path) -> tuple[dict[str, Tensor], Path]:
    """The tensors, without the target's embeddings, and the file they are from."""
    path = source / WEIGHTS
    if not path.exists() and (source / PICKLED).exists():
        path = source / PICKLED
        content = read_pickle(path)
        # copies of their own: tensors that share memory cannot be stored
        tensors = {
            str(name): value.clone(memory_format=torch.contiguous_format)
            for name, value in content.items()
            if isinstance(value, Tensor)
        }
    else:
        tensors, _ = read_tensors(path)
    tensors = {name: value for name, value in tensors.items() if not name.endswith(EMBEDDINGS)}
    for name, dtype in zip(_MAPS, (torch.int64, torch.bool), strict=True):
        if name in tensors and not tensors[name].is_floating_point():
            tensors[name] = tensors[name].to(dtype)
    return tensors, path


def _network(published: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The network's part of our config. Absent fields get what the public code takes then."""

    def value(name: str, default: Any) -> Any:
        given = published.get(name)
        return default if given is None else given

    heads, size = published["num_attention_heads"], published["hidden_size"]
    head = tensors.get("lm_head.weight")
    network = {
        "hidden_size": size,
        "vocab_size": published["vocab_size"],
        "intermediate_size": published["intermediate_size"],
        "num_attention_heads": heads,
        "num_key_value_heads": value("num_key_value_heads", heads),
        "draft_vocab_size": value("draft_vocab_size", 32000 if head is None else len(head)),
    }
    for name, number in network.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise CheckpointError(f"config.json has {name} {number!r}, not a positive number.")
    network["head_dim"] = value("head_dim", size // heads)
    parameters = value("rope_parameters", {})
    scaling = value("rope_scaling", None) or parameters or None
    if scaling is not None:
        scaling = {name: entry for name, entry in scaling.items() if name != "rope_theta"}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        scaling = None if kind == "default" else scaling
    network["rope_scaling"] = scaling
    network["rope_theta"] = float(value("rope_theta", parameters.get("rope_theta") or 10000.0))
    network["rms_norm_eps"] = float(value("rms_norm_eps", 1e-6))
    return network


def _refuse_unsupported(published: dict[str, Any], feature_layers: tuple[int, ...] | None) -> None:
    missing = [name for name in _REQUIRED if published.get(name) is None]
    if missing:
        raise CheckpointError(f"config.json lacks {', '.join(missing)}; copy it again.")
    size = published["hidden_size"]
    wanted = {
        "target_hidden_size": (None, size),
        "hidden_act": (None, "silu"),
        "num_hidden_layers": (None, 1),
        "norm_before_residual": (None, False),
        "attention_bias": (None, False),
    }
    for name, allowed in wanted.items():
        if published.get(name) not in allowed:
            raise CheckpointError(
                f"The drafter has {name} {published[name]!r}, but only {allowed[-1]!r} is "
                "supported; choose another one."
            )
    layers = (published.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids")
    if layers and feature_layers is None:
        raise CheckpointError(
            f"The drafter names its own feature layers {layers} (usually counted one above ours: "
            "the input of a layer, not its output); give them as --feature-layers."
        )
