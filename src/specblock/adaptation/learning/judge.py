"""Whether other weights draft better: both on the same held-out feedback, position by position.

At seeded start positions one block is run, as decoding would there, and held against the target at
its first choices: slot k counts if all slots before it were right and the target's token is
among its best ``WIDTH``, which a tree would hold; a token that cannot be drafted is a miss. One
more than the mean count stands for the accepted length; differences between two drafters are paired
by record, so what makes one text easier than another drops out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from specblock.adaptation.feedback.buffer import Record, as_drafted
from specblock.adaptation.learning.preemption import Preemption
from specblock.drafters.objectives.head_loss import head_loss
from specblock.drafters.objectives.noise import mixed_seed
from specblock.drafters.specblock.forward import run_block, run_trunk
from specblock.drafters.specblock.network import RANK_TOP, SpecBlockModel
from specblock.steps import Steps, drained
from specblock.training.evaluate.evaluator import make_batch

WIDTH = 3  # tokens that count as drafted in a slot
_TOGETHER = 8  # records of a forward, where nobody waits for it
_PRIOR_GAIN = 0.05  # standard deviation of true gains: what a noisy measurement is shrunk by


@dataclass(frozen=True)
class Comparison:
    """A candidate against a reference on the same records.

    ``ratio``: of accepted lengths; ``error``: standard error of the ratio.
    """

    ratio: float
    error: float

    @property
    def gain(self) -> float:
        """Share of decoding seconds saved, 1 - 1 / ratio, shrunk towards 0 by its noise.

        Choosing what measures best would otherwise believe its own luck.
        """
        trust = _PRIOR_GAIN**2 / (_PRIOR_GAIN**2 + self.error**2)
        return trust * (1.0 - 1.0 / self.ratio)

    def better(self, z: float) -> bool:
        return self.ratio - 1.0 > z * self.error


def compare(candidate: Tensor, reference: Tensor) -> Comparison:
    """Compare two results of :func:`accepted_lengths` on the same records, float64 [R]."""
    base = reference.mean().item()
    difference = candidate - reference
    count = len(difference)
    spread = difference.std().item() / math.sqrt(count) if count > 1 else math.inf
    return Comparison(candidate.mean().item() / base, spread / base)


def accepted_lengths(
    model: SpecBlockModel, records: list[Record], positions: int, seed: int
) -> Tensor:
    """Proxy of the accepted length of every record, float64 [R]."""
    return drained(judging(model, records, positions, seed))


def judging(
    model: SpecBlockModel,
    records: list[Record],
    positions: int,
    seed: int,
    batch_records: int | None = None,
    preemption: Preemption | None = None,
) -> Steps[Tensor]:
    """:func:`accepted_lengths` in steps of ``batch_records`` records, that may be given up."""
    found, batch_records = [], batch_records or _TOGETHER
    preemption = preemption or Preemption()
    for first in range(0, len(records), batch_records):
        part = records[first : first + batch_records]
        asked = partial(_accepted, model, part, positions, mixed_seed(seed, first))
        found.append((yield from preemption.whole(asked)))
        yield
    return torch.cat(found)


@torch.no_grad()
def _accepted(model: SpecBlockModel, records: list[Record], positions: int, seed: int) -> Tensor:
    device, slots = model.norm.weight.device, model.config.block_size
    sequences = [as_drafted(record, model.t2d) for record in records]
    batch = make_batch(sequences, list(range(len(records))), slots + 1).to(device)
    batch = replace(batch, features=batch.features.float())
    trunk = run_trunk(model, batch.features, batch.tokens)
    noise = torch.rand(batch.start.shape, generator=torch.Generator().manual_seed(seed))
    known = pad_sequence([record.sequence.usable for record in records], batch_first=True)
    known = known.to(device)
    score = noise.to(device).masked_fill(~(batch.start & known), -1.0)
    best = score.topk(min(positions, score.shape[1]), dim=-1)
    chosen, live = best.indices, best.values >= 0
    condition = trunk.condition.gather(
        1, chosen[..., None].expand(-1, -1, trunk.condition.shape[-1])
    )
    block = run_block(model, trunk, condition, batch.tokens.gather(1, chosen), chosen)
    rows = torch.arange(len(records), device=device)[:, None].expand_as(chosen)
    chain, count = live, torch.zeros_like(chosen, dtype=torch.float64)
    for slot in range(slots):
        asked = rows, chosen + slot
        picked = (chain & batch.targets.usable[asked]).nonzero(as_tuple=True)
        ranks = torch.full_like(chosen, RANK_TOP + 1)
        targets = batch.targets.at((rows[picked], (chosen + slot)[picked]))
        normed = model.norm(block.hidden[:, :, slot][picked])
        ranks[picked] = head_loss(normed, model.lm_head.weight, targets, top=RANK_TOP).ranks
        count += ranks <= WIDTH
        chain = chain & (ranks == 1)
    return 1.0 + ((count * live).sum(1) / live.sum(1).clamp(min=1)).cpu()
