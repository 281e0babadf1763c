"""Stages on a GPU: what is kept, what is cut off, what is gone on with. The stages themselves are
rehearsed by ``benchmarks/gpu/run.sh rehearse``, which continuous integration runs."""

import dataclasses
import json

import pytest

from specblock.bench.gpu import driver
from specblock.bench.gpu.cost import captured
from specblock.bench.gpu.record import Record
from specblock.bench.gpu.scale import FULL, REHEARSAL
from specblock.bench.playback.rounds import PlayedRound, priced
from specblock.bench.playback.sheet import find_sheet
from specblock.errors import ConfigError


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
