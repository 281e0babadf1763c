"""What is known of this machine: measured costs, and the products that it has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from specblock.doctor.finding import Verdict, ok, warning
from specblock.doctor.patient import Patient
from specblock.engine.machine.calibrate import (
    calibration_key,
    calibration_path,
    gave_up_before,
    load_calibration,
)
from specblock.engine.machine.slow_dtype import slower_dtype
from specblock.kernels.products import DIRECT, KERNELS, has_int8_weights, runs
from specblock.kernels.route_table import LIGHT, kernel_of

# of a calibration's key: what says which networks it is about; all else is where and how
_SUBJECT = ("model", "drafter", "dtype", "device")
_ADVICE = "run `specblock calibrate` with the same --model, --drafter, --dtype and --threads"


def calibration(patient: Patient) -> Verdict:
    """Costs were measured on this machine as it is now."""
    target, drafter, cache = patient.target, patient.drafter, patient.request.cache_dir
    key = calibration_key(target, drafter)
    path = calibration_path(key, cache)
    figures = {"file": str(path), "key": key}
    known = load_calibration(target, drafter, cache)
    if known is None and gave_up_before(target, drafter, cache):
        return warning(
            "measuring took too long at the first start, so tokens come one by one",
            _ADVICE,
            **figures,
        )
    if known is None:
        others = _others(path, key)
        found = "nothing was measured for this model, drafter, dtype and machine"
        if others:
            found = f"stale: what was measured before had {_told(others[0])}"
        if path.is_file():
            found = f"{path} is damaged"
        advice = f"{_ADVICE} (a first start measures for some 12 seconds, as now)"
        return warning(found, advice, **figures, others=others)
    if target.exact and not known.exact:
        return warning(
            "this machine's kernels do not add up in one order, so answers may differ from plain "
            "decoding's at near-ties",
            "use --dtype float32, where near-ties are rare",
            **figures,
        )
    return ok(f"measured with {key['threads']} threads of {key['machine']}", **figures)


def _others(path: Path, key: dict[str, Any]) -> list[dict[str, list[Any]]]:
    """How calibrations of the same networks differ from what is wanted, the nearest first:
    name to [then, now]."""
    found = []
    for file in sorted(path.parent.glob("*.json")):
        try:
            other = json.loads(file.read_text(encoding="utf-8"))["key"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if all(other.get(name) == key[name] for name in _SUBJECT):
            names = [name for name in key if other.get(name) != key[name]]
            found.append({name: [other.get(name), key[name]] for name in names})
    return sorted(filter(None, found), key=len)


def _told(differences: dict[str, list[Any]]) -> str:
    return ", ".join(f"{name} {then} (now {now})" for name, (then, now) in differences.items())


def kernels(patient: Patient) -> Verdict:
    """The optional products are there, and this dtype is a quick one."""
    target = patient.target
    if target.device.type != "cpu":
        return ok(f"{target.device.type} takes PyTorch's own products")
    lacking = [
        name
        for name, kernel in KERNELS.items()
        if target.dtype in kernel.dtypes and not runs(name, target.dtype)
    ]
    if not has_int8_weights():
        lacking.append(LIGHT)
    known = load_calibration(target, patient.drafter, patient.request.cache_dir)
    taken = (
        [kernel_of(r) for routes in known.routes.routes.values() for r in routes] if known else []
    )
    counts = {name: taken.count(name) for name in sorted(set(taken))}
    slow = slower_dtype(target)
    figures = {"lacking": lacking, "routes": counts, "slow_dtype": slow}
    if slow is not None:
        return warning(slow, "choose that --dtype", **figures)
    if lacking:
        return warning(
            f"this processor or this PyTorch lacks {', '.join(lacking)}",
            "expect less of many rows; docs/machines.md has figures",
            **figures,
        )
    other = len(taken) - counts.get(DIRECT, 0)
    measured = f", {other} of {len(taken)} routes are others than F.linear" if taken else ""
    return ok(f"all optional products run{measured}", **figures)
