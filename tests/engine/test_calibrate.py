"""What a forward costs right after one of another size, and after its like."""

from types import SimpleNamespace

import torch

from specblock.engine import calibrate
from specblock.target.model import Target
from tests.tiny import make_target


def test_the_first_call_of_a_size_pays_for_the_change(monkeypatch):
    now, last = [0.0], [0]

    def call(size):
        def run():
            now[0] += size + (5.0 if last[0] != size else 0.0)
            last[0] = size

        return run

    monkeypatch.setattr(calibrate.time, "perf_counter", lambda: now[0])
    calls = {1: call(1), 4: call(4)}
    cpu = SimpleNamespace(device=torch.device("cpu"))
    changed, settled = calibrate._seconds(calls, cpu, before=calls[1])
    assert changed == {1: 1.0, 4: 9.0}
    assert settled == {1: 1.0, 4: 4.0}


def test_trees_are_charged_with_half_of_the_changes(monkeypatch):
    rows = calibrate.TARGET_ROWS
    settled = {count: 1.0 + 0.1 * count for count in rows}
    changed = {count: seconds + (0.4 if count > 3 else -0.4) for count, seconds in settled.items()}
    monkeypatch.setattr(calibrate, "_seconds", lambda *_, **__: (changed, settled))
    target = Target(make_target("llama"), (0, 2, 4))
    costs = calibrate.measure_costs(target, None, lambda step: None)
    for count in rows:
        expected = settled[count] + (0.2 if count > 3 else 0.0)
        assert abs(costs.target[count] - expected) < 1e-9
