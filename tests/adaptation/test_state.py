"""What was learned survives any end of the process, and leaves as an ordinary drafter."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.adaptation.world import config, make_speculator, prompt
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import make_drafter, make_target

from specblock.adaptation.doorway import adapt as start_adapting
from specblock.adaptation.feedback.signals import CONTEXT
from specblock.adaptation.learning.learner import BETTER, Attempt
from specblock.adaptation.state import STATUS, export, read_status, save
from specblock.drafters.specblock.checkpoint import read_config, save_checkpoint
from specblock.engine.loading import assemble, load_drafter
from specblock.errors import CheckpointError, ConfigError

EAGER = {"policy": "always-heads", "min_requests": 2, "heads_lr": 5e-3}
ROOT = Path(__file__).parents[2]


def taught(folder, **settings):
    """A speculator with some updates behind it, the last of which was taken."""
    speculator = make_speculator(config(folder=folder, **EAGER, **settings))
    for number in range(7):
        speculator.generate(prompt(number), max_new_tokens=12, ignore_eos=True)
    adaptation = speculator.adaptation
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in adaptation.learner.original.items()
    }
    attempt = Attempt("heads", BETTER, 0.07, 0.07, 1.5, weights, {})
    adaptation._integrate(attempt, "heads", (1.0,) * len(CONTEXT))
    speculator.close()
    return speculator


def parameters(speculator):
    return dict(speculator.drafter.model.named_parameters())


def test_a_resumed_adaptation_is_where_it_was(tmp_path):
    first = taught(tmp_path)
    second = make_speculator(config(folder=tmp_path, **EAGER))
    ours, theirs = first.adaptation, second.adaptation
    for name, tensor in parameters(first).items():
        torch.testing.assert_close(parameters(second)[name], tensor)
    assert theirs.bandit.to_dict() == ours.bandit.to_dict()
    assert theirs.journal.to_dict() == ours.journal.to_dict()
    assert theirs.costs.measured == ours.costs.measured
    assert theirs.signals == ours.signals
    assert theirs.total_gain == ours.total_gain == 0.07
    assert theirs.last_swap == ours.last_swap
    assert theirs.watch.watching
    assert theirs.ledger.decoded == ours.ledger.decoded
    assert theirs.ledger.saved == ours.ledger.saved
    old, new = (a.learner.optimisers["heads"].state_dict() for a in (ours, theirs))
    assert old["state"]
    torch.testing.assert_close(old["state"][0]["exp_avg"], new["state"][0]["exp_avg"])
    assert theirs.buffer.seen == 7
    assert len(theirs.buffer) == 0
    theirs._roll_back()
    for name, tensor in make_speculator().drafter.model.named_parameters():
        torch.testing.assert_close(parameters(second)[name], tensor)


def test_another_drafter_is_refused(tmp_path):
    taught(tmp_path)
    with pytest.raises(ConfigError, match="another model or drafter"):
        make_speculator(config(folder=tmp_path), seed=5)
    with pytest.raises(ConfigError, match="(other weights, rank|other rank)"):
        make_speculator(config(folder=tmp_path, rank=3))


def test_a_torn_state_falls_back_to_the_one_before(tmp_path):
    first = taught(tmp_path)
    save(first.adaptation)
    states = sorted(tmp_path.glob("step-*.pt"))
    assert len(states) == 2
    states[-1].write_bytes(states[-1].read_bytes()[:1000])
    second = make_speculator(config(folder=tmp_path))
    assert second.adaptation.total_gain == 0.07
    second.adaptation.lock.release()
    states[0].write_bytes(b"")
    with pytest.raises(CheckpointError, match="damaged"):
        make_speculator(config(folder=tmp_path))


KILLED = """
import sys, time
sys.path[:0] = [{root!r}, {root!r} + "/src", {root!r} + "/tests"]
from pathlib import Path
from tests.adaptation.world import config, make_speculator, prompt
folder = Path({folder!r})
speculator = make_speculator(config(folder=folder, policy="always-heads", min_requests=2))
train, attempts = speculator.adaptation.learner._train, 0
def slow(job, began):
    global attempts
    attempts += 1
    done = train(job, began)
    if attempts == 2:
        (folder / "in-update").touch()
        time.sleep(600)
    return done
speculator.adaptation.learner._train = slow
for number in range(100):
    speculator.generate(prompt(number), max_new_tokens=8, ignore_eos=True)
