"""What forwards cost at least on a GPU: bytes over bandwidth, products over throughput, launches.

Every product reads its weights once and, for every row, reads its input and writes its output; all
that lies between two products counts as fused into them. A forward takes the longer of the two
times, plus what launching it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from specblock.bench.costs.shapes import Shape, drafter_network, find_shape
from specblock.budget.costs import CostTable

__all__ = ["H100", "Gpu", "forward_seconds", "roofline_tables"]

TARGET_ROWS = (1, 8, 16, 32, 64, 96, 128)
PAIRS = (1, 8, 64, 512)
LEAVES = (1, 10, 28)
_ONCE = {"eagle3": ("fc",), "specblock": ("condition_proj",)}  # products of a first call alone
_DTYPE_BYTES = 2  # bfloat16


@dataclass(frozen=True)
class Gpu:
    """A GPU as a roofline sees it.

    Attributes:
        bandwidth: bytes a second from memory, as attained.
        throughput: floating-point operations a second in bfloat16 products, as attained.
        launch: seconds that a forward takes beyond both: launches, synchronisation, the tree.
        context: positions in the caches, which every forward reads.
    """

    bandwidth: float
    throughput: float
    launch: float
    context: int = 512

    def describe(self) -> str:
        """In a line."""
        return (
            f"{self.bandwidth / 1e12:g} TB/s, {self.throughput / 1e12:g} TFLOP/s, "
            f"{1e3 * self.launch:g} ms a launch, {self.context} positions"
        )


# Nine tenths of the 3.35 TB/s and six of the 989 TFLOP/s in the data sheet of the SXM5 board; a
# launch as the authors' code has it with captured graphs (0.1 ms, against 2.7 without).
H100 = Gpu(bandwidth=3.0e12, throughput=6.0e14, launch=1e-4)


def forward_seconds(
    products: Sequence[tuple[int, int]], rows: int, cache_bytes: float, gpu: Gpu
) -> float:
    """Seconds of a forward.

    Args:
        products: (inputs, outputs) of every product.
        rows: that go through each.
        cache_bytes: keys and values that are read.
    """
    weights = sum(inputs * outputs for inputs, outputs in products)
    moved = weights + rows * sum(inputs + outputs for inputs, outputs in products)
    reading = (_DTYPE_BYTES * moved + cache_bytes) / gpu.bandwidth
    return max(reading, 2 * rows * weights / gpu.throughput) + gpu.launch


def roofline_tables(name: str, gpu: Gpu) -> dict[str, CostTable]:
    """Cost tables by kind of drafter at a shape of :mod:`specblock.bench.costs.shapes`.

    Raises :class:`ConfigError` for an unknown shape.
    """
    shape = find_shape(name)
    target = _products(_target(shape))
    target_cache = shape.layers * _position_bytes(shape) * gpu.context
    seconds = {rows: forward_seconds(target, rows, target_cache, gpu) for rows in TARGET_ROWS}
    return {kind: _table(shape, kind, seconds, gpu) for kind in ("eagle3", "specblock")}


def _table(shape: Shape, kind: str, target: dict[int, float], gpu: Gpu) -> CostTable:
    with torch.device("meta"):
        network = drafter_network(shape, kind)
    slots = getattr(network.config, "slots_kept", 1)
    layers = getattr(network.config, "num_hidden_layers", 1)
    block = getattr(network.config, "block_size", 1)
    cache = layers * slots * _position_bytes(shape) * gpu.context
    first, later = _products(network), _products(network, _ONCE[kind])
    return CostTable(
        target,
        {pairs: forward_seconds(first, pairs * slots, cache, gpu) for pairs in PAIRS},
        {leaves: forward_seconds(later, leaves * block, cache, gpu) for leaves in LEAVES},
    )


def _target(shape: Shape) -> nn.Module:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(shape.target_config())


def _products(network: nn.Module, without: Sequence[str] = ()) -> list[tuple[int, int]]:
    """(inputs, outputs) of the linear layers but those of these names."""
    return [
        (module.in_features, module.out_features)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] not in without
    ]


def _position_bytes(shape: Shape) -> int:
    """Keys and values of one position in one layer."""
    sizes = shape.sizes
    return 2 * sizes["num_key_value_heads"] * sizes["head_dim"] * _DTYPE_BYTES
