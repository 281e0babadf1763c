"""Stages on a GPU: what is kept, what is cut off, what is gone on with. The stages themselves are
rehearsed by ``benchmarks/gpu/run.sh rehearse``, which continuous integration runs."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from specblock.bench.gpu import decode, driver
from specblock.bench.gpu.cost import captured
from specblock.bench.gpu.record import Record
from specblock.bench.gpu.scale import FULL, REHEARSAL
from specblock.bench.playback.rounds import PlayedRound, priced
from specblock.bench.playback.sheet import find_sheet
from specblock.errors import ConfigError, SpecBlockError


def failing():
    raise RuntimeError("out of memory")


def test_what_failed_has_another_try_and_what_is_there_has_not(tmp_path):
    record = Record("cost", tmp_path)
    record.item("good", lambda: {"seconds": 1})
    found = record.item("bad", failing)
    assert found["failed"] == "RuntimeError: out of memory"
    record.finish()
    kept = json.loads((tmp_path / "cost.json").read_text())
    assert kept["complete"]
    assert kept["items"]["good"] == {"seconds": 1}
    assert "in failing" in "".join(kept["items"]["bad"]["where"])
    again = Record("cost", tmp_path)
    assert again.lost == ["bad"]
    assert again.item("good", failing) == {"seconds": 1}
    assert again.item("bad", lambda: {"seconds": 2}) == {"seconds": 2}
    again.finish()
    assert Record("cost", tmp_path).lost == []


def test_every_stage_has_a_limit_and_they_fit_a_quarter_of_an_hour():
    for scale in (FULL, REHEARSAL):
        assert set(scale.limits) == set(driver.STAGES)
    assert sum(FULL.limits.values()) <= 15 * 60


def test_an_unknown_stage_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no stage 'chek'; known: check, cost"):
        driver.run_stages(["chek"], tmp_path, tmp_path, rehearse=True)


def test_a_stage_that_takes_too_long_is_cut_off_and_the_next_one_runs(tmp_path, monkeypatch):
    limits = dict.fromkeys(driver.STAGES, 0.05)
    monkeypatch.setattr(driver, "REHEARSAL", dataclasses.replace(REHEARSAL, limits=limits))
    became = driver.run_stages(["check", "profile"], tmp_path, tmp_path / "w", rehearse=True)
    assert became == {"check": "cut off", "profile": "cut off"}
    assert (tmp_path / "check.log").exists()


def test_the_sheet_of_captured_rounds_by_hand(tmp_path):
    rows = {"static": {"1": 0.005, "64": 0.006}, "captured": True}
    rounds = {
        "drafting": {
            "eagle3, static": {"60": {"seconds": 0.004, "calls": 8.0}},
            "specblock, static": {"60": {"seconds": 0.003, "calls": 2.0}},
        },
        "environment": {"gpu": "H200", "cpu": "x"},
    }
    captured("tiny", rows, rounds, tmp_path)
    sheet = find_sheet(str(tmp_path / "sheets" / "captured-tiny.json"))
    assert sheet.about == "H200, the shape of tiny"
    assert "CUDA graphs" in sheet.source
    one = priced([PlayedRound(4, (10,) * 7, 63)], sheet.tables["eagle3"])
    other = priced([PlayedRound(4, (28,), 63)], sheet.tables["specblock"])
    assert (one.draft, one.verify) == pytest.approx((0.004, 0.006))
    assert (other.draft, other.verify) == pytest.approx((0.003, 0.006))


def test_a_rehearsal_is_not_taken_for_a_run(tmp_path):
    record = Record("check", tmp_path, rehearsal=True)
    record.item("good", lambda: {"seconds": 1})
    with pytest.raises(ConfigError, match="is of a rehearsal: name another folder with --out"):
        driver.run_stages(["check"], tmp_path, tmp_path / "w", rehearse=False)


def test_a_complete_stage_is_not_run_again_one_that_ended_early_is(tmp_path, monkeypatch):
    record = Record("check", tmp_path, rehearsal=True)
    record.item("good", lambda: {"seconds": 1})
    monkeypatch.setattr(driver.sys, "executable", "true")  # ends well, and did nothing
    ended = driver.run_stages(["check"], tmp_path, tmp_path / "w", rehearse=True)
    assert ended == {"check": "ended too early: see check.log"}
    record.finish()
    monkeypatch.setattr(driver.sys, "executable", "false")
    ended = driver.run_stages(["check", "cost"], tmp_path, tmp_path / "w", rehearse=True)
    assert ended["check"] == "complete"
    assert ended["cost"].startswith("crashed with code 1")


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SpecBlockError, match="choose another folder"):
        driver.run_stages(["check"], tmp_path / "file", tmp_path, rehearse=True)


def test_a_stage_ends_with_its_driver(tmp_path):
    stage = tmp_path / "stage"
    stage.write_text("#!/bin/sh\nexec sleep 60\n")
    stage.chmod(0o755)
    code = (
        "import sys; from pathlib import Path; from specblock.bench.gpu.driver import run_stages\n"
        f"sys.executable, here = {str(stage)!r}, Path({str(tmp_path)!r})\n"
        "run_stages(['check'], here, here, rehearse=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def sleeping():
        found = [Path("/proc", child, "comm") for child in children.read_text().split()]
        return [comm for comm in found if comm.read_text() == "sleep\n"]

    assert waited(sleeping)
    (child,) = sleeping()
    process.kill()
    process.wait()
    # where nobody collects it, it stays as a process without a command
    assert waited(lambda: not child.exists() or "sleep 60" not in command_of(child))


def command_of(comm):
    return (comm.parent / "cmdline").read_text().replace("\0", " ")


def waited(condition):
    deadline = time.monotonic() + 60  # a machine may be busy: usually five seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_step_that_cannot_be_compiled_costs_no_other_method(tmp_path, monkeypatch):
    def none(field):
        raise ConfigError("no compiler")

    figures = dict.fromkeys(
        ("tokens_per_second", "accepted_length", "speedup", "identical_answers", "answers"), 1
    )
    monkeypatch.setattr(decode, "compiled", none)
    monkeypatch.setattr(decode, "captured", lambda field: {"plain, captured": MagicMock()})
    monkeypatch.setattr(
        decode, "run", lambda *_, methods, **__: {
            "methods": dict.fromkeys(methods, figures), "divergences": [],
        },
    )  # fmt: skip
    field = MagicMock(contenders={"plain": MagicMock()})
    scale = dataclasses.replace(REHEARSAL, methods=("plain", "plain-compiled"))
    found = decode.one_request(field, scale, tmp_path)
    assert list(found["methods"]) == ["plain", "plain, captured"]
    assert found["left_out"] == {"plain-compiled": "no compiler"}
