"""Training the parallel heads: the trunk over whole sequences, and a soft cross-entropy per head.

No head sees another's token, so nothing need be simulated and no prefix be valid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from specblock.drafters.objectives.batch import Batch, Tally
from specblock.drafters.objectives.chain import ChainLoss
from specblock.drafters.parallel.network import ParallelModel


def run_trunk(model: ParallelModel, features: Tensor, tokens: Tensor) -> Tensor:
    """The trunk's hidden states ``[B, S, H]`` of pairs (``features [B, S, F * H]``, ``tokens``)."""
    x = model.inputs(features, tokens, first=True)
    offset = int(model.config.sink)
    positions = torch.arange(x.shape[1], device=x.device) + 1 - offset

    def attend(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        flat = [part.transpose(1, 2) for part in (q, k, v)]
        out = F.scaled_dot_product_attention(*flat, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).flatten(2)

    return model.run(x, positions, attend)[:, offset:]


@dataclass(frozen=True)
class ParallelObjective:
    """Soft cross-entropy of all K positions, position k weighing ``slot_decay ** k``.

    An :class:`specblock.drafters.objectives.batch.Objective`. ``positions``: pairs per sequence at
    which the heads run; 0 takes all pairs that decoding may draft from. ``heads``: the drafter's K.
    """

    heads: int = 4
    slot_decay: float = 0.8
    positions: int = 0

    @property
    def pad_rows(self) -> int:
        return self.heads

    def __call__(
        self, model: ParallelModel, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tally]:
        loss = ChainLoss(
            model,
            batch,
            steps=self.heads,
            decay=self.slot_decay,
            positions=self.positions,
            generator=generator,
        )
        trunk = run_trunk(model, batch.features, batch.tokens)
        loss.first(trunk)
        hidden = trunk.gather(1, loss.chosen[..., None].expand(-1, -1, trunk.shape[-1]))
        for head, ahead in enumerate(model.ahead(hidden).unbind(-2)[1 : self.heads], start=1):
            loss.step(head, ahead)
        return loss.total()
