"""The choice of routes from what was timed, and from what agrees bit for bit; pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from specblock.kernels.products import COPYING, DIRECT, KERNELS
from specblock.kernels.route_table import ROW_BUCKETS, TILED, Shape

# seconds[shape][bucket][route]
Seconds = Mapping[Shape, list[dict[str, float]]]
# agreement[bucket][route]: the plain routes whose single rows it repeats bit for bit
Agreement = list[dict[str, set[str]]]
_NAMES = tuple(KERNELS)
_TIE = 0.05  # what less than this decides is noise
_TILES = (4, 8, 16)  # rows; buckets all of them
_TYPICAL_ROWS = 8  # of a verified tree, for choosing a tile


def choose_routes(seconds: Seconds, agreement: Agreement | None = None) -> dict[Shape, list[str]]:
    """The route of every shape and bucket of a group, given the seconds of one pass.

    One route per bucket serves all shapes that have it, the others run ``direct``: the sum over
    all layers is far less noisy than any shape's own figure. At most one kind of copy is kept, and
    where there is one it is taken in every bucket where it loses no more than `_TIE`: a forward of
    another row count then finds the weights in the cache that the last one left.

    With ``agreement`` buckets keep to routes that repeat the single rows of the first bucket's;
    where there is no such plan, as many buckets as can.
    """
    return _best_plan(seconds, agreement)[1]


def choose_exact_routes(
    seconds: Seconds, agreements: Mapping[Shape, Agreement]
) -> dict[Shape, list[str]]:
    """As :func:`choose_routes`, of routes with which no row depends on the others.

    Shapes that have such a plan alone take one together, or their own where their plans differ;
    the others a kernel in tiles. Shapes without an agreement are free.
    """
    alone = {shape: _best_plan({shape: seconds[shape]}, agreements.get(shape)) for shape in seconds}
    chosen = {
        shape: _tiled(seconds[shape]) if odd else routes[shape]
        for shape, (odd, routes) in alone.items()
    }
    able = {shape: seconds[shape] for shape, (odd, _) in alone.items() if not odd}
    if able:
        odd, together = _best_plan(able, _common([agreements.get(shape) for shape in able]))
        chosen |= {} if odd else together
    return chosen


def _tiled(timed: list[dict[str, float]]) -> list[str]:
    """The quickest kernel in tiles for a plain step and a typical tree together."""
    costs = {}
    for tile in _TILES:
        for route, taken in timed[ROW_BUCKETS.index(tile)].items():
            costs[f"{route}{TILED}{tile}"] = taken * (1 + -(-_TYPICAL_ROWS // tile))
    return [min(costs, key=costs.get)] * len(ROW_BUCKETS)


def _common(agreements: Iterable[Agreement | None]) -> Agreement | None:
    """What all agree on; None where none is asked for."""
    asked = [agreement for agreement in agreements if agreement is not None]
    if not asked:
        return None
    return [
        {route: set.intersection(*(own[bucket][route] for own in asked)) for route in _NAMES}
        for bucket in range(len(ROW_BUCKETS))
    ]


def _best_plan(seconds: Seconds, agreement: Agreement | None) -> tuple[int, dict[Shape, list[str]]]:
    """The buckets that do not agree in the best plan, and its routes."""
    plans = []
    for copying in (None, *COPYING):
        routes = [DIRECT, "transposed", *([copying] if copying else [])]
        firsts = [None] if agreement is None else _totals(seconds, 0, routes)
        plans += [_plan(seconds, agreement, routes, first) for first in firsts]
    odd, _, chosen = min(plans, key=lambda plan: plan[:2])
    return odd, {
        shape: [
            route if route in timed else DIRECT
            for route, timed in zip(chosen, buckets, strict=True)
        ]
        for shape, buckets in seconds.items()
    }


def _plan(
    seconds: Seconds, agreement: Agreement | None, routes: list[str], first: str | None
) -> tuple[int, float, list[str]]:
    """Buckets that do not agree with ``first``, the cost of the rest, and a route per bucket."""
    kept = routes[-1] if routes[-1] in COPYING else DIRECT
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
        cost += totals[best] / totals[DIRECT]
    return odd, cost * (1 + _TIE if kept in COPYING else 1), chosen


def _totals(seconds: Seconds, bucket: int, routes: Iterable[str]) -> dict[str, float]:
    """Seconds of a pass in which every shape that can takes the route, of those timed at all."""
    timed = [buckets[bucket] for buckets in seconds.values()]
    return {
        route: sum(times.get(route, times[DIRECT]) for times in timed)
        for route in routes
        if any(route in times for times in timed)
    }
