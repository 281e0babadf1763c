"""The parallel-heads network, without any cache.

The trunk is SpecBlock's with blocks of one slot: input layer and decoder layers over the committed
pairs. Its last hidden state x predicts the next token; head k >= 1 predicts the token k further on
from ``x + SiLU(W_k x)`` (Medusa, arXiv 2401.10774). No position knows what the others predict.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specblock.drafters.layers import DraftLayer, RMSNorm, Rotary
from specblock.drafters.parallel.config import ParallelConfig
from specblock.drafters.specblock.layers import InputLayer

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class ParallelModel(nn.Module):
    """The parallel-heads drafter."""

    def __init__(self, config: ParallelConfig):
        super().__init__()
        size = config.hidden_size
        self.config = config
        self.input_layer = InputLayer(config)
        self.layers = nn.ModuleList(DraftLayer(config) for _ in range(config.num_hidden_layers))
        self.heads = nn.ModuleList(
            nn.Linear(size, size, bias=False) for _ in range(config.positions - 1)
        )
        for head in self.heads:
            nn.init.zeros_(head.weight)
        self.norm = RMSNorm(size, config.rms_norm_eps)
        self.lm_head = nn.Linear(size, config.draft_vocab_size, bias=False)
        if config.sink:
            self.sink = nn.Parameter(torch.zeros(size))
        self.rotary = Rotary(config.head_dim, config.rope_theta, config.rope_scaling)
        draft, full = config.draft_vocab_size, config.vocab_size
        self.register_buffer("d2t", torch.zeros(draft, dtype=torch.int64))
        self.register_buffer("t2d", torch.arange(full) < draft)

    def inputs(self, features: Tensor, tokens: Tensor, *, first: bool) -> Tensor:
        """Entries ``[..., n, H]`` of pairs (``features [..., n, F * H]``, next ``tokens``).

        ``first``: they begin the sequence, and the sink, where there is one, comes before them.
        """
        condition = self.input_layer.condition(features)
        x = self.input_layer(condition, tokens, 1).squeeze(-2)
        if first and self.config.sink:
            sink = self.sink.to(x.dtype).expand(*x.shape[:-2], 1, -1)
            x = torch.cat((sink, x), dim=-2)
        return x

    def run(self, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states ``[..., H]`` (before the final norm) of entries ``x [..., H]``.

        ``positions``: int64 [...], rotary position of every entry, pair i at i + 1 and the sink
        at 0; ``attend``: ``(layer, q, k, v) -> [..., heads * d]``.
        """
        cos, sin = self.rotary(positions)
        for index, layer in enumerate(self.layers):
            q, k, v = layer.project(x, cos, sin)
            x = layer.finish(x, attend(index, q, k, v))
        return x

    def ahead(self, hidden: Tensor) -> Tensor:
        """Hidden states of all K positions ``[..., K, H]``, from the trunk's ``[..., H]``."""
        return torch.stack((hidden, *(hidden + F.silu(head(hidden)) for head in self.heads)), -2)

    def logits(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Draft logits ``[..., V_d]`` and the normed hidden states ``[..., H]`` they came from."""
        normed = self.norm(hidden)
        return self.lm_head(normed), normed

    def to_target_ids(self, draft_ids: Tensor) -> Tensor:
        """Target-vocabulary ids of draft-vocabulary ids (``d2t`` holds offsets)."""
        return draft_ids + self.d2t[draft_ids]
