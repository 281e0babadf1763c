"""Whether a drafter's layers can be exact copies of the target's last ones, and these copies.

A :class:`~specblock.drafters.layers.DraftLayer` is a Llama layer. Many families have layers of that
form under the same names, some store several matrices in one (Phi-3), and some have the same names
and compute something else (multipliers, interleaved rotary positions, layers without positions).
So names alone do not decide: a copy is made and compared with what the target's layer does to a
short text.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specblock.drafters.layers import DraftLayer, Rotary
from specblock.target.architecture.structure import decoder_layers, text_config

__all__ = ["LayerForm", "Loan", "layers_can_be_lent", "loan_of", "short_text"]

DRAFTER_LAYERS = 2  # of a drafter, unless its recipe says otherwise
TEXT = 32  # tokens of the text; shorter than the windows of real models
# How far a copy's output may be from the layer's, in units of what the layer adds to its input: the
# median over the text. Both compute in float32, but a target in bfloat16 hands its layers rounded
# angles. SmolLM2-135M's last two layers are 2e-4 apart at most. Without rotary positions they are
# 0.035 apart at least, with interleaved ones 0.018, with a tenth of their base 0.007.
MOST_APART = 1e-3
_FUSED_QKV, _FUSED_MLP = "self_attn.qkv_proj.weight", "mlp.gate_up_proj.weight"


@dataclass(frozen=True)
class LayerForm:
    """The shape of a drafter's layers, under the names of every drafter's config."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: dict[str, Any] | None = None
    qkv_bias: bool = False
    qk_norm: bool = False


@dataclass(frozen=True)
class Loan:
    """What a target lends: the form of a drafter's layers, and their weights in fp32, first to
    last; without weights ``obstacle`` says why not."""

    form: LayerForm
    layers: tuple[dict[str, Tensor], ...]
    obstacle: str = ""


def layers_can_be_lent(target: nn.Module, count: int = DRAFTER_LAYERS) -> bool:
    """Whether the target's last ``count`` layers can be copied exactly."""
    return bool(loan_of(target, count).layers)


@torch.no_grad()
def loan_of(target: nn.Module, count: int) -> Loan:
    """The target's last ``count`` layers as a drafter's; one short forward of the target."""
    config, layers = _last_config(target), decoder_layers(target)
    if count >= len(layers):
        return Loan(_own_form(config), (), f"it has {len(layers)} layers, not more than {count}")
    states = [_split(layer.state_dict(), config) for layer in layers[len(layers) - count :]]
    try:
        form = _lent_form(states[-1], config)
        copies = [_copy(state, form) for state in states]
    except _OtherFormError as error:
        return Loan(_own_form(config), (), str(error))
    for number, copied in enumerate(copies, len(layers) - count):
        before, after = _seen_by(target, layers[number])
        if not _distance(copied, form, before, after) <= MOST_APART:
            return Loan(_own_form(config), (), f"a copy of layer {number} computes something else")
    return Loan(form, tuple(copied.state_dict() for copied in copies))


def short_text(target: nn.Module) -> Tensor:
    """Token ids ``[1, TEXT]`` that every vocabulary has."""
    many = min(997, text_config(target).vocab_size - 3)
    return 3 + (7 * torch.arange(TEXT, device=target.device)[None]) % many


class _OtherFormError(Exception):
    """A layer is no Llama layer; says what differs."""


def _last_config(target: nn.Module) -> Any:
    """The configuration of the last layer, where layers have their own."""
    config = text_config(target)
    if not getattr(config, "is_heterogeneous", False):
        return config
    return config.per_layer_config[config.num_hidden_layers - 1]


