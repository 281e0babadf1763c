"""The drafter's losses as pure functions (SpecBlock, arXiv 2605.07243, training objective).

The target's distribution enters as its most probable draft-vocabulary tokens with their
probabilities (``Targets``); a soft cross-entropy needs no more than these and the drafter's
log-normaliser. With as many entries as the vocabulary has the sum is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

RANK_EDGES = (1, 4, 10)  # last rank of buckets 0, 1, 2; everything behind is bucket 3


@dataclass(frozen=True)
class Targets:
    """The target's distribution over the draft vocabulary at some rows.

    ``ids``: int64 [..., T] draft ids, best first; ``probabilities``: fp32 [..., T], as
    renormalised over the whole draft vocabulary; ``usable``: bool [...], False where the target's
    arg-max is outside the draft vocabulary or the row is no answer position.
    """

    ids: Tensor
    probabilities: Tensor
    usable: Tensor

    def at(self, rows: Tensor) -> Targets:
        return Targets(self.ids[rows], self.probabilities[rows], self.usable[rows])

    @property
    def best(self) -> Tensor:
        return self.ids[..., 0]


def soft_cross_entropy(logits: Tensor, targets: Targets) -> Tensor:
    """``-sum_v P(v) log q(v)`` per row, fp32 [R], of draft ``logits [R, V_d]``."""
    wide = logits.float()
    chosen = wide.gather(-1, targets.ids)
    log_q = chosen - wide.logsumexp(-1, keepdim=True)
    return -(targets.probabilities * log_q).sum(-1)


def rank_of_best(logits: Tensor, best: Tensor) -> Tensor:
    """Rank (1 = first) of draft token ``best [R]`` in ``logits [R, V_d]``, int64 [R]."""
    own = logits.gather(-1, best[..., None])
    return (logits > own).sum(-1) + 1


def rank_bucket(rank: Tensor) -> Tensor:
    """Bucket of a rank: 0 for 1, 1 for 2-4, 2 for 5-10, 3 beyond."""
    edges = torch.tensor(RANK_EDGES, device=rank.device)
    return (rank[..., None] > edges).sum(-1)


def rank_soft_targets(classes: int) -> Tensor:
    """Ordinal smoothing ``[true class, class]``: under-estimating a rank weighs twice."""
    true = torch.arange(classes)[:, None]
    other = torch.arange(classes)[None, :]
    distance = 1 + (other - true).abs() + (true - other).clamp(min=0)
    weights = 1.0 / distance.float() ** 2
    return weights / weights.sum(-1, keepdim=True)


def rank_terms(rank_logits: Tensor, labels: Tensor) -> Tensor:
    """Distance-weighted, ordinally smoothed cross-entropy of the rank head, fp32 [R].

    Args:
        rank_logits: [R, C]; labels: int64 [R], the true buckets.
    """
    soft = rank_soft_targets(rank_logits.shape[-1]).to(rank_logits.device)[labels]
    cross = -(soft * F.log_softmax(rank_logits.float(), dim=-1)).sum(-1)
    predicted = rank_logits.argmax(-1)
    distance = 1 + (labels - predicted).abs() + (labels - predicted).clamp(min=0)
    return distance * cross


def rank_loss(
    rank_logits: Tensor, labels: Tensor, mask: Tensor, budget_per_class: float
) -> tuple[Tensor, Tensor]:
    """Numerator and denominator of one slot's rank loss.

    What :class:`specblock.drafters.objectives.reduction.Means` sums up over slots and processes.

    Args:
        rank_logits: [R, 4]; labels: int64 [R] true buckets; mask: bool [R].
        budget_per_class: B of the frequency weight ``min(1, B / count)``; <= 0 switches it off.
    """
    weight = mask.float()
    if budget_per_class > 0:
        counts = torch.bincount(labels[mask], minlength=rank_logits.shape[-1]).clamp(min=1)
        weight = weight * (budget_per_class / counts).clamp(max=1.0)[labels]
    return (weight * rank_terms(rank_logits, labels)).sum(), weight.sum()
