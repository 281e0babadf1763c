"""Linear layers that take the fastest route for the number of rows, on the CPU.

Verifying a tree multiplies every weight matrix with a handful of rows. How much that costs over
one row depends on the kernel more than on the arithmetic: the default product of 16 rows takes
2-4 times as long as that of one row although both read the same weights. Four routes compute
the same product (equal within rounding, always contiguous):

* ``direct``      ``F.linear(x, W)``, what a plain model calls;
* ``transposed``  ``(W @ x^T)^T``, made contiguous;
* ``packed``      the product over a copy of W that MKL has laid out once (fp32, x86 only);
* ``blocked``     the same with oneDNN's layout (fp32 and bf16).

The last two keep a second copy of the weights they cover. Beside them stand two products that are
not the same, from copies in 8 bits: ``light`` rounds the weights alone and is for drafters, whose
output nobody has to match; :meth:`RoutedLinear.approximate` rounds both sides, for those who check
what it says.

:mod:`specblock.target.routes` measures which to take, and a :class:`RouteTable` records it per
shape and row count. Nothing is assumed: without a table every layer takes ``direct``.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROW_BUCKETS = (1, 2, 3, 4, 8, 16, 32, 64)  # up to three rows MKL has products of their own
COPYING = ("packed", "blocked")
LIGHT = "light"
_INT8, _INT8_SCALES, _LIGHT_SCALES = "int8", "int8 scales", "light scales"
_LEAST_SCALE = 1e-8  # a row of zeros keeps a scale to divide by
_LIGHT_MULTIPLE = 32  # what the kernel takes without a remainder
_MOST_ROWS = 2 * ROW_BUCKETS[-1]  # more take the direct route
_PACK_ROWS = 64  # the pack serves every row count; MKL packs best for a batch of about this size


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
        if chosen is None or rows > _MOST_ROWS:
            return "direct"
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


def _name(shape: Shape) -> str:
    return "{}x{}".format(*shape)


def _shape(name: str) -> Shape:
    out, inp = name.split("x")
    return int(out), int(inp)


class RoutedLinear(nn.Module):
    """Drop-in for ``nn.Linear`` (same parameters, same state dict) with a choice of kernel.

    ``light``: whether 8-bit weights may do, as they may in a drafter.
    """

    def __init__(self, linear: nn.Linear, light: bool = False):
        super().__init__()
        self.light = light and has_light(linear)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.table = RouteTable()
        self._packs: dict[str, Tensor] = {}
        self._products: dict[int, Callable[[Tensor], Tensor]] = {}  # by rows

    @property
    def shape(self) -> Shape:
        return self.out_features, self.in_features

    @property
    def screened(self) -> bool:
        """Whether its best outputs are looked for in 8 bits first."""
        return self.shape in self.table.screened

    def use(self, table: RouteTable) -> None:
        """Route by ``table`` from now on; drops the copies that it does not need."""
        self.table, self._products = table, {}
        needed = (_INT8, _INT8_SCALES) if self.screened else table.routes.get(self.shape, ())
        if self.light and table.light_rows:
            needed = (*needed, LIGHT, _LIGHT_SCALES)
        self._packs = {route: pack for route, pack in self._packs.items() if route in needed}

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return F.linear(x, self.weight, self.bias)
        rows = x.numel() // self.in_features
        product = self._products.get(rows)
        if product is None:
            product = self._product(self.table.route(self.shape, rows, self.light), rows)
            if rows <= _MOST_ROWS:  # prompts have too many lengths to keep one for each
                self._products[rows] = product
        return product(x)

    def compute(self, x: Tensor, route: str) -> Tensor:
        """``x W^T + b`` for ``x [..., in]`` by the named route, without gradients."""
        return self._product(route, x.numel() // self.in_features)(x)

    def _product(self, route: str, rows: int) -> Callable[[Tensor], Tensor]:
        """The product by ``route`` of so many rows; it holds on to a copy that the route needs."""
        weight, bias = self.weight, self.bias
        if route == "packed":
            pack = self._copy(route, torch.ops.mkl._mkl_reorder_linear_weight)
            packed = torch.ops.mkl._mkl_linear.default
            # naming the actual row count as the packing batch keeps MKL on the packed path
            return lambda x: packed(x.contiguous(), pack, weight, bias, rows)
        if route == "blocked":
            pack = self._copy(route, torch.ops.mkldnn._reorder_linear_weight)
            blocked = torch.ops.mkldnn._linear_pointwise.default
            return lambda x: blocked(x.contiguous(), pack, bias, "none", [], "")
        if route == LIGHT:
            return self._from_light
        if route == "transposed":
            return self._transposed
        return lambda x: F.linear(x, weight, bias)

    def _copy(self, route: str, reorder: Callable[[Tensor, int], Tensor]) -> Tensor:
        if route not in self._packs:
            self._packs[route] = reorder(self.weight.detach(), _PACK_ROWS)
        return self._packs[route]

    def _transposed(self, x: Tensor) -> Tensor:
        out = torch.mm(self.weight, x.reshape(-1, self.in_features).t()).t().contiguous()
        out = out if self.bias is None else out + self.bias
        return out.view(*x.shape[:-1], self.out_features)

    def _from_light(self, x: Tensor) -> Tensor:
        """``x`` is rounded to bf16, W to 8 bits with a scale per output."""
        if LIGHT not in self._packs:
            rounded, scales = _rounded(self.weight.detach().float())
            self._packs |= {LIGHT: rounded, _LIGHT_SCALES: scales.flatten().bfloat16()}
        rounded, scales = self._packs[LIGHT], self._packs[_LIGHT_SCALES]
        flat = x.reshape(-1, self.in_features).bfloat16()
        out = torch._weight_int8pack_mm(flat, rounded, scales).to(x.dtype)
        out = out if self.bias is None else out + self.bias
        return out.view(*x.shape[:-1], self.out_features)

    def approximate(self, x: Tensor) -> Tensor:
        """``x W^T`` for ``x [..., in]`` within a few percent, fp32, from an 8-bit copy of W.

        Weights have a scale per output, ``x`` one per row. Where 8-bit products are native a
        handful of rows cost a quarter of the exact product or less. Needs :func:`has_int8`.
        """
        if _INT8 not in self._packs:
            rounded, scales = _rounded(self.weight.detach())
            self._packs[_INT8] = torch.ops.onednn.qlinear_prepack(rounded, None)
            self._packs[_INT8_SCALES] = scales.flatten().float()
        pack, weight_scales = self._packs[_INT8], self._packs[_INT8_SCALES]
        flat = x.reshape(-1, self.in_features).float()
        rounded, scales = _rounded(flat)
        zeros = torch.zeros(self.out_features, dtype=torch.int64)
        out = torch.ops.onednn.qlinear_pointwise(
            rounded, 1.0, 0, pack, weight_scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return out.mul_(scales).view(*x.shape[:-1], self.out_features)

    def refresh(self) -> None:
        """Forget the copies; call it after the weight has changed."""
        self._packs, self._products = {}, {}

    def __getstate__(self) -> dict[str, Any]:
        """Without what a copy must make of its own weight."""
        return {**self.__dict__, "_packs": {}, "_products": {}}

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def _rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """``rows [R, n]`` in 8 bits, and what one step stands for in each row: ``[R, 1]``."""
    scales = (rows.abs().amax(1, keepdim=True) / 127).clamp_(min=_LEAST_SCALE)
    return (rows / scales).round_().to(torch.int8), scales


@functools.cache
def has_int8() -> bool:
    """Whether this machine has the 8-bit product, and it is right where sums are largest.

    Processors without 8-bit dot products may add in 16 bits, which overflow.
    """
    if not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return False
    linear = RoutedLinear(nn.Linear(64, 4, bias=False))
    with torch.inference_mode():
        linear.weight.fill_(1.0)
        try:
            found = linear.approximate(torch.ones(2, 64))
        except RuntimeError:  # the build knows the product, the processor does not
            return False
    return bool((found - 64).abs().max() < 1)


def has_light(linear: nn.Linear) -> bool:
    """Whether this build multiplies with 8-bit weights of this shape on this device."""
    fits = linear.in_features % _LIGHT_MULTIPLE == 0 == linear.out_features % _LIGHT_MULTIPLE
    return fits and linear.weight.device.type == "cpu" and hasattr(torch, "_weight_int8pack_mm")


def route_linears(module: nn.Module, *, light: bool = False) -> list[RoutedLinear]:
    """Swap every ``nn.Linear`` below ``module`` for a :class:`RoutedLinear`, in place.

    ``light``: as there.
    """
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:
            setattr(module, name, RoutedLinear(child, light))
        else:
            route_linears(child, light=light)
    return list(routed(module))


@torch.inference_mode()
def run_through(linears: Iterable[RoutedLinear]) -> None:
    """A row through every layer: what comes next finds the cache as a forward leaves it."""
    for linear in linears:
        linear(torch.ones(1, linear.in_features, dtype=linear.weight.dtype))


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
