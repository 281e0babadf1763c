"""Training EAGLE-3 over whole sequences, with training-time test (arXiv 2503.01840).

Step 0 runs all pairs on the target's features, causally: what decoding keeps in its cache. Step
j >= 1 runs a pair i again with its own output of step j - 1 as the condition and the token j
further on, at rotary position i + j. It sees the entries of step 0 up to pair i and those of its
own steps 1 to j, which is what a node at level j sees in decoding: the committed pairs and its
ancestors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from specblock.drafters.eagle3.network import Eagle3Model
from specblock.drafters.objectives.attention import Sight
from specblock.drafters.objectives.batch import Batch, Tally
from specblock.drafters.objectives.chain import ChainLoss

Entry = tuple[Tensor, Tensor]  # keys and values of a step, [B, M, 1, kv_heads, d]


@dataclass(frozen=True)
class Eagle3Trunk:
    """Step 0: ``hidden [B, S, H]``, keys and values ``[B, kv_heads, sink + S, d]``."""

    hidden: Tensor
    keys: Tensor
    values: Tensor


def run_trunk(model: Eagle3Model, features: Tensor, tokens: Tensor) -> Eagle3Trunk:
    """Step 0 of pairs (``features [B, S, F * H]``, next token ``tokens [B, S]``)."""
    kept: list[Tensor] = []
    positions = torch.arange(tokens.shape[1], device=tokens.device) + model.offset

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        entries = [k, v]
        if model.offset:
            sink = [part.expand(len(k), 1, -1, -1).to(k.dtype) for part in model.sink_entry()]
            entries = [torch.cat(pair, dim=1) for pair in zip(sink, entries, strict=True)]
            # a query in the sink's place keeps the causal mask square; it is dropped again
            q = F.pad(q, (0, 0, 0, 0, 1, 0))
        kept.extend(entry.transpose(1, 2) for entry in entries)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), *kept, is_causal=True, enable_gqa=True
        )
        return out.transpose(1, 2)[:, model.offset :].flatten(2)

    hidden = model.run(model.condition(features), tokens, positions, attend)
    return Eagle3Trunk(hidden, *kept)


def run_step(
    model: Eagle3Model,
    trunk: Eagle3Trunk,
    condition: Tensor,
    tokens: Tensor,
    pairs: Tensor,
    earlier: list[Entry],
) -> tuple[Tensor, Entry]:
    """Step j >= 1 at some pairs; returns hidden states ``[B, M, H]`` and the step's own entries.

    Args:
        condition: [B, M, H], the hidden states of step j - 1.
        tokens: int64 [B, M], the token j behind each pair's own.
        pairs: int64 [B, M]; earlier: the entries of steps 1 to j - 1.
    """
    own_mask = torch.ones((), dtype=torch.bool, device=tokens.device)
    own_mask = own_mask.expand(*tokens.shape, 1, len(earlier) + 1)
    sight = Sight.of(pairs + model.offset + 1, own_mask, model.config.num_attention_heads)
    kept: list[Entry] = []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kept.append((k[:, :, None], v[:, :, None]))
        own_k, own_v = (torch.cat(parts, dim=2) for parts in zip(*earlier, *kept, strict=True))
        return sight.attend(q[:, :, None], trunk.keys, trunk.values, own_k, own_v).squeeze(2)

    positions = pairs + model.offset + len(earlier) + 1
    hidden = model.run(model.fed_back(condition), tokens, positions, attend)
    return hidden, kept[0]


@dataclass(frozen=True)
class Eagle3Objective:
    """Soft cross-entropy over ``steps`` steps of training-time test, step j weighing
    ``slot_decay ** j``, each a mean over its usable rows.

    An :class:`specblock.drafters.objectives.batch.Objective`. ``positions``: pairs per sequence
    that go beyond step 0; 0 takes all pairs that decoding may draft from, as the paper does.
    """

    steps: int = 7
    slot_decay: float = 0.8
    positions: int = 0

    @property
    def pad_rows(self) -> int:
        return self.steps

    def __call__(
        self, model: Eagle3Model, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tally]:
        loss = ChainLoss(
            model,
            batch,
            steps=self.steps,
            decay=self.slot_decay,
            positions=self.positions,
            generator=generator,
        )
        trunk = run_trunk(model, batch.features, batch.tokens)
        loss.first(trunk.hidden)
        pairs, last = loss.chosen, batch.tokens.shape[1] - 1
        hidden = trunk.hidden.gather(1, pairs[..., None].expand(-1, -1, trunk.hidden.shape[-1]))
        earlier: list[Entry] = []
        for step in range(1, self.steps):
            # beyond the end no target is usable, so the token there does not matter
            tokens = batch.tokens.gather(1, (pairs + step).clamp(max=last))
            hidden, entry = run_step(model, trunk, hidden, tokens, pairs, earlier)
            earlier.append(entry)
            loss.step(step, hidden)
        return loss.total()
