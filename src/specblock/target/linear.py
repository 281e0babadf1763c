"""Linear layers that take the fastest route for the number of rows, on the CPU.

Verifying a tree multiplies every weight matrix with a handful of rows. How much that costs over
one row depends on the kernel more than on the arithmetic: the default product of 16 rows takes
2-4 times as long as that of one row although both read the same weights. Four routes compute
the same product (equal within rounding, always contiguous):

* ``direct``      ``F.linear(x, W)``, what a plain model calls;
* ``transposed``  ``(W @ x^T)^T``, made contiguous;
* ``packed``      the product over a copy of W that MKL has laid out once (fp32, x86 only);
* ``blocked``     the same with oneDNN's layout (fp32 and bf16).

The last two keep a second copy of the weights they cover.

:func:`measure_routes` times them over passes through all layers, so that weights come from memory
as in a real forward, and :class:`RouteTable` records the fastest per shape and row count.
Nothing is assumed: without a table every layer takes ``direct``.
"""

from __future__ import annotations

import bisect
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
COPYING = ("packed", "blocked")
_TIE = 0.05  # what less than this decides is noise
_PACK_ROWS = 64  # the pack serves every row count; MKL packs best for a batch of about this size


Shape = tuple[int, int]  # (out, in) of a weight


@dataclass
class RouteTable:
    """Route by weight shape and rows: ``routes[(out, in)][bucket index]``."""

    routes: dict[Shape, list[str]] = field(default_factory=dict)

    def route(self, shape: Shape, rows: int) -> str:
        """The route of a product of ``rows`` rows with a weight of ``shape`` (out, in)."""
        chosen = self.routes.get(shape)
        if chosen is None or rows > 2 * ROW_BUCKETS[-1]:
            return "direct"
        bucket = min(bisect.bisect_left(ROW_BUCKETS, rows), len(ROW_BUCKETS) - 1)
        return chosen[bucket]

    def to_dict(self) -> dict[str, list[str]]:
        return {f"{out}x{inp}": routes for (out, inp), routes in self.routes.items()}

    @classmethod
    def from_dict(cls, data: dict[str, list[str]]) -> RouteTable:
        parsed = {}
        for name, routes in data.items():
            out, inp = name.split("x")
            parsed[int(out), int(inp)] = list(routes)
        return cls(parsed)


