"""Which route every linear layer should take: measured, over passes through all layers.

Weights then come from memory as in a real forward. Where a verified tree is to give plain
decoding's logits bit for bit, routes must also agree: a row's result may depend neither on how
many rows there are nor on the route that this number of rows takes. Shapes for which no kernel
does that take one in tiles, always of the same number of rows.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable

import torch

from specblock.kernels.deadline import Deadline, OutOfTimeError
from specblock.kernels.linear import RoutedLinear
from specblock.kernels.products import COPYING, DIRECT, KERNELS, available_routes
from specblock.kernels.route_plan import Agreement, choose_exact_routes, choose_routes
from specblock.kernels.route_table import ROW_BUCKETS, RouteTable, Shape

_OWN_SHARE = 0.1  # of all weights: a matrix as large as this decides for itself
_ENOUGH = 192 << 20  # bytes of weights that no processor's cache keeps from one pass to the next
# by bucket, the row counts whose results are compared
_COMPARED = (
    (1,),
    (2,),
    (3,),
    (4,),
    (5, 7, 8),
    (9, 15, 16),
    (17, 24, 31, 32),
    (33, 48, 64, 96, 128),
)
_REFERENCE_ROWS = 16  # rows that exact routes are compared with

_NAMES = tuple(KERNELS)


def measure_routes(
    linears: Iterable[RoutedLinear],
    *,
    repetitions: int = 3,
    max_extra_bytes: int | None = None,
    exact: Iterable[RoutedLinear] = (),
    deadline: Deadline | None = None,
) -> RouteTable:
    """Time every route for every shape and row bucket; returns the fastest of each.

    A route is timed over passes through ``linears`` in their order, as a forward makes them: what a
    weight costs depends on how much else has gone through the cache since. Of a large model a
    :func:`sample` stands for the others.

    Args:
        repetitions: passes that are timed, as far as the time allows.
        max_extra_bytes: bounds the memory of the copies: shapes get one, the largest share of the
            weights first, while the bound allows.
        exact: those of the layers whose rows must not depend on their number; what cannot be had
            is left to :func:`choose_routes`.

    Raises :class:`OutOfTimeError` where not even the usual products can be timed.
    """
    linears, exact, deadline = list(linears), list(exact), deadline or Deadline()
    may_copy = _copied_shapes(linears, max_extra_bytes)
    seconds = _time_routes(sample(linears), may_copy, repetitions, deadline)
    every, few = Counter(x.shape for x in linears), Counter(x.shape for x in sample(linears))
    for shape, buckets in seconds.items():
        for timed in buckets:
            timed.update({route: t * every[shape] / few[shape] for route, t in timed.items()})
    chosen: dict[Shape, list[str]] = {}
    for group in _groups(linears):
        timed = {shape: seconds[shape] for shape in group}
        alike = [linear for linear in exact if linear.shape in group]
        deadline.check()
        agreements = agreeing_routes(alike, may_copy)
        chosen |= choose_routes(timed) if not alike else choose_exact_routes(timed, agreements)
    return RouteTable(chosen)


def sample(linears: Iterable[RoutedLinear]) -> list[RoutedLinear]:
    """Enough of the layers, in order and of every shape, that no cache holds them."""
    linears = list(linears)
    total = sum(linear.weight.numel() * linear.weight.element_size() for linear in linears)
    counts = Counter(linear.shape for linear in linears)
    wanted = {
        shape: math.ceil(count * min(1.0, _ENOUGH / total)) for shape, count in counts.items()
    }
    taken: Counter[Shape] = Counter()
    chosen = []
    for linear in linears:
        if taken[linear.shape] < wanted[linear.shape]:
            taken[linear.shape] += 1
            chosen.append(linear)
    return chosen


def _time_routes(
    linears: list[RoutedLinear], may_copy: set[Shape], repetitions: int, deadline: Deadline
) -> dict[Shape, list[dict[str, float]]]:
    """Seconds by shape, bucket and route; buckets that the time is too short for lack the route."""
    seconds: dict[Shape, list[dict[str, float]]] = {
        linear.shape: [{} for _ in ROW_BUCKETS] for linear in linears
    }
    for number, route in enumerate(_NAMES):
        own = deadline.part(1 / (len(_NAMES) - number))
        try:
            for index, rows in enumerate(ROW_BUCKETS):
                timed = _time_pass(linears, rows, route, may_copy, repetitions, own)
                for shape, taken in timed.items():
                    seconds[shape][index][route] = taken
        except OutOfTimeError:
            if route == DIRECT:
                raise
        for linear in linears:
            linear.refresh()  # two copies at once would crowd each other out of the cache
    return seconds


def _groups(linears: list[RoutedLinear]) -> list[set[Shape]]:
    """The shapes that take one decision together: the largest matrix, mostly the output head, where
    it is a good part of all weights, and the others."""
    shapes = {linear.shape for linear in linears}
    largest = max(shapes, key=lambda shape: shape[0] * shape[1])
    total = sum(linear.weight.numel() for linear in linears)
    if len(shapes) == 1 or largest[0] * largest[1] < _OWN_SHARE * total:
        return [shapes]
    return [{largest}, shapes - {largest}]


def _copied_shapes(linears: list[RoutedLinear], max_extra_bytes: int | None) -> set[Shape]:
    """The shapes that may keep a second copy of their weights."""
    left = float("inf") if max_extra_bytes is None else max_extra_bytes
    sizes: dict[Shape, int] = defaultdict(int)
    for linear in linears:
        sizes[linear.shape] += linear.weight.numel() * linear.weight.element_size()
    may_copy = set()
    for shape, size in sorted(sizes.items(), key=lambda item: -item[1]):
        if size <= left:
            may_copy.add(shape)
            left -= size
    return may_copy


@torch.inference_mode()
def agreeing_routes(
    linears: Iterable[RoutedLinear], may_copy: set[Shape]
) -> dict[Shape, Agreement]:
    """By shape, bucket and route: the routes whose single rows it repeats."""
    agreements: dict[Shape, Agreement] = {}
    for linear in {linear.shape: linear for linear in linears}.values():
        agreement = agreements[linear.shape] = [
            {route: set(_NAMES) for route in _NAMES} for _ in ROW_BUCKETS
        ]
        taken = {route: _taken(linear, route, may_copy) for route in _NAMES}
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(_COMPARED[-1][-1], linear.in_features, generator=generator)
        x = x.to(linear.weight)
        rows = range(_REFERENCE_ROWS)
        single = {
            route: torch.cat([linear.compute(x[i : i + 1], route) for i in rows])
            for route in set(taken.values())
        }
        for bucket, counts in enumerate(_COMPARED):
            for route in _NAMES:
                found = [linear.compute(x[:n], taken[route])[:_REFERENCE_ROWS] for n in counts]
                agreement[bucket][route] -= {
                    plain
                    for plain in _NAMES
                    if any(not y.equal(single[taken[plain]][: len(y)]) for y in found)
                }
        linear.refresh()
    return agreements


def _taken(linear: RoutedLinear, route: str, may_copy: set[Shape]) -> str:
    """The route that a layer really takes where all are told to take ``route``."""
    can = route in available_routes(linear.weight)
    return route if can and (route not in COPYING or linear.shape in may_copy) else DIRECT


@torch.inference_mode()
def _time_pass(
    linears: list[RoutedLinear],
    rows: int,
    route: str,
    may_copy: set[Shape],
    repetitions: int,
    deadline: Deadline,
) -> dict[Shape, float]:
    """Least seconds per shape over some passes by one route: noise only ever adds.

    Layers that cannot take the route run ``direct``, and their shapes are not in the result.
    """
    inputs = {
        (linear.in_features, linear.weight.dtype): torch.ones(
            rows, linear.in_features, dtype=linear.weight.dtype
        )
        for linear in linears
    }
    fit = {linear.shape for linear in linears if _taken(linear, route, may_copy) == route}
    least: dict[Shape, float] = {}
    share = 1 / (len(ROW_BUCKETS) - ROW_BUCKETS.index(rows))
    own, last = deadline.part(share), 0.0
    # the route's first pass makes the copies and warms up
    for repetition in range(0 if rows == ROW_BUCKETS[0] else 1, repetitions + 1):
        if repetition > 1 and own.left < last:
            break
        deadline.check(last)
        began = time.perf_counter()
        taken: dict[Shape, float] = defaultdict(float)
        for linear in linears:
            x = inputs[linear.in_features, linear.weight.dtype]
            started = time.perf_counter()
            linear.compute(x, route if linear.shape in fit else DIRECT)
            taken[linear.shape] += time.perf_counter() - started
        if repetition:
            for shape in fit:
                least[shape] = min(taken[shape], least.get(shape, float("inf")))
        last = time.perf_counter() - began
    return least
