"""The matrix products that this build of PyTorch has beside ``F.linear``, and which of them run.

A product that PyTorch has may raise on this processor, or be wrong on it. So each is tried once on
small matrices, in every dtype, before anything takes it; what fails is not among the machine's
routes. ``direct``, which is ``F.linear``, always is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Product = Callable[[Tensor], Tensor]

DIRECT = "direct"
_PACK_ROWS = 64  # the pack serves every row count; MKL packs best for a batch of about this size
_TRIED_ROWS = (1, 2, 5, 16, 70)  # row counts on which a kernel is checked
_TRIED_SHAPE = (96, 64)  # of a weight: out, in
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
# what PyTorch raises for a product that the build or the processor lacks
_LACKING = (RuntimeError, AttributeError)


@dataclass(frozen=True)
class Kernel:
    """A product ``x W^T + b`` for x [..., in] and W [out, in]; its result is contiguous.

    Attributes:
        pack: lays a copy of W out as the product wants it; None where it reads W itself.
        bind: (W, b, W's pack or W, rows of x) -> the product.
    """

    dtypes: tuple[torch.dtype, ...]
    pack: Callable[[Tensor], Tensor] | None
    bind: Callable[[Tensor, Tensor | None, Tensor, int], Product]


def _direct(weight: Tensor, bias: Tensor | None, _pack: Tensor, _rows: int) -> Product:
    return lambda x: F.linear(x, weight, bias)


def _transposed(weight: Tensor, bias: Tensor | None, _pack: Tensor, rows: int) -> Product:
    def product(x: Tensor) -> Tensor:
        flat = x.reshape(rows, -1)
        # Of one column MKL makes a product of a matrix and a vector, as `direct` is, which some
        # processors compute in one thread; two columns are divided among all, and are quicker.
        columns = torch.cat((flat, flat)).t() if rows == 1 else flat.t()
        out = torch.mm(weight, columns)[:, :rows].t().contiguous()
        out = out if bias is None else out + bias
        return out.view(*x.shape[:-1], -1)

    return product


def _packed(weight: Tensor, bias: Tensor | None, pack: Tensor, rows: int) -> Product:
    packed = torch.ops.mkl._mkl_linear
    # naming the actual row count as the packing batch keeps MKL on the packed path
    return lambda x: packed(x.contiguous(), pack, weight, bias, rows)


def _blocked(_weight: Tensor, bias: Tensor | None, pack: Tensor, _rows: int) -> Product:
    blocked = torch.ops.mkldnn._linear_pointwise
    return lambda x: blocked(x.contiguous(), pack, bias, "none", [], "")


_EVERY = (torch.float32, torch.bfloat16, torch.float16)
KERNELS = {
    DIRECT: Kernel(_EVERY, None, _direct),
    "transposed": Kernel(_EVERY, None, _transposed),
    "packed": Kernel(
        (torch.float32,),
        lambda weight: torch.ops.mkl._mkl_reorder_linear_weight(weight, _PACK_ROWS),
        _packed,
    ),
    "blocked": Kernel(
        (torch.float32, torch.bfloat16),
        lambda weight: torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS),
        _blocked,
    ),
}
COPYING = tuple(name for name, kernel in KERNELS.items() if kernel.pack)


@functools.cache
def runs(name: str, dtype: torch.dtype) -> bool:
    """Whether this processor has the product in ``dtype``, and it is right."""
    kernel = KERNELS[name]
    if name == DIRECT:
        return True
    if dtype not in kernel.dtypes:
        return False
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(_TRIED_SHAPE, generator=generator).to(dtype)
    bias = torch.randn(_TRIED_SHAPE[0], generator=generator).to(dtype)
    # a probe may come from any program: ordinary tensors, whatever mode it is in
    with torch.inference_mode(False), torch.no_grad():
        try:
            pack = kernel.pack(weight) if kernel.pack else weight
            return all(
                _is_right(kernel.bind(weight, b, pack, rows)(x), x, weight, b)
                for rows in _TRIED_ROWS
                for x in [torch.randn(rows, _TRIED_SHAPE[1], generator=generator).to(dtype)]
                for b in (None, bias)
            )
        except _LACKING:
            return False


def _is_right(found: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    error = (found.double() - exact).abs().max() / exact.abs().max()
    return found.dtype == x.dtype and bool(error <= _TOLERANCE[x.dtype])


def available_routes(weight: Tensor) -> tuple[str, ...]:
    """The products that can be taken with a weight of this dtype, on this device."""
    if weight.device.type != "cpu" or weight.dtype not in _EVERY:
        return (DIRECT,)
    return tuple(name for name in KERNELS if runs(name, weight.dtype))


@functools.cache
def has_int8_weights() -> bool:
    """Whether this processor multiplies bf16 rows with 8-bit weights, and rightly."""
    weight = (torch.arange(64 * 64).view(64, 64) % 7 - 3).to(torch.int8)
    x, scales = torch.ones(3, 64, dtype=torch.bfloat16), torch.ones(64, dtype=torch.bfloat16)
    try:
        found = torch._weight_int8pack_mm(x, weight, scales)
    except _LACKING:
        return False
    return bool((found.float() - weight.float().sum(1)).abs().max() < 1)


def in_tiles(product: Product, tile: int) -> Product:
    """``product`` of exactly ``tile`` rows at a time, the last ones filled up with zeros.

    Kernels choose the order of their sums by the number of rows. With one number for all of them
    a row's result is the same alone and in company.
    """

    def tiled(x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        rows = len(flat)
        parts = [product(part) for part in F.pad(flat, (0, 0, 0, -rows % tile)).split(tile)]
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out[:rows].view(*x.shape[:-1], -1)

    return tiled
