"""What drafting costs at a model's size: rounds of drafters with random weights, taking turns.

Time does not depend on what the weights say, only on how many rows go through them. Every round
refreshes the cache with the same number of pairs and draws a tree for the same number of nodes.
As random rank heads would branch at random, every slot of SpecBlock takes the branching factor of
ranks 2 to 4; the head is computed all the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from specblock.bench.costs.shapes import DRAFTERS, Shape, drafter_network, own_parameters
from specblock.bench.environment import describe_environment
from specblock.bench.measure.meter import MeteredDrafter
from specblock.drafters.base import FixedBudget
from specblock.drafters.light import route_drafter
from specblock.drafters.registry import make_drafter
from specblock.drafters.static.drafter import StaticDrafter
from specblock.engine.machine.calibrate import measured_routes
from specblock.engine.machine.measure import measure_costs
from specblock.errors import ConfigError
from specblock.kernels.linear import routed
from specblock.kernels.routes import measure_routes
from specblock.target.model import Target
from specblock.tree.growth import GrowthPolicy

__all__ = ["drafting_cost"]

RIVAL = "eagle3"
_STATIC = (RIVAL, "specblock")
_ROOM = 1.3  # memory beside the weights: activations, caches, the allocator
_WARM_UP = 3

OnStep = Callable[[str], None]


def drafting_cost(
    shape: Shape,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    nodes: Sequence[int] = (60, 90),
    rounds: int = 20,
    context: int = 256,
    accepted: int = 4,
    seed: int = 0,
    static: bool = False,
    on_step: OnStep = lambda step: None,
) -> dict[str, Any]:
    """Measure seconds per round of drafting at equal node budgets, and verification by nodes.

    Args:
        shape: of the target; its drafters follow from it.
        device: ``"meta"`` counts parameters and measures nothing.
        nodes: draft nodes of every tree, a budget each.
        rounds: measured rounds per drafter and budget.
        context: positions in the drafters' caches before the first round.
        accepted: pairs that enter the cache in every round.
        static: also EAGLE-3 and SpecBlock with static shapes, captured on a GPU.

    Returns:
        JSON values: ``parameters``, ``drafting`` (by drafter and budget: seconds with quartiles,
        calls, nodes), ``ratio_to_eagle3``, ``verification`` (seconds by rows, or None with
        ``verification_note``), ``environment``.

    Raises ConfigError if the drafters do not fit the memory or a number makes no sense.
    """
    if min([*nodes, rounds, context, accepted], default=0) < 1:
        raise ConfigError("Nodes, rounds, context and accepted pairs are at least 1.")
    report: dict[str, Any] = {
        "parameters": _parameters(shape),
        "settings": {"context": context, "accepted": accepted, "rounds": rounds, "seed": seed},
        "environment": {**describe_environment(), "device": device, "dtype": str(dtype)[6:]},
    }
    if device == "meta":
        return report
    _check_memory(shape, device, dtype, report["parameters"])
    torch.manual_seed(seed)
    on_step("building the drafters")
    drafters = _build(shape, torch.device(device), dtype, max(nodes))
    drafters |= {f"{name}, static": _static(drafters[name]) for name in _STATIC if static}
    drafting = _by_budget(drafters, nodes, (rounds, context, accepted), on_step)
    report |= {"drafting": drafting, "ratio_to_eagle3": _ratios(drafting)}
    del drafters
    report.update(_verification(shape, device, dtype, report["parameters"]["target"], on_step))
    return report


def _check_memory(
    shape: Shape, device: str, dtype: torch.dtype, parameters: dict[str, int]
) -> None:
    embeddings = shape.vocab_size * shape.sizes["hidden_size"]
    count = sum(parameters[name] + embeddings for name in DRAFTERS)
    needed, free = _ROOM * dtype.itemsize * count, _free_bytes(device)
    if needed > free:
        raise ConfigError(
            f"The drafters need {_gib(needed)} in {str(dtype)[6:]} and {device} has {_gib(free)} "
            "free: take a smaller shape, bfloat16, or --device meta."
        )


def _parameters(shape: Shape) -> dict[str, int]:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        target = AutoModelForCausalLM.from_config(shape.target_config())
        own = {name: own_parameters(drafter_network(shape, name)) for name in DRAFTERS}
    return {"target": sum(p.numel() for p in target.parameters()), **own}


def _build(
    shape: Shape, device: torch.device, dtype: torch.dtype, max_nodes: int
) -> dict[str, MeteredDrafter]:
    drafters = {}
    for name, (kind, _) in DRAFTERS.items():
        with device:
            network = drafter_network(shape, name).to(dtype)
        if device.type == "cpu":
            route_drafter(network)
        settings: dict[str, Any] = {"max_nodes": max_nodes}
        if kind == "specblock":
            settings["policy"] = GrowthPolicy(rank_branching=False)
        drafters[name] = MeteredDrafter(make_drafter(network, **settings))
    if device.type == "cpu":
        networks = [drafter.model for drafter in drafters.values()]
        table = measured_routes([], networks)
        for linear in (linear for network in networks for linear in routed(network)):
            linear.use(table)
    return drafters


def _static(metered: MeteredDrafter) -> MeteredDrafter:
    """The same network in static shapes."""
    return MeteredDrafter(StaticDrafter(metered.drafter.another()))


def _by_budget(
    drafters: dict[str, MeteredDrafter],
    nodes: Sequence[int],
    how: tuple[int, int, int],
    on_step: OnStep,
) -> dict[str, dict[str, Any]]:
    """Figures by drafter and budget; ``how`` many rounds, positions before them, pairs of each."""
    found: dict[str, dict[str, Any]] = {name: {} for name in drafters}
    for budget in nodes:
        on_step(f"drafting {budget} nodes")
        for name, figures in _rounds(drafters, budget, *how).items():
            found[name][str(budget)] = figures
    return found


def _rounds(
    drafters: dict[str, MeteredDrafter], nodes: int, rounds: int, context: int, accepted: int
) -> dict[str, dict[str, float]]:
    """Seconds of a round by drafter; the drafters take turns."""
    total = rounds + _WARM_UP
    inputs = {}
    for name, drafter in drafters.items():
        drafter.reset(context + total * accepted + nodes)
        inputs[name] = _pairs(drafter, context + total * accepted)
        drafter.observe(*(part[:context] for part in inputs[name]))
        drafter.propose(0, FixedBudget(nodes))
    seconds: dict[str, list[float]] = {name: [] for name in drafters}
    for turn in range(total):
        place = slice(context + turn * accepted, context + (turn + 1) * accepted)
        for name, drafter in drafters.items():
            if turn == _WARM_UP:
                drafter.take()
            features, tokens = (part[place] for part in inputs[name])
            started = time.perf_counter()
            drafter.observe(features, tokens)
            drafter.propose(int(tokens[-1]), FixedBudget(nodes))
            seconds[name].append(time.perf_counter() - started)
    return {
        name: _figures(times[_WARM_UP:], drafters[name], rounds) for name, times in seconds.items()
    }


def _pairs(drafter: MeteredDrafter, count: int) -> tuple[Tensor, Tensor]:
    """Random features and tokens for ``count`` positions."""
    config, weight = drafter.model.config, drafter.model.norm.weight
    width = len(config.feature_layers) * config.hidden_size
    features = torch.randn(count, width, dtype=weight.dtype, device=weight.device)
    return features, torch.randint(0, config.vocab_size, (count,), device=weight.device)


def _figures(times: list[float], drafter: MeteredDrafter, rounds: int) -> dict[str, float]:
    counts = drafter.take()
    low, median, high = np.quantile(times, [0.25, 0.5, 0.75])
    drawn = sum(nodes * times for nodes, times in counts.verified.items())
    return {
        "seconds": float(median),
        "lower_quartile": float(low),
        "upper_quartile": float(high),
        "calls": counts.calls / rounds,
        "nodes": drawn / rounds,
    }


def _ratios(drafting: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    base = drafting[RIVAL]
    return {
        name: {budget: own[budget]["seconds"] / base[budget]["seconds"] for budget in own}
        for name, own in drafting.items()
    }


def _verification(
    shape: Shape, device: str, dtype: torch.dtype, parameters: int, on_step: OnStep
) -> dict[str, Any]:
    """Seconds of the target's forward by rows, where a random target fits the memory."""
    from transformers import AutoModelForCausalLM

    free, needed = _free_bytes(device), _ROOM * dtype.itemsize * parameters
    if needed > free:
        note = f"not measured: the target needs {_gib(needed)}, {_gib(free)} are free"
        return {"verification": None, "verification_note": note}
    on_step("building the target")
    with torch.device(device):
        network = AutoModelForCausalLM.from_config(
            shape.target_config(), dtype=dtype, attn_implementation="sdpa"
        )
    target = Target(network.requires_grad_(False))
    if target.device.type == "cpu":
        spare, exact = int(free) // 2, target.exact_linears
        target.use_routes(measure_routes(target.linears, max_extra_bytes=spare, exact=exact))
    costs = measure_costs(target, None, on_step)
    return {"verification": {str(n): s for n, s in costs.target.items()}, "verification_note": None}


def _free_bytes(device: str) -> float:
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(torch.device(device))[0]
    return psutil.virtual_memory().available


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
