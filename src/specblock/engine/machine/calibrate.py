"""Measure what a machine takes for the target's and the drafter's forwards, once, and remember.

The result is kept per machine, model, drafter, dtype and thread count, because all of these move
the numbers: the route of every linear layer, and the cost table that budgets are chosen from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import nn

from specblock.budget.costs import CostTable
from specblock.drafters.base import Drafter
from specblock.drafters.light import light_rows
from specblock.drafters.shortlist import screening_pays
from specblock.engine.machine.exactness import give_up, give_up_unless_exact, safe_routes
from specblock.engine.machine.measure import measure_believably
from specblock.kernels.deadline import Deadline, OutOfTimeError
from specblock.kernels.linear import RoutedLinear, routed
from specblock.kernels.route_table import RouteTable
from specblock.kernels.routes import measure_routes, sample
from specblock.storage import cache_folder, write_atomically
from specblock.target.model import Target

FIRST_SECONDS = 12.0  # of a calibration that somebody waits for
_ROUTES_SHARE = 0.4  # of the time there is
_TABLES = 3  # counts what is measured: older calibrations lack a part
_BELIEVED = 1.5  # times the least: a median call beyond that was measured on a busy machine
_log = logging.getLogger("specblock")


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
        "tables": _TABLES,
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


def note_giving_up(
    target: Target, drafter: Drafter | None, cache_dir: str | Path | None = None
) -> None:
    """Remember that there was not enough time, for a later process not to wait as long again."""
    write_atomically(_given_up(target, drafter, cache_dir), "")


def gave_up_before(
    target: Target, drafter: Drafter | None, cache_dir: str | Path | None = None
) -> bool:
    """Whether an earlier process had too little time."""
    return _given_up(target, drafter, cache_dir).exists()


def _given_up(target: Target, drafter: Drafter | None, cache_dir: str | Path | None) -> Path:
    return calibration_path(calibration_key(target, drafter), cache_dir).with_suffix(".gave-up")


def calibrate(
    target: Target,
    drafter: Drafter | None,
    *,
    cache_dir: str | Path | None = None,
    on_step: Callable[[str], None] = lambda step: None,
    seed: int = 0,
    seconds: float | None = None,
) -> Calibration:
    """Measure, put the routes to use, and remember.

    An exact target that turns out not to be so on this machine gives it up. What scatters is used
    and not remembered: something else was running.

    Args:
        on_step: is told what is being measured.
        seconds: how long it may take, about; None takes 20 to 60 seconds for a small model.

    Raises:
        OutOfTimeError: the time is too short to measure anything useful.
        ModelError: exactness was asked for by name, and this machine cannot have it.
    """
    key, routes = calibration_key(target, drafter), RouteTable()
    deadline = None if seconds is None else Deadline(seconds)
    if target.device.type == "cpu":
        on_step("matrix products")
        networks = [drafter.model] if hasattr(drafter, "model") else []
        share = None if deadline is None else deadline.part(_ROUTES_SHARE)
        try:
            routes = measured_routes(target.linears, networks, target.exact_linears, share)
        except OutOfTimeError:
            routes = safe_routes(target)
    use_routes(target, drafter, routes)
    give_up_unless_exact([target])
    costs, scatter = measure_believably(target, drafter, on_step, seed, deadline)
    calibration = Calibration(routes, costs, target.exact)
    if scatter > _BELIEVED:
        _log.warning(
            "Something else keeps this machine busy: the same forward took %.1f times its least in "
            "the median, so what was measured is not kept.",
            scatter,
        )
        return calibration
    text = json.dumps({"key": key, "calibration": calibration.to_dict()}, indent=1)
    write_atomically(calibration_path(key, cache_dir), text)
    return calibration


def measured_routes(
    linears: Iterable[RoutedLinear],
    networks: Iterable[nn.Module],
    exact: Iterable[RoutedLinear] = (),
    deadline: Deadline | None = None,
) -> RouteTable:
    """The routes of a target's ``linears`` and of drafters' ``networks``, on the CPU.

    ``exact``: as for :func:`specblock.kernels.routes.measure_routes`. Copies of weights may take
    half of the memory that is free. All layers are left with the routes found.
    """
    networks = list(networks)
    linears = [*linears, *(linear for network in networks for linear in routed(network))]
    spare = _spare_memory()
    table = measure_routes(linears, max_extra_bytes=spare, exact=exact, deadline=deadline)
    for linear in linears:
        linear.use(table)
    heads = [network.lm_head for network in networks]
    others = [linear for linear in linears if linear not in heads]
    rows = light_rows(others, sample(x for x in linears if not x.light), deadline)
    return RouteTable(table.routes, screening_pays(heads, sample(others), deadline), rows)


def use(calibration: Calibration, target: Target, drafter: Drafter | None) -> None:
    """Put a remembered calibration to use.

    Raises ModelError where exactness was asked for by name, and this machine cannot have it.
    """
    use_routes(target, drafter, calibration.routes)
    if target.exact and not calibration.exact:
        give_up([target])


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
    return psutil.virtual_memory().available // 2
