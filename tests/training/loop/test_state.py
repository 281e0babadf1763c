"""A training state is one run's: another target's, other texts', something else are refused."""

import json
import zipfile
from importlib import metadata

import pytest
import torch
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import make_target
from tests.training.toy import write_answers

from specblock.errors import CheckpointError, SpecBlockError
from specblock.training.loop.checkpoints import numbered, save_state
from specblock.training.loop.state import ORIGIN, newest_state, read_state
from specblock.training.loop.trainer import TrainConfig
from specblock.training.pipeline import train_drafter
from specblock.training.recipe import DrafterRecipe


def train(folder, target=None, answers="answers.jsonl", report=lambda line: None, **settings):
    loop = TrainConfig(epochs=1, batch_sequences=2, log_every=1, mixed_precision=False)
    shape = {"draft_vocab_size": 60, "slot_rank": 4, "held_out": 1, "simulated": 0}
    recipe = DrafterRecipe(**shape, from_scratch=True, train=loop, **settings)
    where = folder / answers, folder / "drafter"
    return train_drafter(
        target or make_target("llama"), make_tokenizer(), *where, recipe, report=report
    )


@pytest.fixture
def begun(tmp_path):
    """A folder with a training behind it, and the bytes of everything in it."""
    write_answers(tmp_path / "answers.jsonl")
    train(tmp_path)
    return tmp_path


def bytes_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def another_target():
    """The same shapes and the same name, other weights."""
    target = make_target("llama")
    with torch.no_grad():
        target.model.layers[2].mlp.down_proj.weight.mul_(1.01)
    return target


def computed_otherwise():
    """The same weights, read with other positions."""
    target = make_target("llama")
    target.config.rope_parameters = {**target.config.rope_parameters, "rope_theta": 77.0}
    return target


@pytest.mark.parametrize("other", [another_target, computed_otherwise])
def test_another_target_of_the_same_shape_does_not_go_on(begun, other):
    before, said = bytes_of(begun), []
    with pytest.raises(CheckpointError, match=r"step-\d+.pt is another run's \(other target"):
        train(begun, other(), report=said.append)
    assert bytes_of(begun) == before
    assert not any("features" in line for line in said), "it is told before the long work"


def test_the_same_target_in_another_precision_goes_on(begun):
    assert train(begun, make_target("llama").to(torch.bfloat16).float()) is not None


def test_other_texts_of_the_same_lengths_do_not_go_on(begun):
    rows = [json.loads(line) for line in (begun / "answers.jsonl").read_text().splitlines()]
    for row in rows:
        row["prompt_ids"].reverse()
    (begun / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(CheckpointError, match=r"\(other texts\)"):
        train(begun)


def test_another_shape_of_drafter_does_not_go_on(begun):
    with pytest.raises(CheckpointError, match=r"\(other drafter\)"):
        train(begun, feature_layers=(0, 1, 2))


def test_states_of_before_go_on_and_it_is_said(begun):
    step, path = numbered(begun / "drafter" / "training")[0]
    state = torch.load(path, weights_only=True)
    for name in (*ORIGIN,):
        del state["identity"][name]
    del state["version"]
    save_state(path.parent, step, state, 3)
    said = []
    train(begun, report=said.append)
    assert any("does not say its target, drafter, texts" in line for line in said)
    assert set(ORIGIN) <= set(read_state(path).identity), "from now on it does"


BROKEN = {
    "no step": (lambda s: s.pop("step"), "lacks the field 'step'"),
    "no identity": (lambda s: s.pop("identity"), "lacks the field 'identity'"),
    "text for a step": (lambda s: s.update(step="3"), "is something else: step is '3', not a"),
    "list of weights": (lambda s: s.update(model=[1]), r"model is \[1\], not a valid dictionary"),
    "no tensors": (lambda s: s.update(model={"a": 1}), "model.a is 1, not an instance of Tensor"),
}


@pytest.mark.parametrize(("change", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_a_state_of_something_else_is_a_sentence(begun, change, words):
    step, path = numbered(begun / "drafter" / "training")[0]
    state = torch.load(path, weights_only=True)
    change(state)
    save_state(path.parent, step, state, 3)
    before = bytes_of(begun)
    with pytest.raises(CheckpointError, match=words) as caught:
        train(begun)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert bytes_of(begun) == before


@pytest.mark.parametrize("value", [[], 5, "text", torch.zeros(2)])
def test_another_kind_of_value_is_a_sentence(tmp_path, value):
    save_state(tmp_path, 1, value, 3)
    with pytest.raises(CheckpointError, match="step-000001.pt is something else"):
        newest_state(tmp_path, print)


def test_a_whole_archive_of_something_else_is_damaged(tmp_path):
    with zipfile.ZipFile(tmp_path / "step-000001.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="damaged"):
        newest_state(tmp_path, print)


def test_an_optimiser_that_does_not_fit_is_a_sentence(begun):
    step, path = numbered(begun / "drafter" / "training")[0]
    state = torch.load(path, weights_only=True)
    state["optimiser"] = {"state": {}}
    save_state(path.parent, step, state, 3)
    with pytest.raises(CheckpointError, match="optimiser or random does not fit"):
        train(begun)


def test_answers_of_another_target_are_refused(begun):
    from tests.training.test_pipeline import prompts

    from specblock.training.data.regenerate import RegenerateConfig, regenerate

    out, config = begun / "own.jsonl", RegenerateConfig(max_new_tokens=12, batch_size=3)
    regenerate(make_target("llama"), prompts(9), out, frozenset(), config)
    with pytest.raises(SpecBlockError, match=r"turn 0, in .*own.jsonl is another target's"):
        train(begun, another_target(), answers="own.jsonl")
    before = out.read_bytes()
    with pytest.raises(SpecBlockError, match=r"own.jsonl, line 1 is the answer of another target"):
        regenerate(another_target(), prompts(12), out, frozenset(), config)
    assert out.read_bytes() == before
    assert regenerate(make_target("llama"), prompts(12), out, frozenset(), config) == 3


def test_a_checkout_that_is_not_installed_trains_too(tmp_path, monkeypatch):

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    write_answers(tmp_path / "answers.jsonl")
    train(tmp_path)
    assert newest_state(tmp_path / "drafter" / "training", print)[1].version is None
