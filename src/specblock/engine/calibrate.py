"""Measure what a machine takes for the target's and the drafter's forwards, once, and remember.

The result is kept per machine, model, drafter, dtype and thread count, because all of these move
the numbers: the route of every linear layer, and the cost table that budgets are chosen from.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from specblock.drafters.base import Drafter
from specblock.drafters.light import light_rows
from specblock.drafters.shortlist import screening_pays
from specblock.engine.exactness import give_up_unless_exact
from specblock.engine.round_costs import fitted_to_rounds, typical
from specblock.storage import cache_folder, write_atomically
from specblock.target.linear import RoutedLinear, RouteTable, routed
from specblock.target.model import Target
from specblock.target.routes import measure_routes
from specblock.tree.cost import CostTable
from specblock.tree.draft_tree import DraftTree

TARGET_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
DRAFT_PAIRS = (1, 2, 4, 8)
DRAFT_LEAVES = (1, 2, 4, 8, 16, 28)
_CONTEXT = 256  # positions in the caches while measuring
_TURNS = 12
_CHANGES = 0.5  # of the trees follow a plain step, the others a tree


@dataclass(frozen=True)
class Calibration:
    """Routes of the linear layers (target's and drafter's), the cost table, and whether the
    target was exact while they were measured."""

    routes: RouteTable
    costs: CostTable
    exact: bool

    def to_dict(self) -> dict:
        tables = {"routes": self.routes.to_dict(), "costs": self.costs.to_dict()}
        return {**tables, "exact": self.exact}

    @classmethod
    def from_dict(cls, data: dict) -> Calibration:
        routes, costs = RouteTable.from_dict(data["routes"]), CostTable.from_dict(data["costs"])
        return cls(routes, costs, bool(data["exact"]))


def machine_name() -> str:
    """The processor's own name, as far as the platform tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux: the generic name has to do
    return platform.processor() or platform.machine()


def calibration_key(target: Target, drafter: Drafter | None) -> dict:
    """Everything the numbers depend on."""
    device = target.device
    hardware = machine_name()
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    config = target.config
    return {
        "machine": hardware,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": device.type,
        "dtype": str(target.dtype).removeprefix("torch."),
        "exact": target.exact,
        "model": [
            type(target.model).__name__,
            config.num_hidden_layers,
            config.hidden_size,
            config.vocab_size,
        ],
        "drafter": None if drafter is None else drafter.shape_name(),
    }


