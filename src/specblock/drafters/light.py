"""Drafters' layers with 8-bit weights, where that is quicker.

A call of a drafter has a handful of rows, and its time is that of fetching the weights: the target,
several times as large, has been through the cache since the last call. A copy in 8 bits, one scale
per output, is a quarter of the fp32 weights; inputs are rounded to bf16, sums are fp32. What the
drafter proposes changes in the last digits, what the target draws cannot.

Left out are layers whose inputs have outliers, which blow up the rounding of the weights that meet
them: those that read the features, the residual stream or a gated product. With them the accepted
length falls by one per cent, without them it stays (docs/experiments.md, 30). So are the head, of
which :mod:`specblock.drafters.shortlist` reads the best rows exactly, and SpecBlock's fusion, which
is multiplied in two parts.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from torch import nn

from specblock.kernels.deadline import Deadline
from specblock.kernels.linear import RoutedLinear, route_linears, run_through
from specblock.kernels.route_table import LIGHT, ROW_BUCKETS

_TURNS = 4  # times that either way is timed
_WHOLE = ("condition_proj", "fc", "shift_proj", "down_proj", "fuse", "lm_head")  # by name


def route_drafter(network: nn.Module) -> list[RoutedLinear]:
    """Let the layers of a drafter's network on the CPU take routes, 8-bit weights among them."""
    linears = route_linears(network, light=True)
    for name, module in network.named_modules():
        if isinstance(module, RoutedLinear) and not set(_WHOLE).isdisjoint(name.split(".")):
            module.light = False
    return linears


@torch.inference_mode()
def light_rows(
    linears: Iterable[RoutedLinear],
    others: Iterable[RoutedLinear],
    deadline: Deadline | None = None,
) -> int:
    """Up to how many rows 8-bit weights are quicker, by the clock: 0 or a row bucket.

    Args:
        linears: of drafters, with the routes they take otherwise; those that cannot are skipped.
        others: run between two measurements, for the weights to come from memory as in decoding.
        deadline: more rows than it allows are not tried.
    """
    linears, others = [linear for linear in linears if linear.light], list(others)
    best, deadline = 0, deadline or Deadline()
    for rows in ROW_BUCKETS if linears else ():
        if not deadline.left:
            break
        inputs = {
            (linear.in_features, linear.weight.dtype): torch.ones(
                rows, linear.in_features, dtype=linear.weight.dtype
            )
            for linear in linears
        }
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(_TURNS + 1):
            for light in seconds:
                run_through(others)
                started = time.perf_counter()
                for linear in linears:
                    route = linear.table.route(linear.shape, rows, light=False)
                    x = inputs[linear.in_features, linear.weight.dtype]
                    linear.compute(x, LIGHT if light else route)
                if turn:  # the first makes the copies
                    seconds[light].append(time.perf_counter() - started)
        if min(seconds[True]) >= min(seconds[False]):
            break
        best = rows
    return best
