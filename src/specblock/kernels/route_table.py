"""Which route a linear layer takes for how many rows."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import Any

from specblock.kernels.products import DIRECT

ROW_BUCKETS = (1, 2, 3, 4, 8, 16, 32, 64)  # up to three rows MKL has products of their own
MOST_ROWS = 2 * ROW_BUCKETS[-1]  # more take the direct route
LIGHT = "light"
TILED = "/"  # between a kernel and the rows that it takes at a time

Shape = tuple[int, int]  # (out, in) of a weight


@dataclass
class RouteTable:
    """Route by weight shape and rows: ``routes[(out, in)][bucket index]``.

    ``screened``: output heads of drafters of these shapes are screened in 8 bits first
    (:mod:`specblock.drafters.shortlist`). ``light_rows``: drafters' layers read 8-bit weights for
    up to so many rows (:mod:`specblock.drafters.light`).
    """

    routes: dict[Shape, list[str]] = field(default_factory=dict)
    screened: frozenset[Shape] = frozenset()
    light_rows: int = 0

    def route(self, shape: Shape, rows: int, light: bool = False) -> str:
        """The route of a product of ``rows`` rows with a weight of ``shape`` (out, in).

        ``light``: whether 8-bit weights may do.
        """
        if light and rows <= self.light_rows:
            return LIGHT
        chosen = self.routes.get(shape)
        if chosen is None or rows > MOST_ROWS:
            return DIRECT
        bucket = min(bisect.bisect_left(ROW_BUCKETS, rows), len(ROW_BUCKETS) - 1)
        return chosen[bucket]

    def to_dict(self) -> dict[str, Any]:
        named = {_name(shape): routes for shape, routes in self.routes.items()}
        screened = sorted(map(_name, self.screened))
        return {**named, "screened": screened, "light_rows": self.light_rows}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RouteTable:
        """Raises KeyError or ValueError for a table of another version."""
        named = dict(data)
        screened, light_rows = named.pop("screened"), int(named.pop("light_rows"))
        screened = frozenset(map(_shape, screened))
        if any(len(routes) != len(ROW_BUCKETS) for routes in named.values()):
            raise ValueError(f"routes are wanted for {len(ROW_BUCKETS)} row counts")
        routes = {_shape(name): list(routes) for name, routes in named.items()}
        return cls(routes, screened, light_rows)


def kernel_of(route: str) -> str:
    """The kernel that a route takes, in tiles or not."""
    return route.partition(TILED)[0]


def _name(shape: Shape) -> str:
    return "{}x{}".format(*shape)


def _shape(name: str) -> Shape:
    out, inp = name.split("x")
    return int(out), int(inp)
