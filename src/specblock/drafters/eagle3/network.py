"""The EAGLE-3 network (arXiv 2503.01840), without any cache.

One layer maps a pair (condition, token) to a hidden state that predicts the next token. The
condition is a projection of the target's features where these are known, and the network's own
hidden state one step before where they are not. Who sees whom is the caller's: the trainer runs
whole sequences (:mod:`specblock.drafters.eagle3.objective`), decoding a cache (``drafter.py``). A
test holds the two to the same logits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from specblock.drafters.eagle3.config import Eagle3Config
from specblock.drafters.layers import MLP, Attention, FeatureNorms, RMSNorm, Rotary

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Eagle3Layer(nn.Module):
    """A decoder layer whose attention reads token and condition side by side."""

    def __init__(self, config: Eagle3Config):
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.hidden_norm = RMSNorm(size, eps)
        self.input_layernorm = RMSNorm(size, eps)
        self.self_attn = Attention(config, width=2 * size, qk_norm=config.qk_norm)
        self.post_attention_layernorm = RMSNorm(size, eps)
        self.mlp = MLP(config)
        self.norm_before_residual = config.norm_before_residual

    def inputs(self, embedded: Tensor, condition: Tensor) -> Tensor:
        """``[RMS(emb(token)); RMS(condition)]``, [..., 2H]."""
        parts = self.input_layernorm(embedded), self.hidden_norm(condition)
        return torch.cat(parts, dim=-1)

    def finish(self, condition: Tensor, attended: Tensor) -> Tensor:
        """The layer's output, given the attention result ``[..., heads * d]``."""
        residual = self.hidden_norm(condition) if self.norm_before_residual else condition
        x = residual + self.self_attn.o_proj(attended)
        return x + self.mlp(self.post_attention_layernorm(x))


class Eagle3Model(nn.Module):
    """The EAGLE-3 drafter. Parameter names are those of the published checkpoints.

    With ``config.sink`` a learned entry (token and condition, [2, H]) lies at rotary position 0
    and the pairs follow from 1 on; without it pair i is at position i.
    """

    def __init__(self, config: Eagle3Config):
        super().__init__()
        size = config.hidden_size
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, size)
        self.embed_tokens.weight.requires_grad_(False)
        count = len(config.feature_layers)
        self.feature_norms = (
            FeatureNorms(count, size, config.rms_norm_eps) if config.feature_norm else None
        )
        self.input_norm = (
            RMSNorm(count * size, config.rms_norm_eps) if config.norm_before_fc else None
        )
        self.fc = nn.Linear(count * size, size, bias=False)
        self.midlayer = Eagle3Layer(config)
        self.norm = RMSNorm(size, config.rms_norm_eps)
        self.lm_head = nn.Linear(size, config.draft_vocab_size, bias=False)
        if config.sink:
            self.sink = nn.Parameter(torch.zeros(2, size))
        self.rotary = Rotary(config.head_dim, config.rope_theta, config.rope_scaling)
        draft, full = config.draft_vocab_size, config.vocab_size
        self.register_buffer("d2t", torch.zeros(draft, dtype=torch.int64))
        self.register_buffer("t2d", torch.arange(full) < draft)

    @property
    def offset(self) -> int:
        """Entries, and rotary positions, before pair 0."""
        return int(self.config.sink)

    def condition(self, features: Tensor) -> Tensor:
        """The condition ``[..., H]`` of the target's ``features [..., F * H]``."""
        if self.feature_norms is not None:
            features = self.feature_norms(features)
        if self.input_norm is not None:
            features = self.input_norm(features)
        return self.fc(features)

    def fed_back(self, hidden: Tensor) -> Tensor:
        """The condition ``[..., H]`` of what follows a prediction from ``hidden [..., H]``."""
        return self.norm(hidden) if self.config.norm_output else hidden

    def inputs(self, condition: Tensor, tokens: Tensor) -> Tensor:
        """What attention reads, ``[..., 2H]``, of ``condition [..., H]`` and next tokens."""
        return self.midlayer.inputs(self.embed_tokens(tokens).to(condition.dtype), condition)

    def sink_entry(self) -> tuple[Tensor, Tensor]:
        """Key and value ``[1, kv_heads, d]`` of the learned entry."""
        x = self.midlayer.inputs(*self.sink[:, None])
        angles = self.rotary(torch.zeros(1, dtype=torch.int64, device=x.device))
        return self.midlayer.self_attn.keys_values(x, *angles)

    def run(self, condition: Tensor, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states ``[..., H]`` before the final norm, to predict from and to feed back
        (:meth:`fed_back`).

        Args:
            condition: [..., H]; tokens: int64 [...], the token after each.
            positions: int64 [...], rotary positions.
            attend: ``(q, k, v) -> [..., heads * d]``.
        """
        x = self.inputs(condition, tokens)
        q, k, v = self.midlayer.self_attn.project(x, *self.rotary(positions))
        return self.midlayer.finish(condition, attend(q, k, v))

    def logits(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Draft logits ``[..., V_d]`` and the normed hidden states ``[..., H]`` they came from."""
        normed = self.norm(hidden)
        return self.lm_head(normed), normed

    def to_target_ids(self, draft_ids: Tensor) -> Tensor:
        """Target-vocabulary ids of draft-vocabulary ids (``d2t`` holds offsets)."""
        return draft_ids + self.d2t[draft_ids]
