"""A drafter from nothing but a model: it decodes losslessly, and cut off anywhere it goes on."""

import json

import pytest
import torch
from tests.engine.test_lossless import run as decoded
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import make_target
from tests.training.data.test_chat_mask import chat_tokenizer

from specblock.engine.loading import load_drafter
from specblock.errors import ConfigError, SpecBlockError
from specblock.fitting import fit, prompts, verdict
from specblock.fitting.fit import fit_drafter
from specblock.fitting.prompts import asked_of
from specblock.fitting.settings import FitSettings
from specblock.target.model import Target
from specblock.tree.sampling import SamplingParams

MINUTES = 0.25  # enough for a tiny model; what follows from the clock is not asserted


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Texts as short as the model is small."""
    monkeypatch.setattr(prompts, "TURN_TOKENS", 24)
    monkeypatch.setattr(fit, "ANSWER_TOKENS", 16)
    monkeypatch.setattr(fit, "PASSES", 1)
    monkeypatch.setattr(verdict, "NEW_TOKENS", 12)
    monkeypatch.setattr("specblock.engine.machine.calibrate._BELIEVED", float("inf"))


@pytest.fixture(scope="module")
def costs(tmp_path_factory):
    """Where what this machine was measured to take is kept from test to test."""
    return tmp_path_factory.mktemp("costs")


def chat_model(seed=0):
    tokenizer = chat_tokenizer()
    model = make_target("qwen3", seed, vocab_size=len(tokenizer), num_hidden_layers=4)
    with torch.no_grad():  # says many things
        model.lm_head.weight /= 8
    # its turns end after some tokens
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(200, 226)]
    return model, tokenizer


def base_model():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    return make_target("gemma3", num_hidden_layers=3), tokenizer


def settings(tmp_path, **more) -> FitSettings:
    values = {"out": tmp_path / "drafter", "minutes": MINUTES, "model": "tiny", **more}
    return FitSettings.from_dict(values)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def decodes_losslessly(model, tokenizer, folder):
    drafter, tokens = load_drafter(folder, model, tokenizer), list(range(5, 16))
    plain, _ = decoded(Target(model), None, SamplingParams(), tokens, length=24)
    target = Target(model, drafter.feature_layers)
    ours, stats = decoded(target, drafter, SamplingParams(), tokens, length=24)
    assert stats.drafted_nodes > 0
    assert ours == plain


@pytest.mark.parametrize("make", [chat_model, base_model])
def test_a_model_gets_a_drafter_and_a_sentence(make, tmp_path, costs):
    model, tokenizer = make()
    wanted, said = settings(tmp_path), []
    report = fit_drafter(model, tokenizer, wanted, said.append, costs)
    folder = wanted.folder
    assert report["sentence"].startswith(("decodes", "does not pay here, because"))
    assert set(report["methods"]) == {"plain", "lookup", "specblock"}
    assert all(d["kind"] != "bug" for d in report["divergences"])
    decodes_losslessly(model, tokenizer, folder)
    written = [row["prompt"] for row in rows(folder / "prompts.jsonl")]
    assert len(set(written)) == len(written) > 10
    # what is measured on was never answered for training
    measured = {row["id"] for row in report["rows"]}
    assert measured
    assert not measured & {row["id"] for row in rows(folder / "answers.jsonl")}
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert fit_drafter(model, tokenizer, wanted, said.append, costs) == report
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


class Killed(Exception):
    pass


@pytest.mark.parametrize("part", ["regenerate", "train_drafter", "learn_survival", "measure"])
def test_a_fit_that_is_cut_off_goes_on(part, tmp_path, costs, monkeypatch):
    model, tokenizer = chat_model()
    wanted = settings(tmp_path)

    def killed(*_arguments, **_named):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(fit, part, killed)
        with pytest.raises(Killed):
            fit_drafter(model, tokenizer, wanted, cache_dir=costs)
    kept = {name: (wanted.folder / name).read_text() for name in ("prompts.jsonl", "fit.json")}
    done = part != "regenerate"
    answers = (wanted.folder / "answers.jsonl").read_text() if done else ""
    report = fit_drafter(model, tokenizer, wanted, cache_dir=costs)
    assert report["sentence"]
    assert (wanted.folder / "prompts.jsonl").read_text().startswith(kept["prompts.jsonl"])
    assert json.loads(kept["fit.json"])["stage"] == {
        "regenerate": "answers", "train_drafter": "training"}.get(part, "measuring")  # fmt: skip
    if done:
        assert (wanted.folder / "answers.jsonl").read_text() == answers


def test_too_short_a_time_is_said_and_what_there_is_counts(tmp_path, costs):
    model, tokenizer = chat_model()
    with pytest.raises(SpecBlockError, match="minutes were too few for this model here"):
        fit_drafter(model, tokenizer, settings(tmp_path, minutes=1e-4), cache_dir=costs)
    first = (tmp_path / "drafter" / "prompts.jsonl").read_text()
    fit_drafter(model, tokenizer, settings(tmp_path), cache_dir=costs)
    assert (tmp_path / "drafter" / "prompts.jsonl").read_text().startswith(first)


def test_given_prompts_are_asked_and_every_fourth_set_aside(tmp_path, costs):
    model, tokenizer = chat_model()
    path = tmp_path / "given.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(40)))
    wanted = settings(tmp_path, prompts=path)
    report = fit_drafter(model, tokenizer, wanted, cache_dir=costs)
    asked = [p.id for p in asked_of(path, tokenizer, 128, len(tokenizer))]
    aside = asked[::4]
    measured = list(dict.fromkeys(row["id"] for row in report["rows"]))
    assert measured == aside[: len(measured)]
    answered = {row["id"] for row in rows(wanted.folder / "answers.jsonl")}
    assert answered <= set(asked) - set(aside)
    path.write_text('{"prompt": "another"}\n')
    with pytest.raises(ConfigError, match="another prompts"):
        fit_drafter(model, tokenizer, wanted, cache_dir=costs)


def test_the_folder_of_another_model_or_of_something_else_is_refused(tmp_path, costs):
    model, tokenizer = chat_model()
    wanted = settings(tmp_path, minutes=1e-4)
    with pytest.raises(SpecBlockError, match="too few"):
        fit_drafter(model, tokenizer, wanted, cache_dir=costs)
    with pytest.raises(ConfigError, match="is the fit of another model"):
        fit_drafter(*chat_model(seed=1), wanted, cache_dir=costs)
    with pytest.raises(ConfigError, match="is the fit of another seed"):
        fit_drafter(model, tokenizer, settings(tmp_path, seed=3), cache_dir=costs)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="something else than a fit"):
        fit_drafter(model, tokenizer, settings(tmp_path, out=tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


@pytest.mark.slow
def test_the_embedded_model_as_if_no_drafter_shipped(tmp_path, run):
    folder = tmp_path / "drafter"
    result = run("fit", "--minutes", "1", "--out", str(folder), "--threads", "1")
    assert result.exit_code == 0, result.output
    last = result.stdout.splitlines()[-2]
    assert "times as fast as plain on prompts it has not seen" in last or "does not pay" in last
    report = json.loads((folder / "report.json").read_text())
    assert report["methods"]["specblock"]["accepted_length"] > 1.2
