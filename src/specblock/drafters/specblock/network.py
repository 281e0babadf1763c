"""The drafter network (SpecBlock, arXiv 2605.07243, architecture), without any cache.

One *entry* is a (position, slot) pair. The network maps entries to hidden states layer by layer;
which entries see which is decided by the ``attend`` function of the caller: the trainer uses dense
batches (:mod:`specblock.drafters.specblock.forward`), decoding a cache (``drafter.py``).
A test holds the two to the same logits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from specblock.drafters.specblock.config import SpecBlockConfig
from specblock.drafters.specblock.layers import DraftLayer, InputLayer, RMSNorm, Rotary

RANK_FEATURES = 15  # inputs of the rank head beside the state
RANK_TOP = 20  # draft logits that enter the rank head's normalisation

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class SpecBlockModel(nn.Module):
    """The SpecBlock drafter. Parameter names are those of the published checkpoints."""

    def __init__(self, config: SpecBlockConfig):
        super().__init__()
        size = config.hidden_size
        self.config = config
        self.input_layer = InputLayer(config)
        self.layers = nn.ModuleList(DraftLayer(config) for _ in range(config.num_hidden_layers))
        shifts = config.num_hidden_layers - 1 if config.layer_shift else 0
        self.shift_proj = nn.ModuleList(
            nn.Linear(2 * size, size, bias=False) for _ in range(shifts)
        )
        self.norm = RMSNorm(size, config.rms_norm_eps)
        self.lm_head = nn.Linear(size, config.draft_vocab_size, bias=False)
        self.rank_head = nn.Sequential(
            nn.Linear(size + RANK_FEATURES, 256, bias=False),
            nn.SiLU(),
            nn.Linear(256, config.rank_classes, bias=False),
        )
        if config.sink:
            self.sink = nn.Parameter(torch.zeros(size))
        self.rotary = Rotary(config.head_dim, config.rope_theta, config.rope_scaling)
        draft, full = config.draft_vocab_size, config.vocab_size
        self.register_buffer("d2t", torch.zeros(draft, dtype=torch.int64))
        self.register_buffer("t2d", torch.arange(full) < draft)

    def run(
        self, x: Tensor, shifted: Callable[[Tensor], Tensor], positions: Tensor, attend: Attend
    ):
        """Hidden states ``[..., H]`` (before the final norm) of entries ``x [..., H]``.

        Args:
            shifted: the layer-wise shift: entries to those of the previous slot (slot 0: its own).
            positions: int64 [...], rotary position of every entry.
            attend: ``(layer, q, k, v) -> [..., heads * d]``.
        """
        cos, sin = self.rotary(positions)
        for index, layer in enumerate(self.layers):
            if index and self.config.layer_shift:
                x = self.shift_proj[index - 1](torch.cat((x, shifted(x)), dim=-1))
            q, k, v = layer.project(x, cos, sin)
            x = layer.finish(x, attend(index, q, k, v))
        return x

    def logits(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Draft logits ``[..., V_d]`` and the normed hidden states ``[..., H]`` they came from."""
        normed = self.norm(hidden)
        return self.lm_head(normed), normed

    def rank_logits(self, normed: Tensor, logits: Tensor) -> Tensor:
        """Rank-bucket logits ``[..., 4]``; no gradient flows into its inputs."""
        return self._rank_logits(normed, rank_features(logits.detach()))

    def rank_logits_of_top(self, normed: Tensor, top: Tensor) -> Tensor:
        """:meth:`rank_logits` from the best 20 draft logits alone, best first ``[..., 20]``."""
        return self._rank_logits(normed, rank_features_of_top(top.detach()))

    def _rank_logits(self, normed: Tensor, features: Tensor) -> Tensor:
        return self.rank_head(torch.cat((normed.detach(), features.to(normed.dtype)), dim=-1))

    def to_target_ids(self, draft_ids: Tensor) -> Tensor:
        """Target-vocabulary ids of draft-vocabulary ids (``d2t`` holds offsets)."""
        return draft_ids + self.d2t[draft_ids]


def rank_features(logits: Tensor) -> Tensor:
    """The rank head's 15 confidence features ``[..., 15]`` fp32 of draft ``logits [..., V_d]``.

    Over the 20 best logits z: ten log-probabilities, the gaps z1-z2, z1-z3, z1-z5, the best
    probability, and the entropy; all normalised over these 20 alone.
    """
    count = min(RANK_TOP, logits.shape[-1])
    return rank_features_of_top(logits.float().topk(count, dim=-1).values)


def rank_features_of_top(top: Tensor) -> Tensor:
    """:func:`rank_features` of logits already sorted, best first ``[..., 20]``."""
    log_probs = top - top.logsumexp(-1, keepdim=True)
    # slices, not a list of indices: on a GPU that is a copy from the host, which no graph records
    gaps = top[..., :1] - torch.cat((top[..., 1:3], top[..., 4:5]), dim=-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1, keepdim=True)
    return torch.cat((log_probs[..., :10], gaps, log_probs[..., :1].exp(), entropy), dim=-1)


def previous_slot(x: Tensor) -> Tensor:
    """The layer-wise shift of ``x [..., K, H]``: slot k reads slot k-1, slot 0 itself."""
    return torch.cat((x[..., :1, :], x[..., :-1, :]), dim=-2)


def vocabulary_map(target_ids: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """``d2t`` (offsets, int64 [V_d]) and ``t2d`` (bool [V]) of the chosen target ids."""
    chosen = target_ids.unique(sorted=True)
    t2d = torch.zeros(vocab_size, dtype=torch.bool)
    t2d[chosen] = True
    return chosen - torch.arange(chosen.numel()), t2d
