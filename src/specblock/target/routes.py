"""Which route every linear layer should take: measured, over passes through all layers.

Weights then come from memory as in a real forward. Where a verified tree is to give plain
decoding's logits bit for bit, routes must also agree: a row's result may depend neither on how
many rows there are nor on the route that this number of rows takes.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch

from specblock.target.linear import (
    COPYING,
    ROW_BUCKETS,
    RoutedLinear,
    RouteTable,
    Shape,
    available_routes,
)

_TIE = 0.05  # what less than this decides is noise
_OWN_SHARE = 0.1  # of all weights: a matrix as large as this decides for itself
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
_REFERENCE_ROWS = 16

# seconds[shape][bucket][route]
Seconds = Mapping[Shape, list[dict[str, float]]]
# agreeing[bucket][route]: the plain routes whose single rows it repeats bit for bit
Agreement = list[dict[str, set[str]]]


def measure_routes(
    linears: Iterable[RoutedLinear],
    *,
    repetitions: int = 3,
    max_extra_bytes: int | None = None,
    exact: Iterable[RoutedLinear] = (),
) -> RouteTable:
    """Time every route for every shape and row bucket; returns the fastest of each.

    A route is timed over whole passes through ``linears`` in their order, as a forward makes
    them: what a weight costs depends on how much else has gone through the cache since.

    Args:
        max_extra_bytes: bounds the memory of the copies: shapes get one, the largest share of the
            weights first, while the bound allows.
        exact: those of the layers whose rows must not depend on their number; what cannot be had
            is left to :func:`choose_routes`.
    """
    linears, exact = list(linears), list(exact)
    may_copy = _copied_shapes(linears, max_extra_bytes)
    shapes = {linear.shape for linear in linears}
    seconds: dict[Shape, list[dict[str, float]]] = {s: [{} for _ in ROW_BUCKETS] for s in shapes}
    for route in ("direct", "transposed", *COPYING):
        for index, rows in enumerate(ROW_BUCKETS):
            for shape, taken in _time_pass(linears, rows, route, may_copy, repetitions).items():
                seconds[shape][index][route] = taken
        for linear in linears:
            linear.refresh()  # two copies at once would crowd each other out of the cache
    chosen: dict[Shape, list[str]] = {}
    for group in _groups(linears):
        alike = [linear for linear in exact if linear.shape in group]
        agreement = agreeing_routes(alike, may_copy) if alike else None
        chosen |= choose_routes({shape: seconds[shape] for shape in group}, agreement)
    return RouteTable(chosen)


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


def choose_routes(seconds: Seconds, agreement: Agreement | None = None) -> dict[Shape, list[str]]:
    """The route of every shape and bucket of a group, given the seconds of one pass.

    One route per bucket serves all shapes that have it, the others run ``direct``: the sum over
    all layers is far less noisy than any shape's own figure. At most one kind of copy is kept, and
    where there is one it is taken in every bucket where it loses no more than `_TIE`: a forward of
    another row count then finds the weights in the cache that the last one left.

    With ``agreement`` buckets keep to routes that repeat the single rows of the first bucket's;
    where there is no such plan, as many buckets as can.
    """
    plans = []
    for copying in (None, *COPYING):
        routes = ["direct", "transposed", *([copying] if copying else [])]
        firsts = [None] if agreement is None else _totals(seconds, 0, routes)
        plans += [_plan(seconds, agreement, routes, first) for first in firsts]
    chosen = min(plans, key=lambda plan: plan[:2])[2]
    return {
        shape: [
            route if route in timed else "direct"
            for route, timed in zip(chosen, buckets, strict=True)
        ]
        for shape, buckets in seconds.items()
    }


def _plan(
    seconds: Seconds, agreement: Agreement | None, routes: list[str], first: str | None
) -> tuple[int, float, list[str]]:
    """Buckets that do not agree with ``first``, the cost of the rest, and a route per bucket."""
    kept = routes[-1] if routes[-1] in COPYING else "direct"
    chosen, cost, odd = [], 0.0, 0
    for bucket in range(len(ROW_BUCKETS)):
        totals = allowed = _totals(seconds, bucket, routes)
        if agreement is not None:
            allowed = {r: t for r, t in totals.items() if first in agreement[bucket].get(r, ())}
            if bucket == 0:
                allowed = {first: totals[first]}
            odd += not allowed
            allowed = allowed or totals
        least = min(allowed.values())
        best = min(allowed, key=allowed.get)
        if allowed.get(kept, float("inf")) <= (1 + _TIE) * least:
            best = kept
        chosen.append(best)
        cost += totals[best] / totals["direct"]
    return odd, cost * (1 + _TIE if kept in COPYING else 1), chosen


def _totals(seconds: Seconds, bucket: int, routes: Iterable[str]) -> dict[str, float]:
    """Seconds of a pass in which every shape that can takes the route, of those timed at all."""
    timed = [buckets[bucket] for buckets in seconds.values()]
    return {
        route: sum(times.get(route, times["direct"]) for times in timed)
        for route in routes
        if any(route in times for times in timed)
    }


@torch.inference_mode()
def agreeing_routes(linears: Iterable[RoutedLinear], may_copy: set[Shape]) -> Agreement:
    """For every bucket and route, the routes whose single rows it repeats in every shape."""
    names = ("direct", "transposed", *COPYING)
    agreement: Agreement = [{route: set(names) for route in names} for _ in ROW_BUCKETS]
    for linear in {linear.shape: linear for linear in linears}.values():
        taken = {route: _taken(linear, route, may_copy) for route in names}
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(_COMPARED[-1][-1], linear.in_features, generator=generator)
        x = x.to(linear.weight)
        rows = range(_REFERENCE_ROWS)
        single = {
            route: torch.cat([linear.compute(x[i : i + 1], route) for i in rows])
            for route in set(taken.values())
        }
        for bucket, counts in enumerate(_COMPARED):
            for route in names:
                found = [linear.compute(x[:n], taken[route])[:_REFERENCE_ROWS] for n in counts]
                agreement[bucket][route] -= {
                    plain
                    for plain in names
                    if any(not y.equal(single[taken[plain]][: len(y)]) for y in found)
                }
        linear.refresh()
    return agreement


def _taken(linear: RoutedLinear, route: str, may_copy: set[Shape]) -> str:
    """The route that a layer really takes where all are told to take ``route``."""
    can = route in available_routes(linear.weight)
    return route if can and (route not in COPYING or linear.shape in may_copy) else "direct"


@torch.inference_mode()
def _time_pass(
    linears: list[RoutedLinear],
    rows: int,
    route: str,
    may_copy: set[Shape],
    repetitions: int,
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
    for repetition in range(repetitions + 1):
        taken: dict[Shape, float] = defaultdict(float)
        for linear in linears:
            x = inputs[linear.in_features, linear.weight.dtype]
            started = time.perf_counter()
            linear.compute(x, route if linear.shape in fit else "direct")
            taken[linear.shape] += time.perf_counter() - started
        if repetition:  # the first pass makes the copies and warms up
            for shape in fit:
                least[shape] = min(taken[shape], least.get(shape, float("inf")))
    return least
