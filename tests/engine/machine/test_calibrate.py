"""What a forward costs right after one of another size, and after its like."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch

from specblock.budget.costs import CostTable
from specblock.engine import loading
from specblock.engine.machine import calibrate, measure, slow_dtype
from specblock.engine.machine.exactness import repeats_plain
from specblock.engine.machine.measure import _briefly
from specblock.errors import ModelError
from specblock.kernels import deadline
from specblock.kernels.deadline import Deadline
from specblock.kernels.route_table import RouteTable
from specblock.target.model import Target
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import make_target


def test_the_first_call_of_a_size_pays_for_the_change(monkeypatch):
    now, last = [0.0], [0]

    def call(size):
        def run():
            now[0] += size + (5.0 if last[0] != size else 0.0)
            last[0] = size

        return run

    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    calls = {1: call(1), 4: call(4)}
    cpu = SimpleNamespace(device=torch.device("cpu"))
    timing = measure.time_in_turns(calls, cpu, before=calls[1])
    assert timing == measure.Timing({1: 1.0, 4: 9.0}, {1: 1.0, 4: 4.0}, scatter=1.0)


def test_trees_are_charged_with_half_of_the_changes(monkeypatch):
    rows = measure.TARGET_ROWS
    settled = {count: 1.0 + 0.1 * count for count in rows}
    changed = {count: seconds + (0.4 if count > 3 else -0.4) for count, seconds in settled.items()}
    timing = measure.Timing(changed, settled, 1.0)
    monkeypatch.setattr(measure, "time_in_turns", lambda *_, **__: timing)
    target = Target(make_target("llama"), (0, 2, 4))
    costs = measure.measure_costs(target, None, lambda step: None)
    for count in rows:
        expected = settled[count] + (0.2 if count > 3 else 0.0)
        assert abs(costs.target[count] - expected) < 1e-9


class Clock:
    """A clock that only calls move."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        for module in (measure, deadline):
            monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)

    def call(self, seconds):
        def run():
            self.now += seconds

        return run


def test_time_that_runs_out_ends_the_turns(monkeypatch):
    clock, cpu = Clock(monkeypatch), SimpleNamespace(device=torch.device("cpu"))
    turns = []
    calls = {1: clock.call(1.0), 4: lambda: (turns.append(1), clock.call(2.0)())}
    timing = measure.time_in_turns(calls, cpu, deadline=deadline.Deadline(20.0))
    assert timing.settled == {1: 1.0, 4: 2.0}
    assert len(turns) == 6  # of two calls each, six seconds a turn: a fourth would not fit


def test_what_cannot_be_measured_in_time_says_so(monkeypatch):
    clock, cpu = Clock(monkeypatch), SimpleNamespace(device=torch.device("cpu"))
    calls = {rows: clock.call(float(rows)) for rows in (1, 2, 4, 8)}
    with pytest.raises(deadline.OutOfTimeError):
        measure.time_in_turns(calls, cpu, deadline=deadline.Deadline(5.0))


def test_scatter_is_the_median_over_the_least(monkeypatch):
    clock, cpu = Clock(monkeypatch), SimpleNamespace(device=torch.device("cpu"))
    seconds = iter([9.0, 9.0, 1.0] + [3.0] * 40)

    def before():
        clock.call(next(seconds))()

    calls = {rows: clock.call(float(rows)) for rows in (1, 2, 4)}
    assert measure.time_in_turns(calls, cpu, before).scatter == 3.0


def test_a_small_vocabulary_can_be_measured():
    target = Target(make_target("llama", vocab_size=40))
    assert measure.measure_costs(target, None, lambda step: None).target[96] > 0


def test_what_scatters_is_used_and_not_kept(tmp_path, monkeypatch, caplog):
    costs = CostTable({1: 1.0})
    monkeypatch.setattr(calibrate, "measure_believably", lambda *_: (costs, 1.9))
    target = Target(make_target("llama"))
    assert calibrate.calibrate(target, None, cache_dir=tmp_path).costs is costs
    assert "1.9 times" in caplog.text
    assert calibrate.load_calibration(target, None, tmp_path) is None
    monkeypatch.setattr(calibrate, "measure_believably", lambda *_: (costs, 1.1))
    calibrate.calibrate(target, None, cache_dir=tmp_path)
    assert calibrate.load_calibration(target, None, tmp_path).costs.to_dict() == costs.to_dict()


def test_too_little_time_means_plain_tokens(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(loading, "FIRST_SECONDS", 0.0)
    speculator = loading.assemble(
        make_target("llama"), make_tokenizer(), "lookup", cache_dir=tmp_path
    )
    assert "one by one" in caplog.text
    answer = speculator.generate("w7 w8 w7 w8", max_new_tokens=40, ignore_eos=True)
    assert answer.stats.new_tokens == 40
    assert answer.stats.drafted_nodes == 0


def test_plain_decoding_measures_nothing(tmp_path):
    def refuse(step):
        raise AssertionError(step)

    speculator = loading.assemble(
        make_target("llama"), None, None, cache_dir=tmp_path, on_step=refuse
    )
    assert speculator.costs is None
    assert list(tmp_path.iterdir()) == []
    forced = loading.assemble(
        make_target("llama"), None, None, calibrate="force", cache_dir=tmp_path
    )
    assert forced.costs.target


def test_exact_by_name_holds_without_a_calibration_and_with_an_old_one(tmp_path, monkeypatch):
    model = make_target("llama", max_position_embeddings=512)
    exact = loading.assemble(model, None, None, exact=True, calibrate="never", cache_dir=tmp_path)
    assert repeats_plain(exact.target)
    key = calibrate.calibration_key(exact.target, None)
    path = calibrate.calibration_path(key, tmp_path)
    path.parent.mkdir(parents=True)
    known = calibrate.Calibration(RouteTable(), CostTable({1: 1.0}), exact=False)
    path.write_text(json.dumps({"calibration": known.to_dict()}))
    with pytest.raises(ModelError, match="leave exact out"):
        loading.assemble(model, None, None, exact=True, cache_dir=tmp_path)


@pytest.mark.parametrize(("half", "told"), [(0.9, False), (1e3, True)])
def test_a_hopeless_dtype_is_named_with_a_better_one(half, told, monkeypatch, caplog):
    taken = {torch.float32: 1.0, torch.bfloat16: 1.1, torch.float16: half}
    monkeypatch.setattr(slow_dtype, "product_seconds", taken.get)
    slow_dtype.warn_of_slow_dtype(Target(make_target("llama").half()))
    assert ("use dtype float32" in caplog.text) == told


def test_steps_are_logged_where_nobody_watches(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "specblock"):
        loading.assemble(make_target("llama"), None, "lookup", cache_dir=tmp_path)
    assert "matrix products ..." in caplog.text


def test_what_company_adds_is_left_out_where_there_is_no_time():
    """It must not make a first start give up: everything else was measured."""
    target = Target(make_target("llama"))
    assert _briefly(lambda: None, target, Deadline(0.0)) is None
    assert _briefly(lambda: None, target, Deadline()) >= 0.0