class RoutedLinear(nn.Module):
    """Drop-in for ``nn.Linear`` (same parameters, same state dict) with a choice of kernel."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.table = RouteTable()
        self._packs: dict[str, Tensor] = {}

    @property
    def shape(self) -> Shape:
        return self.out_features, self.in_features

    def use(self, table: RouteTable) -> None:
        """Route by ``table`` from now on; drops the copies that it does not need."""
        self.table = table
        needed = table.routes.get(self.shape, ())
        self._packs = {route: pack for route, pack in self._packs.items() if route in needed}

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.in_features
        return self.compute(x, self.table.route(self.shape, rows))

    def compute(self, x: Tensor, route: str) -> Tensor:
        """``x W^T + b`` for ``x [..., in]`` by the named route."""
        if route == "direct" or torch.is_grad_enabled():
            return F.linear(x, self.weight, self.bias)
        flat = x.reshape(-1, self.in_features)
        if route == "packed":
            # naming the actual row count as the packing batch keeps MKL on the packed path
            pack = self._copy(route, torch.ops.mkl._mkl_reorder_linear_weight)
            out = torch.ops.mkl._mkl_linear(
                flat.contiguous(), pack, self.weight, self.bias, flat.shape[0]
            )
        elif route == "blocked":
            pack = self._copy(route, torch.ops.mkldnn._reorder_linear_weight)
            out = torch.ops.mkldnn._linear_pointwise(
                flat.contiguous(), pack, self.bias, "none", [], ""
            )
        else:
            out = torch.mm(self.weight, flat.t()).t().contiguous()
            out = out if self.bias is None else out + self.bias
        return out.view(*x.shape[:-1], self.out_features)

    def _copy(self, route: str, reorder: Callable[[Tensor, int], Tensor]) -> Tensor:
        if route not in self._packs:
            self._packs[route] = reorder(self.weight.detach(), _PACK_ROWS)
        return self._packs[route]

    def refresh(self) -> None:
        """Forget the copies; call it after the weight has changed."""
        self._packs = {}

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def route_linears(module: nn.Module) -> list[RoutedLinear]:
    """Swap every ``nn.Linear`` below ``module`` for a :class:`RoutedLinear`, in place."""
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:
            setattr(module, name, RoutedLinear(child))
        else:
            route_linears(child)
    return list(routed(module))


def routed(module: nn.Module) -> Iterator[RoutedLinear]:
    return (child for child in module.modules() if isinstance(child, RoutedLinear))


def available_routes(weight: Tensor) -> tuple[str, ...]:
    """The routes that this build of PyTorch has for a weight of this dtype and device."""
    routes = ["direct"]
    if weight.device.type != "cpu":
        return tuple(routes)
    routes.append("transposed")
    has_mkl = torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")
    if has_mkl and weight.dtype == torch.float32:
        routes.append("packed")
    has_onednn = torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_reorder_linear_weight"
    )
    if has_onednn and weight.dtype in (torch.float32, torch.bfloat16):
        routes.append("blocked")
    return tuple(routes)


def measure_routes(
    linears: Iterable[RoutedLinear], *, repetitions: int = 3, max_extra_bytes: int | None = None
) -> RouteTable:
    """Time every route for every shape and row bucket; returns the fastest of each.

    A route is timed over whole passes through ``linears`` in their order, as a forward makes
    them: what a weight costs depends on how much else has gone through the cache since.

    ``max_extra_bytes`` bounds the memory of the copies: shapes get one, the largest share of the
    weights first, while the bound allows. What follows from the times: :func:`choose_routes`.
    """
    linears = list(linears)
    left = float("inf") if max_extra_bytes is None else max_extra_bytes
    sizes: dict[Shape, int] = defaultdict(int)
    for linear in linears:
        sizes[linear.shape] += linear.weight.numel() * linear.weight.element_size()
    may_copy = set()
    for shape, size in sorted(sizes.items(), key=lambda item: -item[1]):
        if size <= left:
            may_copy.add(shape)
            left -= size
    seconds: dict[Shape, list[dict[str, float]]] = {
        shape: [{} for _ in ROW_BUCKETS] for shape in sizes
    }
    for route in ("direct", "transposed", *COPYING):
        for index, rows in enumerate(ROW_BUCKETS):
            for shape, taken in _time_pass(linears, rows, route, may_copy, repetitions).items():
                seconds[shape][index][route] = taken
        for linear in linears:
            linear.refresh()  # two copies at once would crowd each other out of the cache
    return RouteTable(choose_routes(seconds))


def choose_routes(seconds: dict[Shape, list[dict[str, float]]]) -> dict[Shape, list[str]]:
    """The route of every shape and bucket, given ``seconds[shape][bucket][route]`` of one pass.

    One route per bucket serves all shapes that have it, the others run ``direct``: the sum over
    all layers is far less noisy than any shape's own figure. At most one kind of copy is kept, and
    where there is one it is taken in every bucket where it loses no more than `_TIE`: a forward of
    another row count then finds the weights in the cache that the last one left.
    """
    plans = []
    for copying in (None, *COPYING):
        routes = ["direct", "transposed", *([copying] if copying else [])]
        chosen, cost = [], 0.0
        for bucket in range(len(ROW_BUCKETS)):
            totals = {route: _total(seconds, bucket, route) for route in routes}
            least, kept = min(totals.values()), routes[-1] if copying else "direct"
            best = kept if totals[kept] <= (1 + _TIE) * least else min(totals, key=totals.get)
            chosen.append(best)
            cost += totals[best] / totals["direct"]
        plans.append((cost * (1 + _TIE if copying else 1), chosen))
    chosen = min(plans, key=lambda plan: plan[0])[1]
    return {
        shape: [
            route if route in timed else "direct"
            for route, timed in zip(chosen, buckets, strict=True)
        ]
        for shape, buckets in seconds.items()
    }


def _total(seconds: dict[Shape, list[dict[str, float]]], bucket: int, route: str) -> float:
    """Seconds of a pass in which every shape that can takes ``route``."""
    return sum(
        buckets[bucket].get(route, buckets[bucket]["direct"]) for buckets in seconds.values()
    )


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
    fit = {
        linear.shape
        for linear in linears
        if route in available_routes(linear.weight)
        and (route not in COPYING or linear.shape in may_copy)
    }
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
