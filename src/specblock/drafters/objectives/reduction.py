"""Means over a batch that several processes hold in parts.

The losses are means over masked rows. Every process only knows its own rows, so each sums above
the line for itself and the counts below the line are summed over all processes, all of them in
one exchange at the end. DDP averages gradients over processes; the terms are scaled by their
number, which makes that average the gradient of the mean over the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specblock.drafters.objectives.processes import sum_over_workers, worker_count


@dataclass(frozen=True)
class _Part:
    """``weight * (w @ sums) / mass`` with w = min(1, budget / counts) by class; ``mass`` is the sum
    of ``w @ counts`` over the parts of a group."""

    weight: float
    sums: Tensor  # fp32 [C], with gradient
    counts: Tensor  # fp64 [C]
    budget: float
    group: object


class Means:
    """A weighted sum of means, put together slot by slot."""

    def __init__(self) -> None:
        self._parts: list[_Part] = []

    def add(self, weight: float, terms: Tensor, rows: int | None = None) -> None:
        """``weight`` times the mean of ``terms [R]`` over all processes' rows; 0 of no rows.

        ``rows``: of how many this process' terms are the ones that count; R by default. The others
        enter the mean as zeros.
        """
        rows = terms.numel() if rows is None else rows
        count = torch.tensor([rows], dtype=torch.float64, device=terms.device)
        self._parts.append(_Part(weight, terms.sum()[None], count, 0.0, object()))

    def add_by_class(
        self, terms: Tensor, labels: Tensor, classes: int, budget: float, group: object
    ) -> None:
        """The mean of ``terms [R]``, rows of class c weighted min(1, B / count_c).

        The frequency weight of the rank loss (arXiv 2605.07243): counts are those of one call (a
        slot), the mean runs over all calls with the same ``group`` (a block). ``budget`` <= 0
        switches the weight off.
        """
        sums = terms.new_zeros(classes).index_add(0, labels, terms)
        counts = torch.bincount(labels, minlength=classes).double()
        self._parts.append(_Part(1.0, sums, counts, budget, group))

    def terms(self) -> list[Tensor]:
        """Every part's share of the loss; exchanges the counts, so all processes must call it."""
        if not self._parts:
            return []
        counts = sum_over_workers(torch.cat([part.counts for part in self._parts]))
        sizes = [part.counts.numel() for part in self._parts]
        masses: dict[object, Tensor] = {}
        by_class = []
        for part, below in zip(self._parts, counts.split(sizes), strict=True):
            weights = torch.ones_like(below)
            if part.budget > 0:
                weights = (part.budget / below.clamp(min=1)).clamp(max=1.0)
            by_class.append(weights)
            masses[part.group] = masses.get(part.group, 0.0) + (weights * below).sum()
        found = []
        for part, weights in zip(self._parts, by_class, strict=True):
            share = weights * (worker_count() * part.weight) / masses[part.group].clamp(min=1e-6)
            found.append((part.sums * share.to(part.sums.dtype)).sum())
        return found
