"""Parts that all drafter networks are built from: norms, rotary positions, decoder layer, cache."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specblock.errors import CheckpointError


class LayerShape(Protocol):
    """What a decoder layer needs to know; every drafter's config has it."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float


class RMSNorm(nn.Module):
    """Root-mean-square norm with fp32 statistics over the last dimension."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * F.rms_norm(x, x.shape[-1:], eps=self.eps)


class Rotary(nn.Module):
    """Rotary position angles, NeoX half-rotation; always computed in fp32, at any position.

    ``scaling`` is a config's ``rope_scaling`` of type ``linear`` or ``llama3``; raises
    :class:`CheckpointError` for any other.
    """

    def __init__(self, head_dim: int, theta: float, scaling: Mapping | None = None):
        super().__init__()
        self.head_dim, self.theta = head_dim, theta
        self.scaling = dict(scaling or {})
        rope_type(self.scaling)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos, sin ``[..., 1, head_dim]`` fp32 for integer ``positions [...]``."""
        half = torch.arange(0, self.head_dim, 2, device=positions.device, dtype=torch.float32)
        frequency = self.theta ** (-half / self.head_dim)
        if self.scaling:
            frequency = scaled_frequency(frequency, self.scaling)
        angles = positions.float()[..., None] * frequency
        angles = torch.cat((angles, angles), dim=-1)[..., None, :]
        return angles.cos(), angles.sin()


def rope_type(scaling: Mapping) -> str:
    """``default``, ``linear`` or ``llama3``; :class:`CheckpointError` for what is none of these,
    or lacks a value."""
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    needed = {
        "default": (),
        "linear": ("factor",),
        "llama3": (
            *("factor", "low_freq_factor", "high_freq_factor"),
            "original_max_position_embeddings",
        ),
    }
    if kind not in needed:
        raise CheckpointError(
            f"The drafter scales its rotary positions by {kind!r}, but only {', '.join(needed)} "
            "are supported; choose another drafter."
        )
    lacking = [name for name in needed[kind] if not isinstance(scaling.get(name), int | float)]
    if lacking:
        raise CheckpointError(
            f"rope_scaling of type {kind!r} lacks {', '.join(lacking)}; copy config.json again."
        )
    return kind


def scaled_frequency(frequency: Tensor, scaling: Mapping) -> Tensor:
    """The rotary frequencies (radians per position) under a config's ``rope_scaling``.

    ``llama3`` stretches wavelengths that are long against the original context by ``factor``,
    leaves short ones alone, and goes over linearly between.
    """
    kind = rope_type(scaling)
    if kind == "default":
        return frequency
    slow = frequency / scaling["factor"]
    if kind == "linear":
        return slow
    turns = frequency * scaling["original_max_position_embeddings"] / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    share = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return torch.lerp(slow, frequency, share)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``x [..., heads, head_dim]`` by the angles of its position."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


class FeatureNorms(nn.ModuleList):
    """An RMS norm for each feature layer's part of ``features [..., F * H]``."""

    def __init__(self, count: int, size: int, eps: float):
        super().__init__(RMSNorm(size, eps) for _ in range(count))

    def forward(self, features: Tensor) -> Tensor:
        parts = features.unflatten(-1, (len(self), -1))
        weights = torch.stack([norm.weight for norm in self])
        return (weights * F.rms_norm(parts, parts.shape[-1:], eps=self[0].eps)).flatten(-2)


class Attention(nn.Module):
    """Projections of grouped-query attention; who sees whom is the caller's.

    Args:
        width: of its inputs, the hidden size unless given.
        qkv_bias: biases on queries, keys and values, as Qwen2 has them.
        qk_norm: an RMS norm over every head of queries and keys, as Qwen3 has it.
    """

    def __init__(
        self,
        config: LayerShape,
        width: int | None = None,
        *,
        qkv_bias: bool = False,
        qk_norm: bool = False,
    ):
        super().__init__()
        size, dim = config.hidden_size, config.head_dim
        width = width or size
        self.head_dim = dim
        self.q_proj = nn.Linear(width, config.num_attention_heads * dim, bias=qkv_bias)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * dim, bias=qkv_bias)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * dim, bias=qkv_bias)
        self.o_proj = nn.Linear(config.num_attention_heads * dim, size, bias=False)
        self.q_norm = RMSNorm(dim, config.rms_norm_eps) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(dim, config.rms_norm_eps) if qk_norm else nn.Identity()

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated q ``[..., heads, d]``, rotated k and plain v ``[..., kv_heads, d]``."""
        return self.queries(x, cos, sin), *self.keys_values(x, cos, sin)

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return rotate(self.q_norm(self.q_proj(x).unflatten(-1, (-1, self.head_dim))), cos, sin)

    def keys_values(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        split = (-1, self.head_dim)
        k = self.k_norm(self.k_proj(x).unflatten(-1, split))
        return rotate(k, cos, sin), self.v_proj(x).unflatten(-1, split)


class MLP(nn.Module):
    """SwiGLU feed-forward."""

    def __init__(self, config: LayerShape):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class CopiedShape(LayerShape, Protocol):
    """The shape of a layer that may be a copy of the target's, with what only some have."""

    qkv_bias: bool
    qk_norm: bool


class DraftLayer(nn.Module):
    """A pre-norm decoder layer, cut open where attention happens."""

    def __init__(self, config: CopiedShape):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, qkv_bias=config.qkv_bias, qk_norm=config.qk_norm)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated q ``[..., heads, d]``, rotated k and plain v ``[..., kv_heads, d]``."""
        return self.self_attn.project(self.input_layernorm(x), cos, sin)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The layer's output, given the attention result ``[..., heads * d]``."""
        x = x + self.self_attn.o_proj(attended)
        return x + self.mlp(self.post_attention_layernorm(x))


Place = tuple[Tensor, int, Tensor | None]  # of a text: its cache, where to write, its mask


def attend_texts(
    places: Sequence[Place],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    asked: Sequence[int],
    written: Sequence[int],
) -> Tensor:
    """:func:`attend_cached` of many texts whose rows lie one behind the other.

    Args:
        asked, written: how many rows of ``q``, and of ``k`` and ``v``, are each text's.
    """
    rows = zip(
        places, q.split(list(asked)), k.split(list(written)), v.split(list(written)), strict=True
    )
    return torch.cat(
        [attend_cached(cache, start, *own, mask) for (cache, start, mask), *own in rows]
    )


def attend_cached(
    cache: Tensor, start: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> Tensor:
    """Append n entries to a layer's cache and attend from R rows, ``[R, heads * d]``.

    Args:
        cache: [2, kv_heads, entries, d], keys and values; entries from ``start`` are overwritten.
        q: [R, heads, d]; k, v: [n, kv_heads, d].
        mask: additive [R, start + n]; None lets every row see all.
    """
    stop = start + len(k)
    cache[0, :, start:stop] = k.transpose(0, 1)
    cache[1, :, start:stop] = v.transpose(0, 1)
    rows, keys, values = q.transpose(0, 1)[None], *cache[:, None, :, :stop].unbind(0)
    out = F.scaled_dot_product_attention(rows, keys, values, mask, enable_gqa=True)
    return out[0].transpose(0, 1).flatten(1)
