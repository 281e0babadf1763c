"""One budget for the trees of many texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specblock.budget.costs import CostTable, best_nodes

__all__ = ["share"]


def share(reached: Sequence[Tensor], costs: CostTable, rows: int, rate: float) -> list[int]:
    """How many candidates of every text to verify in a forward for all of them.

    The candidates of all texts stand in one list by survival. Verified are the first N, such that
    their expected tokens less ``rate`` times the forward's seconds are most. So a text with good
    drafts gets more nodes than one with poor ones, and none gets any where rows are dear. A text
    whose nodes are not worth what its tree takes beyond its rows (``costs.overhead``) gets none.

    Args:
        reached: float [C_i] for each text, the survival of those candidates that it may verify,
            falling. costs: the measured table.
        rows: of the forward without any candidate.
        rate: tokens per second, the price of time.
    """
    chosen = _share(reached, costs, rows, rate)
    last, total = costs.target_seconds(rows + sum(chosen)), sum(chosen)
    net = [
        float(own[:nodes].sum())
        - rate * (last - costs.target_seconds(rows + total - nodes) + costs.overhead)
        for own, nodes in zip(reached, chosen, strict=True)
    ]
    if min(net) < 0 and any(nodes for nodes, own in zip(chosen, net, strict=True) if own < 0):
        paying = [own if worth >= 0 else own[:0] for own, worth in zip(reached, net, strict=True)]
        return _share(paying, costs, rows, rate)
    return chosen


def _share(reached: Sequence[Tensor], costs: CostTable, rows: int, rate: float) -> list[int]:
    sizes = torch.tensor([len(own) for own in reached])
    if not sizes.sum():
        return [0] * len(reached)
    owners = torch.arange(len(reached)).repeat_interleave(sizes)
    merged, order = torch.cat([own.cpu() for own in reached]).sort(descending=True, stable=True)
    nodes, _ = best_nodes(merged, costs, 0.0, rate, rows)
    return torch.bincount(owners[order[:nodes]], minlength=len(reached)).tolist()