def calibration_path(key: dict, cache_dir: str | Path | None = None) -> Path:
    """Where the calibration of ``key`` is kept."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder(cache_dir) / "calibration" / f"{digest}.json"


def load_calibration(
    target: Target, drafter: Drafter | None, cache_dir: str | Path | None = None
) -> Calibration | None:
    """The remembered calibration, or None; a damaged file counts as none."""
    path = calibration_path(calibration_key(target, drafter), cache_dir)
    try:
        return Calibration.from_dict(json.loads(path.read_text(encoding="utf-8"))["calibration"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def calibrate(
    target: Target,
    drafter: Drafter | None,
    *,
    cache_dir: str | Path | None = None,
    on_step: Callable[[str], None] = lambda step: None,
    seed: int = 0,
) -> Calibration:
    """Measure, put the routes to use, and remember. Takes 10 to 30 seconds for a small model.

    An exact target that turns out not to be so on this machine gives it up.
    ``on_step`` is told what is being measured.
    """
    key, routes = calibration_key(target, drafter), RouteTable()
    if target.device.type == "cpu":
        on_step("matrix products")
        networks = [drafter.model] if hasattr(drafter, "model") else []
        routes = measured_routes(target.linears, networks, target.exact_linears)
    use_routes(target, drafter, routes)
    give_up_unless_exact([target])
    costs = measure_costs(target, drafter, on_step, seed)
    calibration = Calibration(routes, costs, target.exact)
    text = json.dumps({"key": key, "calibration": calibration.to_dict()}, indent=1)
    write_atomically(calibration_path(key, cache_dir), text)
    return calibration


def measured_routes(
    linears: Iterable[RoutedLinear],
    networks: Iterable[nn.Module],
    exact: Iterable[RoutedLinear] = (),
) -> RouteTable:
    """The routes of a target's ``linears`` and of drafters' ``networks``, on the CPU.

    ``exact``: as for :func:`specblock.target.routes.measure_routes`. Copies of weights may take
    half of the memory that is free. All layers are left with the routes found.
    """
    networks = list(networks)
    linears = [*linears, *(linear for network in networks for linear in routed(network))]
    table = measure_routes(linears, max_extra_bytes=_spare_memory(), exact=exact)
    for linear in linears:
        linear.use(table)
    heads = [network.lm_head for network in networks]
    others = [linear for linear in linears if linear not in heads]
    rows = light_rows(others, [linear for linear in linears if not linear.light])
    return RouteTable(table.routes, screening_pays(heads, others), rows)


def use(calibration: Calibration, target: Target, drafter: Drafter | None) -> None:
    """Put a remembered calibration to use."""
    use_routes(target, drafter, calibration.routes)
    if target.exact and not calibration.exact:
        target.give_up_exactness()


def use_routes(target: Target, drafter: Drafter | None, routes: RouteTable) -> None:
    """Let the linear layers of both networks take the measured routes."""
    target.use_routes(routes)
    for linear in _drafter_linears(drafter):
        linear.use(routes)


def _drafter_linears(drafter: Drafter | None) -> list:
    network = getattr(drafter, "model", None)  # lookup has none
    return [] if network is None else list(routed(network))


def _spare_memory() -> int:
    """Half of the memory that is free now."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def measure_costs(
    target: Target, drafter: Drafter | None, on_step: Callable[[str], None], seed: int = 0
) -> CostTable:
    """Seconds of every kind of call, measured in turn over a context of 256 tokens."""
    length = min(_CONTEXT, target.context_length // 2)
    # a generator of its own: measuring must not move the program's random numbers
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(0, target.vocab_size, (length,), generator=generator)
    prompt = prompt.to(target.device)
    target.reset(length + TARGET_ROWS[-1])
    features = target.prefill(prompt).features
    on_step("the target over 1 to 96 nodes")
    trees = {rows: _chain(rows, target) for rows in TARGET_ROWS}
    calls = {rows: _call(target.verify, tree) for rows, tree in trees.items()}
    changed, verify = _seconds(calls, target, before=calls[1])
    table = CostTable(verify)
    if drafter is not None:
        on_step("the drafter's blocks")
        first, later = drafter.measurements(features, prompt, DRAFT_PAIRS, DRAFT_LEAVES)
        draft_first, draft_next = _seconds(first, target)[1], _seconds(later, target)[1]
        on_step("whole rounds")
        table = CostTable(verify, draft_first, draft_next)
        table = fitted_to_rounds(table, target, drafter, prompt.tolist())
    more = {rows: _CHANGES * max(0.0, changed[rows] - verify[rows]) for rows in verify if rows > 1}
    return replace(table, target={rows: verify[rows] + more.get(rows, 0.0) for rows in verify})


def _call(function: Callable, *arguments) -> Callable[[], None]:
    return lambda: function(*arguments)


def _chain(rows: int, target: Target) -> DraftTree:
    """A chain of ``rows`` nodes: verification costs the same for every shape of tree."""
    index = torch.arange(rows, device=target.device)
    zero = torch.zeros(rows, device=target.device)
    return DraftTree(index, index - 1, index, zero, zero, torch.zeros_like(index))


def _seconds(
    calls: dict[int, Callable[[], None]],
    target: Target,
    before: Callable[[], None] = lambda: None,
) -> tuple[dict[int, float], dict[int, float]]:
    """Typical seconds of a call that follows ``before``, and of one that follows its like.

    The sizes take turns, so that a machine whose speed drifts slows them all alike: only ratios
    matter. Sizes may take different copies of the weights, and the copy in use stays in the
    processor's cache as far as there is room: the first call of a turn pays for the change.
    """
    seconds: list[dict[int, list[float]]] = [{size: [] for size in calls} for _ in range(2)]
    for _ in range(_TURNS):
        for size, call in calls.items():
            before()
            for times in seconds:
                _synchronise(target)
                started = time.perf_counter()
                call()
                _synchronise(target)
                times[size].append(time.perf_counter() - started)
    changed, settled = ({size: typical(t) for size, t in times.items()} for times in seconds)
    return changed, settled


def _synchronise(target: Target) -> None:
    if target.device.type == "cuda":
        torch.cuda.synchronize(target.device)
