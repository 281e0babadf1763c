"""Turns a checkpoint of the layout published by SpecBlock's authors into ours.

Theirs is ``config.json`` (a Llama config with a few more fields), ``model.safetensors`` and
``vocab_mapping.pt``. The names of the weights are the same as ours. What their config does not say
is which layers of the target the features come from: they are a function of its number of layers,
which therefore has to be given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specblock.drafters.checkpoint import (
    CONFIG,
    WEIGHTS,
    check_tensors,
    read_tensors,
    write_tensors,
)
from specblock.drafters.published import (
    check_request,
    read_pickle,
    read_published,
    target_layer_count,
)
from specblock.drafters.specblock.checkpoint import EMBEDDINGS, stored_shapes
from specblock.drafters.specblock.config import (
    DRAFTER_TYPE,
    SpecBlockConfig,
    paper_feature_layers,
)
from specblock.drafters.vocabulary import check_vocabulary_map
from specblock.errors import CheckpointError

__all__ = ["convert_published", "target_layer_count"]

VOCABULARY = "vocab_mapping.pt"
ARCHITECTURES = ("LlamaForCausalLMSpecBlock", "LlamaForCausalLMSpecBlockShift")
_REQUIRED = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
_LARGEST_MAP = 2**26  # bytes; a real one is under 1 MB


def convert_published(
    source: str | Path,
    out: str | Path,
    *,
    target_layers: int | None,
    feature_layers: tuple[int, ...] | None = None,
    tokenizer_fingerprint: str = "",
    target_name: str = "",
) -> SpecBlockConfig:
    """Read the published layout in ``source``, write ours to ``out``; weights keep their dtype.

    Args:
        target_layers: number of decoder layers of the target (:func:`target_layer_count`).
        feature_layers: 0-based layers whose outputs are the features; None takes the paper's,
            layers 1, n/2 - 1 and n - 4 of a target of n layers.
        tokenizer_fingerprint: of the target's tokenizer
            (:func:`specblock.drafters.fingerprint.tokenizer_fingerprint`); empty leaves it out.
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
    config = SpecBlockConfig(
        target_layers=target_layers,
        feature_layers=tuple(feature_layers or paper_feature_layers(target_layers)),
        tokenizer_fingerprint=tokenizer_fingerprint,
        target_name=target_name,
        **_network(published),
    )
    tensors = _weights(source, config)
    origin = {"converted_from": "published", "architectures": published["architectures"]}
    write_tensors(config, tensors, out, origin)
    return config


def _weights(source: Path, config: SpecBlockConfig) -> dict[str, Tensor]:
    """All tensors of our format, checked."""
    tensors, _ = read_tensors(source / WEIGHTS)
    # The authors leave the embeddings out; a file that has them all the same has the target's.
    tensors.pop(EMBEDDINGS, None)
    wanted = stored_shapes(config)
    maps = {name: wanted[name] for name in ("d2t", "t2d")}
    absent = maps.keys() - tensors.keys()
    check_tensors(
        tensors, {k: shape for k, shape in wanted.items() if k not in absent}, source / WEIGHTS
    )
    vocabulary = _vocabulary(source, config, tensors)
    check_tensors(vocabulary, maps, source / VOCABULARY)
    check_vocabulary_map(vocabulary["d2t"], vocabulary["t2d"], source)
    tensors.update(vocabulary)
    return tensors


