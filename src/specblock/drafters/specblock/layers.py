"""The parts of the drafter network: norms, rotary positions, input fusion, decoder layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specblock.drafters.specblock.config import SpecBlockConfig


class RMSNorm(nn.Module):
    """Root-mean-square norm with fp32 statistics over the last dimension."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


class Rotary(nn.Module):
    """Rotary position angles, NeoX half-rotation; always computed in fp32, at any position."""

    def __init__(self, head_dim: int, theta: float):
        super().__init__()
        self.head_dim, self.theta = head_dim, theta

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos, sin ``[..., 1, head_dim]`` fp32 for integer ``positions [...]``."""
        half = torch.arange(0, self.head_dim, 2, device=positions.device, dtype=torch.float32)
        frequency = self.theta ** (-half / self.head_dim)
        angles = positions.float()[..., None] * frequency
        angles = torch.cat((angles, angles), dim=-1)[..., None, :]
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``x [..., heads, head_dim]`` by the angles of its position."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


class InputLayer(nn.Module):
    """Fuses condition, token and slot query into the K inputs of a block.

    ``x[k] = W_fuse [RMS(cond); RMS(emb(token)); RMS(query_k)]`` where cond is ``W_cond features``
    in block 1 and the parent slot's hidden state in later blocks. With ``slot_rank`` every slot
    k >= 1 adds ``U_k V_k [RMS(cond); RMS(emb(token))]``.
    """

    def __init__(self, config: SpecBlockConfig):
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        count = len(config.feature_layers)
        self.embed_tokens = nn.Embedding(config.vocab_size, size)
        self.embed_tokens.weight.requires_grad_(False)
        self.condition_proj = nn.Linear(count * size, size, bias=False)
        self.condition_norm = RMSNorm(size, eps)
        self.token_norm = RMSNorm(size, eps)
        self.query_norm = RMSNorm(size, eps)
        self.position_queries = nn.Embedding(config.block_size, size)
        self.fuse = nn.Linear(3 * size, size, bias=False)
        self.feature_norms = (
            nn.ModuleList(RMSNorm(size, eps) for _ in range(count)) if config.feature_norm else None
        )
        rank, later = config.slot_rank, config.block_size - 1
        if rank:
            self.slot_down = nn.Parameter(torch.randn(later * rank, 2 * size) / (2 * size) ** 0.5)
            self.slot_up = nn.Parameter(torch.zeros(later, size, rank))
        self.rank, self.later = rank, later
        nn.init.normal_(self.position_queries.weight, std=0.02)

    def condition(self, features: Tensor) -> Tensor:
        """Block 1: ``features [..., F * H]`` to the condition ``[..., H]``."""
        if self.feature_norms is not None:
            parts = features.chunk(len(self.feature_norms), dim=-1)
            parts = [norm(part) for norm, part in zip(self.feature_norms, parts, strict=True)]
            features = torch.cat(parts, dim=-1)
        return self.condition_proj(features)

    def forward(self, condition: Tensor, tokens: Tensor, slots: int) -> Tensor:
        """The first ``slots`` inputs ``[..., slots, H]`` of blocks at ``condition [..., H]``.

        The shared part is computed once per block, not once per slot (prefix broadcast).
        """
        token = self.token_norm(self.embed_tokens(tokens).to(condition.dtype))
        pair = torch.cat((self.condition_norm(condition), token), dim=-1)
        width = pair.shape[-1]
        shared = F.linear(pair, self.fuse.weight[:, :width])
        queries = self.query_norm(self.position_queries.weight[:slots])
        own = F.linear(queries, self.fuse.weight[:, width:])
        x = shared[..., None, :] + own
        if self.rank and slots > 1:
            x = torch.cat((x[..., :1, :], x[..., 1:, :] + self._per_slot(pair, slots - 1)), dim=-2)
        return x

    def _per_slot(self, pair: Tensor, later: int) -> Tensor:
        down = F.linear(pair, self.slot_down[: later * self.rank])
        down = down.unflatten(-1, (later, self.rank))
        return torch.einsum("...kr,khr->...kh", down, self.slot_up[:later])


class Attention(nn.Module):
    """Projections of grouped-query attention; who sees whom is the caller's."""

    def __init__(self, config: SpecBlockConfig):
        super().__init__()
        size, dim = config.hidden_size, config.head_dim
        self.head_dim = dim
        self.q_proj = nn.Linear(size, config.num_attention_heads * dim, bias=False)
        self.k_proj = nn.Linear(size, config.num_key_value_heads * dim, bias=False)
        self.v_proj = nn.Linear(size, config.num_key_value_heads * dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * dim, size, bias=False)


class MLP(nn.Module):
    """SwiGLU feed-forward."""

    def __init__(self, config: SpecBlockConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DraftLayer(nn.Module):
    """A pre-norm decoder layer, cut open where attention happens."""

    def __init__(self, config: SpecBlockConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated q ``[..., heads, d]``, rotated k and plain v ``[..., kv_heads, d]``."""
        normed = self.input_layernorm(x)
        attn = self.self_attn
        split = (-1, attn.head_dim)
        q = attn.q_proj(normed).unflatten(-1, split)
        k = attn.k_proj(normed).unflatten(-1, split)
        v = attn.v_proj(normed).unflatten(-1, split)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The layer's output, given the attention result ``[..., heads * d]``."""
        x = x + self.self_attn.o_proj(attended)
        return x + self.mlp(self.post_attention_layernorm(x))
