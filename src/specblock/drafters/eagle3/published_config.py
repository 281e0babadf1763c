"""What the ``config.json`` of a published EAGLE-3 drafter says, in our terms.

Two layouts are about. The authors' is a Llama config with ``draft_vocab_size``; some put what is
special into an ``eagle_config``. That of *speculators* describes the decoder layer in a
``transformer_layer_config`` and the drafter around it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from specblock.drafters.config import paper_feature_layers
from specblock.errors import CheckpointError, FeatureLayersError

LAYERS = "eagle_aux_hidden_state_layer_ids"
_TWICE = "layers are listed in both counts"
_INNER = "transformer_layer_config"
_REQUIRED = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
_FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
# What the drafter's part of a config says; the rest is about its layer.
_DRAFTER = (
    *(*_FLAGS, LAYERS, "draft_vocab_size", "target_hidden_size", "use_aux_hidden_state"),
    *("speculators_model_type", "parallel_drafting", "quantization_config"),
)
# The values of a field that the network can do; None is an absent field. The last one is named.
_SUPPORTED = {
    "hidden_act": (None, "silu"),
    "num_hidden_layers": (None, 1),
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "partial_rotary_factor": (None, 1.0),
    "logit_scale": (None, 1.0),
    "use_aux_hidden_state": (None, True),
    "parallel_drafting": (None, False),
    "quantization_config": (None,),
}


def is_published(config: dict[str, Any]) -> bool:
    """Whether a ``config.json`` is that of a published EAGLE-3 drafter (or another drafter of
    speculators, which :func:`flat` refuses by name).

    Early ones call themselves LlamaForCausalLM; the draft vocabulary gives them away.
    """
    names = " ".join(map(str, config.get("architectures") or [])).lower()
    if "specblock" in names or "drafter_type" in config:
        return False
    marks = ("speculators_model_type", "draft_vocab_size")
    return "eagle3" in names or any(mark in config for mark in marks)


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of either layout side by side, those of the layer and those of the drafter.

    Raises:
        CheckpointError: a field is missing, or has a value that the network cannot do.
    """
    kind = config.get("speculators_model_type")
    if kind is None:
        inner = config.get("eagle_config") or {}
        found = {**config, **{name: inner[name] for name in _DRAFTER if name in inner}}
        if config.get(LAYERS):  # where both lists are there, the inner one is in SGLang's count
            found[LAYERS], found[_TWICE] = config[LAYERS], LAYERS in inner
    elif kind != "eagle3":
        raise CheckpointError(
            f"The drafter is of speculators' type {kind!r}, but only 'eagle3' is supported; "
            "choose another one."
        )
    elif not isinstance(config.get(_INNER), dict):
        raise CheckpointError(f"config.json lacks {_INNER}; copy it again.")
    else:
        found = {**config[_INNER], **{name: config[name] for name in _DRAFTER if name in config}}
        if found.get("norm_before_residual") is None:
            raise CheckpointError(
                "config.json lacks norm_before_residual, of which programs take different values "
                "then; add the one that the drafter was trained with."
            )
    missing = [name for name in _REQUIRED if found.get(name) is None]
    if missing:
        raise CheckpointError(f"config.json lacks {', '.join(missing)}; copy it again.")
    _refuse_unsupported(found)
    return found


def _refuse_unsupported(found: dict[str, Any]) -> None:
    wanted = {"target_hidden_size": (None, found["hidden_size"]), **_SUPPORTED}
    wanted.update(dict.fromkeys(_FLAGS, (None, True, False)))
    for name, allowed in wanted.items():
        if found.get(name) not in allowed:
            raise CheckpointError(
                f"The drafter has {name} {found[name]!r}, but only {allowed[-1]!r} is "
                "supported; choose another one."
            )
    if found.get("fc_norm") and found.get("norm_before_fc"):
        raise CheckpointError(
            "The drafter has both fc_norm and norm_before_fc, but only one of them is supported; "
            "choose another one."
        )
    sliding = "sliding_attention" in (found.get("layer_types") or [])
    if found.get("sliding_window") and (sliding or found.get("use_sliding_window")):
        raise CheckpointError(
            f"The drafter attends to the last {found['sliding_window']} positions only "
            "(sliding_window), which is not supported; choose another one."
        )


def network_fields(found: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The network's part of our config, of the fields of :func:`flat` and the weights under our
    names. Absent fields get what the public code takes then."""

    def value(name: str, default: Any) -> Any:
        given = found.get(name)
        return default if given is None else given

    heads, size = found["num_attention_heads"], found["hidden_size"]
    head = tensors.get("lm_head.weight")
    network = {
        "hidden_size": size,
        "vocab_size": found["vocab_size"],
        "intermediate_size": found["intermediate_size"],
        "num_attention_heads": heads,
        "num_key_value_heads": value("num_key_value_heads", heads),
        "draft_vocab_size": value("draft_vocab_size", 32000 if head is None else len(head)),
    }
    for name, number in network.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise CheckpointError(f"config.json has {name} {number!r}, not a positive number.")
    network["head_dim"] = value("head_dim", size // heads)
    network["rms_norm_eps"] = float(value("rms_norm_eps", 1e-6))
    network["own_embeddings"] = "embed_tokens.weight" in tensors
    network["qk_norm"] = "midlayer.self_attn.q_norm.weight" in tensors
    for name in _FLAGS:
        network["feature_norm" if name == "fc_norm" else name] = bool(value(name, False))
    return {**network, **_rotary(value)}


def _rotary(value: Any) -> dict[str, Any]:
    parameters = value("rope_parameters", {})
    scaling = value("rope_scaling", None) or parameters or None
    if scaling is not None:
        scaling = {name: entry for name, entry in scaling.items() if name != "rope_theta"}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        scaling = None if kind == "default" else scaling
    theta = float(value("rope_theta", parameters.get("rope_theta") or 10000.0))
    return {"rope_scaling": scaling, "rope_theta": theta}


def named_layers(found: dict[str, Any], target_layers: int, count: int) -> tuple[int, ...]:
    """The ``count`` feature layers of a target of ``target_layers``, as we count: outputs, from 0.

    Theirs count what enters a layer, so that layer 2 is the output of our layer 1. Files without
    ids read the paper's layers. Files in the authors' layout that list just these as we would count
    as we do (programs differ there; read the other way they would name layers that none takes).
    A last id beyond what ``fc`` reads is the target's final state, recorded for training.

    Raises:
        FeatureLayersError: there is no such layer, or there are more or fewer than ``count``.
    """
    ids = found.get(LAYERS)
    if not ids:
        return paper_feature_layers(target_layers)
    if not isinstance(ids, list) or not all(type(entry) is int for entry in ids):
        raise FeatureLayersError(f"config.json has {LAYERS} {ids!r}, not a list of numbers.")
    if len(ids) == count + 1 and ids[-1] == target_layers:
        ids = ids[:-1]
    papers = ids == [1, target_layers // 2 - 1, target_layers - 4]
    outputs = papers and "speculators_model_type" not in found and not found.get(_TWICE)
    layers = tuple(entry if outputs else entry - 1 for entry in ids)
    if len(layers) != count or len(set(layers)) != count:
        raise FeatureLayersError(
            f"The drafter reads {count} layers (fc.weight) but names {ids} ({LAYERS}); "
            "give them as --feature-layers."
        )
    if min(layers) < 0 or max(layers) >= target_layers:
        raise FeatureLayersError(
            f"The drafter reads layers {ids} ({LAYERS}, 1 to {target_layers} in this target), "
            "of which not all are outputs of a layer; check --target, or give --feature-layers."
        )
    return layers
