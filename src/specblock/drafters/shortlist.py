"""The best tokens of an output head, without reading all of it in full precision.

A drafter's head is its largest matrix, and all that is wanted of it are some twenty tokens a row.
Where the processor multiplies 8-bit numbers natively, an 8-bit copy of the head names a few more
candidates than are wanted, and their logits alone are computed exactly: the tokens and logits are
those of the whole head unless one of them is not even among the candidates. Only the
normaliser keeps the rounding of the copy.

Whether that is quicker is measured on the machine (:func:`screening_pays`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from torch import Tensor

from specblock.kernels.deadline import Deadline
from specblock.kernels.linear import RoutedLinear, has_int8, run_through
from specblock.kernels.route_table import Shape

SPARE = 12  # candidates beyond those wanted
_ROWS = 8  # timed: between one block and a few
_WANTED = 20  # candidates of a draft node
_TURNS = 5  # times that either way is timed


def best_logits(
    head: torch.nn.Module, normed: Tensor, wanted: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``wanted`` largest logits of every row, and what normalises them.

    Args:
        head: ``nn.Linear`` [V_d, H] or a :class:`RoutedLinear`, whose table decides on screening.
        normed: [..., H].

    Returns:
        Logits fp32 [..., wanted] best first, their draft ids int64 [..., wanted], and the
        logarithm of the sum of all exponentials fp32 [..., 1].
    """
    wanted = min(wanted, head.out_features)
    if isinstance(head, RoutedLinear) and head.screened:
        return _screened(head, normed, wanted)
    logits = head(normed).float()
    best, ids = logits.topk(wanted, dim=-1)
    return best, ids, logits.logsumexp(-1, keepdim=True)


def _screened(head: RoutedLinear, normed: Tensor, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
    rough = head.approximate(normed)
    candidates = rough.topk(min(wanted + SPARE, head.out_features), dim=-1).indices
    exact = (head.weight[candidates].float() @ normed.float()[..., None]).squeeze(-1)
    best, places = exact.topk(wanted, dim=-1)
    return best, candidates.gather(-1, places), rough.logsumexp(-1, keepdim=True)


@torch.inference_mode()
def screening_pays(
    heads: Iterable[RoutedLinear],
    others: Iterable[RoutedLinear],
    deadline: Deadline | None = None,
) -> frozenset[Shape]:
    """The shapes of ``heads`` whose best tokens come quicker screened, by the clock.

    Between two measurements the layers ``others`` run, for the head to come from memory as
    it does in decoding. Heads on another device than the CPU, those with a bias, and those that
    ``deadline`` leaves no time for are left out.
    """
    others, found, deadline = list(others), set(), deadline or Deadline()
    for head in {head.shape: head for head in heads}.values():
        able = head.weight.device.type == "cpu" and head.bias is None and has_int8()
        if not able or not deadline.left:
            continue
        normed = torch.randn(_ROWS, head.in_features, generator=torch.Generator().manual_seed(0))
        normed = normed.to(head.weight.dtype)
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(_TURNS + 1):
            for screened in seconds:
                run_through(others)
                started = time.perf_counter()
                if screened:
                    _screened(head, normed, _WANTED)
                else:
                    best_logits(head, normed, _WANTED)
                if turn:  # the first makes the copies
                    seconds[screened].append(time.perf_counter() - started)
        if min(seconds[True]) < min(seconds[False]):
            found.add(head.shape)
    return frozenset(found)
