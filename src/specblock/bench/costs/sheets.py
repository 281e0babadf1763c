"""A cost sheet of this machine at a shape: every kind of call by the clock, random weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from specblock.bench.costs.shapes import Shape, drafter_network
from specblock.bench.environment import describe_environment
from specblock.bench.playback.sheet import CostSheet
from specblock.budget.costs import CostTable
from specblock.drafters.base import Drafter
from specblock.drafters.light import route_drafter
from specblock.drafters.registry import make_drafter
from specblock.engine.machine.calibrate import measured_routes
from specblock.engine.machine.measure import DRAFT_LEAVES, DRAFT_PAIRS, star, time_in_turns
from specblock.kernels.linear import routed
from specblock.target.model import Target
from specblock.tree.draft_tree import DraftTree
from specblock.tree.growth import GrowthPolicy

__all__ = ["measured_sheet", "random_target"]

TARGET_ROWS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128)
_KINDS = ("eagle3", "specblock")
OnStep = Callable[[str], None]


def random_target(shape: Shape, device: str, dtype: torch.dtype) -> Target:
    """A target of the shape with random weights, its routes measured on a CPU."""
    from transformers import AutoModelForCausalLM

    with torch.device(device):
        network = AutoModelForCausalLM.from_config(
            shape.target_config(), dtype=dtype, attn_implementation="sdpa"
        )
    target = Target(network.eval().requires_grad_(False), exact=False, owned=True)
    if target.device.type == "cpu":
        target.use_routes(measured_routes(target.linears, []))
    return target


def measured_sheet(
    name: str,
    shape: Shape,
    target: Target,
    *,
    context: int = 256,
    seed: int = 0,
    on_step: OnStep = lambda step: None,
) -> CostSheet:
    """Seconds of the target's forwards by rows and of both drafters' calls by their size.

    A plain step of the target comes before every call of a drafter, as in decoding, so that no
    cache holds the drafter's weights. Growing the trees is part of the calls.

    Args:
        shape: of the target, with random weights. context: positions in the drafters' caches.
    """
    generator, tables = torch.Generator().manual_seed(seed), {}
    tokens = torch.randint(0, shape.vocab_size, (context,), generator=generator).to(target.device)
    on_step(f"the target over 1 to {TARGET_ROWS[-1]} rows")
    target.reset(context + TARGET_ROWS[-1])
    target.prefill(tokens)
    sizes = {rows: partial(target.verify, star(rows, target)) for rows in TARGET_ROWS}
    verify = time_in_turns(sizes, target).settled
    for kind in _KINDS:
        on_step(f"the calls of {kind}")
        drafter = _drafter(shape, kind, target)
        width = len(drafter.feature_layers) * shape.sizes["hidden_size"]
        features = torch.randn(context, width, generator=generator).to(target.device, target.dtype)
        calls = drafter.measurements(features, tokens, DRAFT_PAIRS, DRAFT_LEAVES)
        root = DraftTree.root_only(0, target.device)
        first, later = (
            time_in_turns(sizes, target, partial(target.verify, root)).changed for sizes in calls
        )
        tables[kind] = CostTable(verify, first, later)
        del drafter, calls
    found = describe_environment()
    machine = found["gpu"] if target.device.type == "cuda" else found["cpu"]
    how = f"measured, {str(target.dtype).removeprefix('torch.')}, random weights, eager calls"
    return CostSheet(name, f"{machine}, the shape of {name}", how, tables)


def _drafter(shape: Shape, kind: str, target: Target) -> Drafter:
    """A random one with the paper's policy: its rank head would branch at random."""
    with target.device:
        network = drafter_network(shape, kind).to(target.dtype)
    if target.device.type == "cpu":
        route_drafter(network)
        table = measured_routes([], [network])
        for linear in routed(network):
            linear.use(table)
    settings: dict[str, Any] = {"max_nodes": 60}
    if kind == "specblock":
        settings["policy"] = GrowthPolicy(rank_branching=False)
    return make_drafter(network, **settings)