def _network(published: dict[str, Any]) -> dict[str, Any]:
    """The network's part of our config. Absent fields get what the authors' code takes then."""
    if published.get("drafter_type") == DRAFTER_TYPE:
        raise CheckpointError("This checkpoint is in our format already; use it as it is.")
    architectures = published.get("architectures") or []
    if not set(architectures) & set(ARCHITECTURES):
        raise CheckpointError(
            f"config.json is of {architectures or 'no architecture'}, not a published SpecBlock "
            f"drafter ({' or '.join(ARCHITECTURES)}); check the path."
        )
    missing = [name for name in _REQUIRED if published.get(name) is None]
    if missing:
        raise CheckpointError(f"config.json lacks {', '.join(missing)}; copy it again.")
    _refuse_unsupported(published)

    def value(name: str, default: Any) -> Any:
        given = published.get(name)
        return default if given is None else given

    heads, size = published["num_attention_heads"], published["hidden_size"]
    network = {
        "hidden_size": size,
        "vocab_size": published["vocab_size"],
        "intermediate_size": published["intermediate_size"],
        "num_attention_heads": heads,
        "num_key_value_heads": value("num_key_value_heads", heads),
        "num_hidden_layers": value("num_hidden_layers", 1),
        "block_size": value("diffspec_draft_token_num", 7),
        "draft_vocab_size": value("draft_vocab_size", 32000),
        "rank_classes": value("rank_classes", 4),
    }
    for name, number in network.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise CheckpointError(f"config.json has {name} {number!r}, not a positive number.")
    if size % heads or heads % network["num_key_value_heads"]:
        raise CheckpointError(
            f"config.json has hidden_size {size}, {heads} attention heads and "
            f"{network['num_key_value_heads']} key-value heads, which do not divide evenly."
        )
    # a head_dim in the config is not read by the authors' network either
    network["head_dim"] = size // heads
    network["rms_norm_eps"] = float(value("rms_norm_eps", 1e-5))
    network["rope_theta"] = _rope_theta(published)
    return network


def _refuse_unsupported(published: dict[str, Any]) -> None:
    size, target_size = published["hidden_size"], published.get("target_hidden_size")
    if target_size not in (None, size):
        raise CheckpointError(
            f"The drafter's hidden size {size} differs from its target's {target_size} "
            "(target_hidden_size), and such drafters are not supported; choose another one."
        )
    if published.get("hidden_act", "silu") != "silu":
        raise CheckpointError(
            f"The drafter's activation is {published['hidden_act']!r}, but only 'silu' is "
            "supported; choose another one."
        )


def _rope_theta(published: dict[str, Any]) -> float:
    """The base of the rotary angles; absent means 10000, whatever the target has."""
    parameters = published.get("rope_parameters") or {}
    scaling = published.get("rope_scaling") or {}
    for entry in (parameters, scaling):
        kind = entry.get("rope_type", entry.get("type", "default"))
        if kind != "default":
            raise CheckpointError(
                f"The drafter scales its rotary positions ({kind!r}), which is not supported; "
                "choose a drafter without rope scaling."
            )
    return float(published.get("rope_theta") or parameters.get("rope_theta") or 10000.0)


def _vocabulary(
    source: Path, config: SpecBlockConfig, stored: dict[str, Tensor]
) -> dict[str, Tensor]:
    """``d2t`` and ``t2d``, from ``vocab_mapping.pt``, the weights, or the identity."""
    inside = {name: stored[name] for name in ("d2t", "t2d") if name in stored}
    same = config.draft_vocab_size == config.vocab_size
    if "t2d" in inside and not same and bool(inside["t2d"].all()):
        inside = {}  # the authors' network starts with this placeholder until a map is loaded
    path = source / VOCABULARY
    if path.exists():
        mapping = _read_mapping(path)
        for name, tensor in inside.items():
            if not torch.equal(tensor, mapping[name].to(tensor.dtype)):
                raise CheckpointError(
                    f"{name} in {path} is not that of {WEIGHTS}: the files are of different "
                    "drafters; copy both again."
                )
    elif len(inside) == 2:
        mapping = inside
    elif same:
        mapping = {
            "d2t": torch.zeros(config.vocab_size, dtype=torch.int64),
            "t2d": torch.ones(config.vocab_size, dtype=torch.bool),
        }
    else:
        raise CheckpointError(
            f"{path} is missing, and without it the {config.draft_vocab_size} draft tokens cannot "
            f"be told among the target's {config.vocab_size}; copy it beside {WEIGHTS}."
        )
    return {"d2t": mapping["d2t"].long(), "t2d": mapping["t2d"].bool()}


def _read_mapping(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``vocab_mapping.pt``; nothing else in such a file is ever executed."""
    if path.stat().st_size > _LARGEST_MAP:
        raise CheckpointError(f"{path} is too large for a vocabulary map; copy it again.")
    tensors = read_pickle(path)
    if not all(isinstance(tensors.get(name), Tensor) for name in ("d2t", "t2d")):
        raise CheckpointError(f"{path} does not hold the tensors d2t and t2d; copy it again.")
    return {name: tensors[name] for name in ("d2t", "t2d")}
