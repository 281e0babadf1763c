"""The input layer of the drafter network; the other parts are shared by all drafters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specblock.drafters.layers import (
    MLP,
    Attention,
    DraftLayer,
    FeatureNorms,
    RMSNorm,
    Rotary,
    rotate,
)
from specblock.drafters.specblock.config import SpecBlockConfig

__all__ = ["MLP", "Attention", "DraftLayer", "InputLayer", "RMSNorm", "Rotary", "rotate"]


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
        self.feature_norms = FeatureNorms(count, size, eps) if config.feature_norm else None
        rank, later = config.slot_rank, config.block_size - 1
        if rank:
            self.slot_down = nn.Parameter(torch.randn(later * rank, 2 * size) / (2 * size) ** 0.5)
            self.slot_up = nn.Parameter(torch.zeros(later, size, rank))
        self.rank, self.later, self.broadcast = rank, later, config.prefix_broadcast
        nn.init.normal_(self.position_queries.weight, std=0.02)

    def condition(self, features: Tensor) -> Tensor:
        """Block 1: ``features [..., F * H]`` to the condition ``[..., H]``."""
        if self.feature_norms is not None:
            features = self.feature_norms(features)
        return self.condition_proj(features)

    def forward(self, condition: Tensor, tokens: Tensor, slots: int) -> Tensor:
        """The first ``slots`` inputs ``[..., slots, H]`` of blocks at ``condition [..., H]``.

        The shared part is computed once per block, not once per slot (prefix broadcast); without
        the broadcast it goes to slot 0 alone.
        """
        token = self.token_norm(self.embed_tokens(tokens).to(condition.dtype))
        pair = torch.cat((self.condition_norm(condition), token), dim=-1)
        width = pair.shape[-1]
        shared = F.linear(pair, self.fuse.weight[:, :width])
        queries = self.query_norm(self.position_queries.weight[:slots])
        own = F.linear(queries, self.fuse.weight[:, width:])
        if not self.broadcast:
            x = own.expand(*shared.shape[:-1], -1, -1)
            return torch.cat((shared[..., None, :] + x[..., :1, :], x[..., 1:, :]), dim=-2)
        x = shared[..., None, :] + own
        if self.rank and slots > 1:
            x = torch.cat((x[..., :1, :], x[..., 1:, :] + self._per_slot(pair, slots - 1)), dim=-2)
        return x

    def _per_slot(self, pair: Tensor, later: int) -> Tensor:
        down = F.linear(pair, self.slot_down[: later * self.rank])
        down = down.unflatten(-1, (later, self.rank))
        return torch.einsum("...kr,khr->...kh", down, self.slot_up[:later])
