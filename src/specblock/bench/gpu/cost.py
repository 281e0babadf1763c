"""Stage 2: what rounds cost at the shapes of deployed models, with random weights."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from specblock.bench.costs.drafting import drafting_cost
from specblock.bench.costs.shapes import Shape
from specblock.bench.costs.sheets import measured_sheet, random_target
from specblock.bench.gpu.record import Record
from specblock.bench.gpu.scale import Scale
from specblock.bench.measure.compiled import CompiledTarget
from specblock.bench.playback.sheet import CostSheet
from specblock.budget.costs import CostTable
from specblock.engine.machine.measure import star
from specblock.storage import write_atomically
from specblock.target.model import Target
from specblock.target.static import ROWS, StaticTarget

__all__ = ["cost"]

_WARM_UP = 3


def cost(scale: Scale, record: Record, _work: Path) -> None:
    """Sheets for playbacks first, then static rows, plain steps, whole rounds of drafting.

    Compiling a step takes longest and comes last.
    """
    for name, shape in scale.shapes.items():
        target = random_target(shape, scale.device, scale.dtype)
        record.item(f"sheet, {name}", partial(sheet, name, shape, target, scale, record.folder))
        record.item(f"static rows, {name}", partial(static_rows, target, scale))
        record.item(f"plain step, {name}", partial(plain_steps, target, scale))
        del target
        _forget()
        record.item(f"drafting, {name}", partial(drafting, shape, scale))
        _forget()
        found = [record.items[f"{item}, {name}"] for item in ("static rows", "drafting")]
        record.item(f"captured sheet, {name}", partial(captured, name, *found, record.folder))
    for name, shape in scale.shapes.items():
        record.item(f"compiled step, {name}", partial(compiled_step, shape, scale))
        _forget()


def sheet(name: str, shape: Shape, target: Target, scale: Scale, folder: Path) -> dict[str, Any]:
    """The cost sheet, also as a file for ``specblock bench --costs``."""
    label = f"measured-{name}"
    found = measured_sheet(label, shape, target, context=scale.context).to_dict()
    write_atomically(folder / "sheets" / f"{label}.json", json.dumps(found, indent=1) + "\n")
    return found


def captured(
    name: str, rows: dict[str, Any], rounds: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """The sheet of rounds with static shapes, also as a file: the target's forwards by rows; whole
    rounds of drafting, divided evenly among their calls, as the published sheet has it."""
    target = {int(size): seconds for size, seconds in rows["static"].items()}
    tables = {}
    for kind in ("eagle3", "specblock"):
        whole = next(iter(rounds["drafting"][f"{kind}, static"].values()))
        call = whole["seconds"] / whole["calls"]
        tables[kind] = CostTable(target, {1: call}, {1: call})
    graphs = "CUDA graphs" if rows["captured"] else "eager"
    label, where = f"captured-{name}", rounds["environment"]
    about = f"{where['gpu'] or where['cpu']}, the shape of {name}"
    how = f"measured, random weights, static shapes, {graphs}"
    found = CostSheet(label, about, how, tables).to_dict()
    write_atomically(folder / "sheets" / f"{label}.json", json.dumps(found, indent=1) + "\n")
    return found


def drafting(shape: Shape, scale: Scale) -> dict[str, Any]:
    """Whole rounds of all drafters in turns, eager, and the target's forward by rows."""
    return drafting_cost(
        shape,
        device=scale.device,
        dtype=scale.dtype,
        nodes=scale.nodes,
        rounds=scale.rounds,
        context=scale.context,
        static=True,
    )


def static_rows(target: Target, scale: Scale) -> dict[str, Any]:
    """Seconds of verifying trees of static sizes, eager and over static shapes."""
    static = StaticTarget(target.model)
    seconds: dict[str, dict[str, float]] = {"dynamic": {}, "static": {}}
    for rows in ROWS:
        for name, one in (("dynamic", target), ("static", static)):
            _begin(one, scale)
            call = partial(one.verify, star(rows, one))
            seconds[name][str(rows)] = _typical(call, one.device, scale.calls)
    return {**seconds, "captured": static.recorder.captures}


def plain_steps(target: Target, scale: Scale) -> dict[str, Any]:
    """Seconds of a plain step: eager, captured."""
    found: dict[str, Any] = {}
    for name, one in (("eager", target), ("captured", StaticTarget(target.model))):
        _begin(one, scale)
        found[name] = _typical(partial(one.verify, star(1, one)), one.device, scale.calls)
    return found


def compiled_step(shape: Shape, scale: Scale) -> dict[str, Any]:
    """Seconds of a plain step that PyTorch compiled, and of compiling it."""
    network = random_target(shape, scale.device, scale.dtype).model
    began = time.perf_counter()
    target = CompiledTarget(network, exact=False, backend=_backend(scale))
    taken = time.perf_counter() - began
    _begin(target, scale)
    call = partial(target.verify, star(1, target))
    return {"seconds": _typical(call, target.device, scale.calls), "compiling": taken}


def _backend(scale: Scale) -> str:
    """The rehearsal needs no C++ compiler."""
    return "inductor" if scale.device == "cuda" else "eager"


def _begin(target: Target, scale: Scale) -> None:
    target.reset(scale.context + ROWS[-1])
    ids = torch.arange(scale.context, device=target.device) % target.vocab_size
    target.prefill(ids)


def _typical(call: Callable[[], object], device: torch.device, calls: int) -> float:
    """The first quartile of some calls."""
    seconds = []
    for number in range(_WARM_UP + calls):
        _wait(device)
        began = time.perf_counter()
        call()
        _wait(device)
        if number >= _WARM_UP:
            seconds.append(time.perf_counter() - began)
    return sorted(seconds)[len(seconds) // 4]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget() -> None:
    gc.collect()  # an error that was kept holds its frames, and they a whole model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