def _split(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The weights of a layer: matrices that are stored as one taken apart, Granite's multipliers
    of scores and branches in the weights."""
    state = dict(state)
    if _FUSED_QKV in state and getattr(config, "num_key_value_heads", None):
        heads, shared = config.num_attention_heads, config.num_key_value_heads
        rows = len(state[_FUSED_QKV]) // (heads + 2 * shared)
        parts = state.pop(_FUSED_QKV).split([heads * rows, shared * rows, shared * rows])
        state |= {
            f"self_attn.{name}_proj.weight": part for name, part in zip("qkv", parts, strict=True)
        }
    if _FUSED_MLP in state:
        gate, up = state.pop(_FUSED_MLP).chunk(2)
        state |= {"mlp.gate_proj.weight": gate, "mlp.up_proj.weight": up}
    score, branch = (
        getattr(config, f"{name}_multiplier", None) for name in ("attention", "residual")
    )
    if score and branch and "self_attn.q_proj.weight" in state:
        factors = {
            "self_attn.q_proj.weight": score * _own_form(config).head_dim ** 0.5,
            "self_attn.o_proj.weight": branch,
            "mlp.down_proj.weight": branch,
        }
        state |= {name: factors[name] * state[name] for name in factors if name in state}
    return state


def _lent_form(state: Mapping[str, Tensor], config: Any) -> LayerForm:
    """The form of a Llama layer with these weights; :class:`_OtherFormError` if it is none."""
    wanted = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "mlp.gate_proj.weight")
    lacking = [name for name in wanted if name not in state]
    if lacking:
        raise _OtherFormError(f"they have no {', '.join(lacking)}")
    own = _own_form(config)
    queries, keys, gate = (state[name] for name in wanted)
    return replace(
        own,
        intermediate_size=len(gate),
        num_attention_heads=max(1, len(queries) // own.head_dim),
        num_key_value_heads=max(1, len(keys) // own.head_dim),
        qkv_bias="self_attn.q_proj.bias" in state,
        qk_norm="self_attn.q_norm.weight" in state,
    )


def _own_form(config: Any) -> LayerForm:
    """Layers of about the target's size, where they are no copies."""
    size, heads = config.hidden_size, _whole(config, "num_attention_heads") or 1
    shared = _whole(config, "num_key_value_heads") or heads
    width = _whole(config, "intermediate_size", "ffn_dim", "n_inner") or 0
    epsilons = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps")
    known = [getattr(config, name, None) for name in epsilons]
    return LayerForm(
        size,
        width if width >= size else 4 * size,  # an expert of a mixture is narrow
        heads,
        shared if heads % shared == 0 else heads,
        # rotary positions come in pairs
        2 * -(-(_whole(config, "head_dim") or size // heads) // 2),
        next((float(value) for value in known if value), 1e-5),
        *_rope(config),
    )


def _whole(config: Any, *names: str) -> int | None:
    """The first of these settings that is a whole number; some models have one for every layer."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def _rope(config: Any) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling of the rotary positions, of the last layer's kind where kinds differ."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = getattr(config, "layer_types", None) or [None]
    rope = rope.get(kinds[-1]) or rope
    known = rope.get("rope_type") in ("linear", "llama3")
    return float(rope.get("rope_theta") or 10000.0), dict(rope) if known else None


def _copy(state: Mapping[str, Tensor], form: LayerForm) -> DraftLayer:
    """A drafter's layer with these weights; :class:`_OtherFormError` if they are not its own."""
    with torch.device("meta"):
        layer = DraftLayer(form)
    own = layer.state_dict()
    odd = set(state) ^ set(own) or {n for n in own if state[n].shape != own[n].shape}
    if odd:
        raise _OtherFormError(f"they differ in {', '.join(sorted(odd))}")
    lent = {name: value.detach().to("cpu", torch.float32) for name, value in state.items()}
    layer.load_state_dict(lent, assign=True)
    return layer


def _seen_by(target: nn.Module, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """What a layer reads of the short text, and what it makes of that in fp32; ``[TEXT, H]``."""
    calls: list[tuple[tuple, dict]] = []
    handle = layer.register_forward_pre_hook(
        lambda _module, arguments, named: calls.append((arguments, named)), with_kwargs=True
    )
    try:
        target(input_ids=short_text(target), use_cache=False)
    finally:
        handle.remove()
    arguments, named = _in_fp32(calls[0])
    before = arguments[0] if arguments else named["hidden_states"]
    after = copy.deepcopy(layer).float()(*arguments, **named)
    after = after[0] if isinstance(after, tuple) else after
    return before[0].cpu(), after[0].cpu()


def _in_fp32(value: Any) -> Any:
    """Arguments of a call with every tensor of numbers in fp32."""
    if isinstance(value, dict):
        return {name: _in_fp32(one) for name, one in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_in_fp32, value))
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.float() if floating else value


def _distance(layer: DraftLayer, form: LayerForm, before: Tensor, after: Tensor) -> float:
    """How far the layer's output for ``before [S, H]`` is from ``after``, as MOST_APART counts."""
    rotary = Rotary(form.head_dim, form.rope_theta, form.rope_scaling)
    angles = rotary(torch.arange(len(before)))
    heads = [part.transpose(0, 1)[None] for part in layer.project(before, *angles)]
    seen = F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
    found = layer.finish(before, seen[0].transpose(0, 1).flatten(1))
    added = (after - before).norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    return ((found - after).norm(dim=-1) / added).median().item()
