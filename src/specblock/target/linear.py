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

:mod:`specblock.target.routes` measures which to take, and a :class:`RouteTable` records it per
shape and row count. Nothing is assumed: without a table every layer takes ``direct``.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
COPYING = ("packed", "blocked")
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
