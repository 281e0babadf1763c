"""Stages one after the other, each a process of its own that may not run longer than it may."""

from __future__ import annotations

import ctypes
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from specblock.bench.gpu.check import check
from specblock.bench.gpu.cost import cost
from specblock.bench.gpu.decode import bench, profile
from specblock.bench.gpu.record import Record
from specblock.bench.gpu.scale import FULL, REHEARSAL, Scale
from specblock.bench.gpu.train import train
from specblock.errors import ConfigError
from specblock.storage import explain_disk_errors

__all__ = ["STAGES", "run_stage", "run_stages"]

STAGES = ("check", "cost", "train", "bench", "profile")  # in the order of their worth
_PR_SET_PDEATHSIG = 1  # of Linux: the signal that comes when the parent dies
_LIBC = ctypes.CDLL(None)
_GRACE = 5.0  # seconds between asking a stage to end and ending it
_log = logging.getLogger("specblock")


def run_stages(
    stages: Sequence[str], out: Path, work: Path, *, rehearse: bool, answers: Path | None = None
) -> dict[str, str]:
    """Run ``stages``, or all; what became of each: ``complete``, ``failed: ...``, ``cut off``,
    ``crashed``, ``ended too early``.

    Every stage writes ``out/STAGE.json`` and ``out/STAGE.log`` as it goes. A stage that is complete
    without a failure is not run again; others go on with what they have.

    Raises :class:`SpecBlockError` for an unknown stage, and a folder that cannot be used.
    """
    unknown = [name for name in stages if name not in STAGES]
    if unknown:
        raise ConfigError(f"There is no stage '{unknown[0]}'; known: {', '.join(STAGES)}.")
    scale, became = REHEARSAL if rehearse else FULL, {}
    with explain_disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    for name in stages or STAGES:
        began, before = time.monotonic(), Record(name, out, rehearsal=rehearse)
        if before.complete and not before.lost:
            became[name] = "complete"
            _log.info("%s: complete, from before", name)
            continue
        became[name] = _run_limited(name, out, work, rehearse, answers, scale.limits[name])
        _log.info("%s: %s, %.0f seconds", name, became[name], time.monotonic() - began)
    return became


def _run_limited(
    name: str, out: Path, work: Path, rehearse: bool, answers: Path | None, limit: float
) -> str:
    command = [sys.executable, "-m", "specblock.bench.gpu", "stage", name]
    command += ["--out", str(out), "--work", str(work)]
    command += ["--rehearse"] if rehearse else []
    command += ["--answers", str(answers)] if answers is not None else []
    with (out / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, preexec_fn=_end_with_the_parent
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            process.terminate()  # a training saves its state then
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            return "cut off"
    if process.returncode != 0:
        return f"crashed with code {process.returncode}: see {name}.log"
    after = Record(name, out, rehearsal=rehearse)
    if after.lost:
        return f"failed: {', '.join(after.lost)}"
    return "complete" if after.complete else f"ended too early: see {name}.log"


def _end_with_the_parent() -> None:
    """Else a stage whose driver was killed runs on without a limit, beside the next run."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def run_stage(name: str, out: Path, work: Path, *, rehearse: bool, answers: Path | None) -> None:
    """A stage in this process."""
    scale, record = REHEARSAL if rehearse else FULL, Record(name, out, rehearsal=rehearse)
    record.complete = False
    works: dict[str, Callable[[Scale, Record, Path], None]] = {
        "check": check,
        "cost": cost,
        "train": partial(train, answers=answers),
        "bench": bench,
        "profile": profile,
    }
    with explain_disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    works[name](scale, record, work)
    record.finish()