"""


def test_kill_in_the_middle_of_an_update_loses_only_that_update(tmp_path):
    code = KILLED.format(root=str(ROOT), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 300
        while not (tmp_path / "in-update").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    speculator = make_speculator(config(folder=tmp_path, policy="always-heads", min_requests=2))
    adaptation = speculator.adaptation
    assert adaptation.journal.attempts == 1
    assert adaptation.buffer.seen >= 2
    plain = speculator.generate(prompt(1), max_new_tokens=8, use_drafter=False).token_ids
    assert speculator.generate(prompt(1), max_new_tokens=8).token_ids == plain
    assert read_status(tmp_path)["attempts"] == 1


def test_status_is_json_beside_the_state(tmp_path):
    speculator = taught(tmp_path)
    found = read_status(tmp_path)
    expected = json.loads(json.dumps(speculator.adaptation.status()))
    for paid in ("update_seconds", "delay_seconds"):
        assert found.pop(paid) < expected.pop(paid), "saving is paid for too"
    assert found == expected
    assert set(found["arms"]) == {"heads", "last-layer", "full"}
    assert found["arms"]["heads"]["pulls"] == found["attempts"] >= 1
    assert found["adapted"]
    (tmp_path / STATUS).unlink()
    with pytest.raises(CheckpointError, match="no adaptation"):
        read_status(tmp_path)


def test_the_export_is_an_ordinary_drafter(tmp_path):
    target = make_target("llama")
    rows = make_drafter().model.t2d.nonzero().flatten()
    base = make_drafter(target_lm_head=True, cached_slots=1, sink=True).model
    base.lm_head.weight.data = target.get_output_embeddings().weight.detach()[rows].clone()
    save_checkpoint(base, tmp_path / "base", dtype=torch.float32)
    adapt = config(folder=tmp_path / "state", **EAGER)
    speculator = assemble(target, make_tokenizer(), tmp_path / "base", calibrate="never")
    start_adapting(speculator, adapt)
    adaptation = speculator.adaptation
    export(adaptation, tmp_path / "unchanged")
    assert read_config(tmp_path / "unchanged").target_lm_head
    weights = {n: t + 0.05 * torch.randn_like(t) for n, t in adaptation.learner.original.items()}
    adaptation.learner.adopt(weights)
    assert adaptation._put_to_use()
    export(adaptation, tmp_path / "adapted")
    assert not read_config(tmp_path / "adapted").target_lm_head
    loaded = load_drafter(tmp_path / "adapted", target, make_tokenizer()).model
    hidden = torch.randn(4, 32)
    with torch.no_grad():
        expected, found = (m.logits(hidden)[0] for m in (speculator.drafter.model, loaded))
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.05)  # stored in bfloat16
    again = assemble(
        make_target("llama"), make_tokenizer(), tmp_path / "adapted", calibrate="never"
    )
    assert again.generate("w7", max_new_tokens=9).token_ids == (
        again.generate("w7", max_new_tokens=9, use_drafter=False).token_ids
    )


def test_another_target_is_refused_and_the_folder_stays(tmp_path):
    taught(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=r"another model or drafter \(other target\)"):
        make_speculator(config(folder=tmp_path), target_seed=9)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def changed(folder, change):
    path = sorted(folder.glob("step-*.pt"))[-1]
    state = torch.load(path, weights_only=True)
    torch.save(change(state), path)


FIELDS = (
    "identity", "current", "former", "optimisers", "bandit", "ledger", "costs", "signals", "watch",
    "journal", "buffer", "gains", "last_swap", "calibration",
)  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_a_state_without_a_field_or_with_another_type_is_a_sentence(tmp_path, name):
    taught(tmp_path)
    kept = sorted(tmp_path.glob("step-*.pt"))[-1].read_bytes()
    for value in (None, "x", 5, [1], {"a": "b"}):
        if name == "last_swap" and value is None:
            continue
        changed(tmp_path, lambda state, v=value: {**state, name: v})
        with pytest.raises((CheckpointError, ConfigError), match="another folder"):
            make_speculator(config(folder=tmp_path))
    sorted(tmp_path.glob("step-*.pt"))[-1].write_bytes(kept)
    changed(tmp_path, lambda state: {k: v for k, v in state.items() if k != name})
    with pytest.raises(CheckpointError, match=f"lacks the field '{name}'"):
        make_speculator(config(folder=tmp_path))


@pytest.mark.parametrize("value", [{}, [], None, 5, "x", [{}], {"arms": 5}])
def test_the_status_of_something_else_is_a_sentence(tmp_path, value):
    taught(tmp_path)
    (tmp_path / "status.json").write_text(json.dumps(value))
    with pytest.raises(CheckpointError, match="made anew when the adaptation is saved"):
        read_status(tmp_path)
