"""Runs that stop anywhere and go on as if they had not."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.tiny import seeded
from tests.training.toy import make_model, make_trainer, rows, weights, write_answers

from specblock.errors import CheckpointError
from specblock.training.loop import trainer as trainer_module
from specblock.training.loop.checkpoints import load_newest, numbered, save_state
from specblock.training.loop.plan import micro_batches, steps_from
from specblock.training.loop.trainer import TrainConfig, learning_rate

ROOT = Path(__file__).parents[3]


class Killed(Exception):
    pass


def killed_at(step: int):
    """A report that ends the run where the log of ``step`` is written: after it, before a save."""

    def report(line: str) -> None:
        if line.startswith(f"{{'step': {step},"):
            raise Killed

    return report


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    trainer = make_trainer(tmp_path_factory.mktemp("whole"))
    assert trainer.run()
    return trainer


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_run_ends_with_the_same_weights_to_the_bit(whole, tmp_path, seed):
    kills = torch.randint(1, whole.total_steps + 1, (2,), generator=seeded(seed)).tolist()
    for step in kills:
        trainer = make_trainer(tmp_path, save_every_seconds=0.0, report=killed_at(step))
        trainer.resume()
        if trainer.step < step:
            with pytest.raises(Killed):
                trainer.run()
    other = make_model(seed=7)
    other.input_layer.embed_tokens = make_model().input_layer.embed_tokens  # the target's
    resumed = make_trainer(tmp_path, other, save_every_seconds=0.0)
    if not resumed.resume():  # killed before anything was saved: it starts again
        resumed = make_trainer(tmp_path)
    assert resumed.run()
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(resumed)[name]), name
    steps = [int(row["step"]) for row in rows(tmp_path / "log.csv")]
    assert steps == list(range(1, whole.total_steps + 1))
    assert resumed.answer_tokens == whole.answer_tokens


def test_the_optimiser_goes_back_to_its_own_parameters(whole, tmp_path):
    trainer = make_trainer(whole.folder, make_model(seed=3))
    assert trainer.resume()
    for name, one, other in zip(trainer._names, whole.parameters, trainer.parameters, strict=True):
        before, after = whole.optimiser.state[one], trainer.optimiser.state[other]
        assert after["exp_avg"].shape == other.shape
        assert torch.equal(before["exp_avg"], after["exp_avg"]), name
        assert torch.equal(before["exp_avg_sq"], after["exp_avg_sq"]), name
    smaller = make_model()
    smaller.rank_head[0].weight.requires_grad_(False)
    with pytest.raises(CheckpointError, match="other weights"):
        make_trainer(whole.folder, smaller).resume()


def test_other_settings_are_refused_and_those_of_the_log_are_not(whole):
    assert make_trainer(whole.folder, log_every=3, keep_checkpoints=1).resume()
    with pytest.raises(CheckpointError, match="other lr"):
        make_trainer(whole.folder, lr=2e-3).resume()
    with pytest.raises(CheckpointError, match="other answers"):
        make_trainer(whole.folder, sequences=9).resume()


def test_a_damaged_state_falls_back_to_the_one_before(tmp_path):
    for step in range(1, 5):
        save_state(tmp_path, step, {"step": step, "weight": torch.randn(4000)}, keep=2)
    assert [step for step, _ in numbered(tmp_path)] == [4, 3]
    newest, before = (path for _, path in numbered(tmp_path))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1  # a single bit of a weight
    newest.write_bytes(content)
    said = []
    assert load_newest(tmp_path, said.append)[1]["step"] == 3
    assert len(said) == 1
    assert "step-000004.pt is damaged" in said[0]
    before.write_bytes(before.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="delete the folder"):
        load_newest(tmp_path, said.append)
    assert load_newest(tmp_path / "nothing", said.append) is None


def test_what_a_kill_leaves_of_a_write_is_no_state(tmp_path):
    (tmp_path / ".step-000009.pt.123.tmp").write_bytes(b"half")
    save_state(tmp_path, 1, {"step": 1}, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001.pt"]


def test_a_timed_run_goes_on_where_its_clock_was(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    rates = []
    original = trainer_module.Trainer.train_step

    def slow_step(self, step, schedule_step):
        clock[0] += 1.0
        tally = original(self, step, schedule_step)
        rates.append(self.optimiser.param_groups[0]["lr"])
        return tally

    monkeypatch.setattr(trainer_module.Trainer, "train_step", slow_step)
    settings = {"epochs": 40, "save_every_seconds": 0.0}
    with pytest.raises(Killed):
        make_trainer(tmp_path, report=killed_at(5), **settings).run(max_seconds=9)
    clock[0] += 1000.0  # the time between the runs does not count
    resumed = make_trainer(tmp_path, **settings)
    assert resumed.resume()
    assert (resumed.step, resumed.elapsed) == (4, 4.0)
    assert resumed.run(max_seconds=9)
    assert resumed.step == 9
    rates = rates[:4] + rates[5:]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] < 0.2 * max(rates)


SCRIPT = """
import sys
from pathlib import Path
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import make_target
from specblock.training.pipeline import train_drafter
from specblock.training.recipe import DrafterRecipe
from specblock.training.loop.trainer import TrainConfig

folder = Path(sys.argv[1])
loop = TrainConfig(epochs=100_000, batch_sequences=2, log_every=1)
recipe = DrafterRecipe(draft_vocab_size=60, slot_rank=4, held_out=1, simulated=0,
                       from_scratch=True, train=loop)
train_drafter(make_target("llama"), make_tokenizer(), folder / "answers.jsonl", folder / "drafter",
              recipe, report=lambda line: print(line, flush=True))
"""


def test_sigterm_finishes_the_step_saves_and_exits_with_0(tmp_path):
    write_answers(tmp_path / "answers.jsonl")
    search = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    lines = []
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": search},
    ) as process:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("{'step': 2,"):
                process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert lines[-1].startswith("stopped at step ")
    step = int(lines[-1].split()[3])
    assert numbered(tmp_path / "drafter" / "training")[0][0] == step
    assert f"{{'step': {step}," in lines[-2]
    assert not (tmp_path / "drafter" / "config.json").exists()


def test_evaluations_are_logged_once_a_step(tmp_path):
    trainer = make_trainer(tmp_path, judged=True, eval_every_seconds=0.0)
    trainer.evaluate()
    trainer.run()
    trainer.evaluate()
    table = rows(tmp_path / "eval.csv")
    assert [int(row["step"]) for row in table] == list(range(trainer.total_steps + 1))
    assert float(table[-1]["loss_b1s0"]) > 0
    counted = sum(int(row["rank_0_as_0"]) + int(row["rank_3_as_3"]) for row in table)
    assert counted > 0


def test_every_sequence_is_seen_once_an_epoch_by_some_process():
    lengths = [5 + i % 7 for i in range(23)]
    steps = list(steps_from(0, lengths, 6, 2, seed=1))
    assert len(steps) == 8
    for epoch in (steps[:4], steps[4:]):
        assert sorted(number for step in epoch for number in step) == list(range(23))
    assert list(steps_from(3, lengths, 6, 2, seed=1)) == steps[3:]
    for step in steps:
        parts = [micro_batches(step, rank, 2, 3) for rank in range(2)]
        assert all(len(part) == 3 and all(part) for part in parts)
        seen = [number for part in parts for micro in part for number in micro]
        assert set(seen) == set(step)
        assert len(seen) == max(6, len(step))


def test_the_learning_rate_rises_and_falls():
    config = TrainConfig(lr=1.0, warmup_steps=10, lr_floor=0.1)
    rates = [learning_rate(step, 100, config) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1)
