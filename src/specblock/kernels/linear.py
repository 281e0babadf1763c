"""Linear layers that take the fastest route for the number of rows, on the CPU.

Verifying a tree multiplies every weight matrix with a handful of rows. How much that costs over
one row depends on the kernel more than on the arithmetic: the default product of 16 rows takes
2-4 times as long as that of one row although both read the same weights. Four routes compute
the same product (equal within rounding, always contiguous):

* ``direct``      ``F.linear(x, W)``, what a plain model calls;
* ``transposed``  ``(W @ x^T)^T``, made contiguous;
* ``packed``      the product over a copy of W that MKL has laid out once (fp32, x86 only);
* ``blocked``     the same with oneDNN's layout (fp32 and bf16).

The last two keep a second copy of the weights they cover. ``blocked/8`` and the like take eight
rows at a time, filled up with zeros, so that no row's result depends on how many there are. What
this processor does not run is replaced by ``direct`` (:mod:`specblock.kernels.products`).

Beside them stand two products that are not the same, from copies in 8 bits: ``light`` rounds the
weights alone and is for drafters, whose output nobody has to match;
:meth:`RoutedLinear.approximate` rounds both sides, for those who check what it says.

:mod:`specblock.kernels.routes` measures which to take, and a :class:`RouteTable` records it per
shape and row count. Nothing is assumed: without a table every layer takes ``direct``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specblock.kernels.products import (
    DIRECT,
    KERNELS,
    Product,
    available_routes,
    has_int8_weights,
    in_tiles,
)
from specblock.kernels.route_table import LIGHT, MOST_ROWS, TILED, RouteTable, Shape, kernel_of

_INT8, _INT8_SCALES, _LIGHT_SCALES = "int8", "int8 scales", "light scales"
_LEAST_SCALE = 1e-8  # a row of zeros keeps a scale to divide by
_LIGHT_MULTIPLE = 32  # what the kernel takes without a remainder


class RoutedLinear(nn.Module):
    """Drop-in for ``nn.Linear`` (same parameters, same state dict) with a choice of kernel.

    ``light``: whether 8-bit weights may do, as they may in a drafter.
    """

    def __init__(self, linear: nn.Linear, light: bool = False):
        super().__init__()
        self.light = light and has_light(linear)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._parameters = linear._parameters  # one dictionary: what the layer is given is seen
        self.table = RouteTable()
        self._packs: dict[str, Tensor] = {}
        self._products: dict[int, Product] = {}  # by rows
        self._made_of: tuple = (None, None, None)  # weight, bias, and what tells its changes
        self._mark: Tensor | None = None

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
        routes = table.routes.get(self.shape, ())
        needed = (_INT8, _INT8_SCALES) if self.screened else tuple(map(kernel_of, routes))
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
            if rows <= MOST_ROWS:  # prompts have too many lengths to keep one for each
                self._products[rows] = product
        return product(x)

    def compute(self, x: Tensor, route: str) -> Tensor:
        """``x W^T + b`` for ``x [..., in]`` by the named route, without gradients."""
        return self._product(route, x.numel() // self.in_features)(x)

    def _product(self, route: str, rows: int) -> Product:
        """The product by ``route`` of so many rows; it holds on to a copy that the route needs."""
        if route == LIGHT:
            return self._from_light
        name, _, tile = route.partition(TILED)
        name = name if name in available_routes(self.weight) else DIRECT
        kernel, weight = KERNELS[name], self.weight
        pack = self._copy(name) if kernel.pack else weight
        product = kernel.bind(weight, self.bias, pack, int(tile or rows))
        return in_tiles(product, int(tile)) if tile else product

    def _copy(self, name: str) -> Tensor:
        if name not in self._packs:
            self._packs[name] = KERNELS[name].pack(self.weight.detach())
            self._mark = _mark(self.weight)
            self._made_of = self.weight, self.bias, _seen(self.weight)
        return self._packs[name]

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
        self._packs, self._products, self._mark = {}, {}, None

    def follow(self) -> None:
        """Forget the copies of a weight that is another by now, or was changed in place.

        Cheap: it looks at where the weight lies and at PyTorch's count of changes.
        """
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        own = self._made_of
        if weight is own[0] and bias is own[1] and (not self._packs or _seen(weight) == own[2]):
            return  # a product without a copy reads the weight itself
        self.refresh()
        self._made_of = weight, bias, _seen(weight)

    def confirm(self) -> None:
        """Forget the copies of a weight whose content has changed, by whatever way.

        ``weight.data`` can be written to without being counted, as adapters do that are merged. A
        product of the weight with a fixed random row tells; it costs what a row costs.
        """
        if self._packs and not _mark(self.weight).equal(self._mark):
            self.refresh()

    def __getstate__(self) -> dict[str, Any]:
        """Without what a copy must make of its own weight."""
        return {
            **self.__dict__,
            "_packs": {},
            "_products": {},
            "_mark": None,
            "_made_of": (None,) * 3,
        }

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def _seen(weight: Tensor) -> tuple:
    """Where a weight lies, and how often it has changed."""
    # tensors made in inference mode have no count of changes
    return weight.data_ptr(), None if weight.is_inference() else weight._version


def _mark(weight: Tensor) -> Tensor:
    with torch.inference_mode():
        return F.linear(_random_row(weight.shape[1], weight.dtype), weight)


@functools.cache
def _random_row(features: int, dtype: torch.dtype) -> Tensor:
    row = torch.randn(1, features, generator=torch.Generator().manual_seed(0))
    return row.to(dtype)


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
    """Whether this machine multiplies with 8-bit weights of this shape on this device."""
    fits = linear.in_features % _LIGHT_MULTIPLE == 0 == linear.out_features % _LIGHT_MULTIPLE
    return fits and linear.weight.device.type == "cpu" and has_int8_weights()


_routed: WeakKeyDictionary[nn.Linear, RoutedLinear] = WeakKeyDictionary()


def router_of(linear: nn.Linear) -> RoutedLinear:
    """The routes of somebody else's layer, which stays as it is; made once while it lives."""
    if linear not in _routed:
        _routed[linear] = RoutedLinear(linear)
    return _routed[linear]


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
