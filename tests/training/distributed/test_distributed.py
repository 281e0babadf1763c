"""Two processes on the CPU do what one does with the doubled batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.training.distributed import distributed_worker
from tests.training.toy import make_model, make_sequences

from specblock.drafters.objectives import reduction
from specblock.drafters.objectives.processes import alone, sum_over_workers, worker_count
from specblock.drafters.specblock.objective import ObjectiveConfig, SpecBlockObjective
from specblock.errors import ConfigError
from specblock.training.distributed.workers import Workers
from specblock.training.evaluate.evaluator import make_batch

ROOT = Path(__file__).parents[3]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    common = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.distributed.distributed_worker", str(folder)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
        )
        for rank in range(2)
    ]
    assert [process.wait() for process in started] == [0, 0]
    return folder


def test_two_processes_are_one_with_the_doubled_batch(two_processes, tmp_path):
    distributed_worker.train(tmp_path, Workers(cpu=True), 4, 1)
    expected = torch.load(tmp_path / "weights0.pt")
    both = [torch.load(two_processes / "together" / f"weights{rank}.pt") for rank in range(2)]
    moved = 0
    for name, weight in expected.items():
        assert torch.equal(both[0][name], both[1][name]), name
        torch.testing.assert_close(both[0][name], weight, atol=2e-5, rtol=1e-4, msg=name)
        moved += int(not torch.equal(weight, dict(make_model().named_parameters())[name]))
    assert moved > 10
    log, held = json.loads((tmp_path / "figures.json").read_text())
    log2, held2 = json.loads((two_processes / "together" / "figures.json").read_text())
    assert len(log) == len(log2) == 8
    for one, two in zip(log, log2, strict=True):
        for key in one:
            if key.startswith(("loss", "accuracy", "answer_tokens", "rank")) and one[key]:
                assert float(two[key]) == pytest.approx(float(one[key]), abs=2e-3), key
    for key, value in held.items():
        assert held2[key] == pytest.approx(value, abs=2e-3), key


def test_accumulated_steps_agree_between_processes(two_processes):
    both = [torch.load(two_processes / "accumulated" / f"weights{rank}.pt") for rank in range(2)]
    together = torch.load(two_processes / "together" / "weights0.pt")
    differ = 0
    for name, weight in both[0].items():
        assert torch.equal(weight, both[1][name]), name
        differ += int(not torch.equal(weight, together[name]))
    assert differ > 10  # means of two halves are not the mean of the whole


@pytest.mark.parametrize("accumulated", [False, True])
def test_divided_weights_train_as_whole_ones(two_processes, accumulated):
    one, other = ("sharded-accumulated", "accumulated") if accumulated else ("sharded", "together")
    divided = [torch.load(two_processes / one / f"weights{rank}.pt") for rank in range(2)]
    expected = torch.load(two_processes / other / "weights0.pt")
    assert divided[0].keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(divided[0][name], divided[1][name]), name
        torch.testing.assert_close(divided[0][name], weight, atol=2e-5, rtol=1e-4, msg=name)
    ours, theirs = (
        json.loads((two_processes / f / "figures.json").read_text()) for f in (one, other)
    )
    assert ours[1] == pytest.approx(theirs[1], abs=2e-3)
    shares = [
        json.loads((two_processes / one / f"share{rank}.json").read_text()) for rank in (0, 1)
    ]
    assert sum(shares) == pytest.approx(1.0)
    assert max(shares) < 0.6, "each holds about half"


def test_divided_training_goes_on_to_the_bit(two_processes):
    whole, resumed = (
        torch.load(two_processes / name / "weights0.pt") for name in ("sharded", "resumed")
    )
    for name, weight in whole.items():
        assert torch.equal(resumed[name], weight), name


def test_the_parts_of_a_batch_add_up_to_its_gradient(monkeypatch):
    """What two processes would do, in one: the same counts below the line, gradients averaged."""
    sequences = make_sequences(4)
    objective = SpecBlockObjective(ObjectiveConfig(positions=5, rank_budget=3.0), 4)

    def gradient(keys, counts=None):
        model, seen = make_model(), []

        def shared(values):
            seen.append(values)
            return values if counts is None else counts

        monkeypatch.setattr(reduction, "sum_over_workers", shared)
        monkeypatch.setattr(reduction, "worker_count", lambda: 1 if counts is None else 2)
        batch = make_batch([sequences[key] for key in keys], keys, objective.pad_rows)
        loss, _ = objective(model, batch, torch.Generator().manual_seed(5))
        loss.backward()
        named = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        return loss.detach(), named, seen[0]

    loss, whole, counts = gradient([0, 1, 2, 3])
    parts = [gradient(keys, counts) for keys in ([0, 2], [1, 3])]
    torch.testing.assert_close(parts[0][2] + parts[1][2], counts)
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, loss)
    for name, grad in whole.items():
        mean = (parts[0][1][name] + parts[1][1][name]) / 2
        torch.testing.assert_close(mean, grad, atol=1e-6, rtol=1e-4, msg=name)


def test_one_process_sums_with_nobody():
    values = torch.tensor([1.0, 2.0])
    assert sum_over_workers(values) is values
    assert worker_count() == 1
    with alone():
        assert worker_count() == 1


def test_sharded_launches_are_refused_in_a_sentence(monkeypatch):
    import accelerate
    from accelerate.utils import DistributedType

    class Sharded:
        def __init__(self, **_):
            self.distributed_type = DistributedType.FSDP

    monkeypatch.setattr(accelerate, "Accelerator", Sharded)
    with pytest.raises(ConfigError, match="launch it without"):
        Workers(cpu=True)
