"""``prepare-data``, ``regenerate`` and ``train`` from the command line."""

import json
import shutil

import pytest
import yaml
from tests.tiny import make_target
from tests.training.data.test_chat_mask import chat_tokenizer

from specblock.cli.progress import duration, progress_line
from specblock.training.data.turns import Progress
from specblock.training.provenance import earlier_runs
from specblock.training.recipe import DrafterRecipe
from specblock.training.settings import TrainSettings


def refused(result, sentence):
    assert result.exit_code == 2, result.output
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny target on disk with a tokenizer of its own."""
    path = tmp_path_factory.mktemp("target")
    tokenizer = chat_tokenizer()
    model = make_target("qwen3", vocab_size=len(tokenizer), num_hidden_layers=4)
    model.generation_config.eos_token_id = 4
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "talks.jsonl"
    rows = [
        {"id": f"p{i}", "conversations": [{"from": "human", "value": f"question {i}"},
                                          {"from": "gpt", "value": f"the answer {i}"},
                                          {"from": "human", "value": "and?"}]}
        for i in range(4)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    return path


def test_from_a_file_to_answers(run, folder, source, tmp_path):
    prompts, answers = tmp_path / "prompts.jsonl.zst", tmp_path / "answers"
    result = run("prepare-data", "--source", str(source), "--out", str(prompts))
    assert result.exit_code == 0, result.output
    assert "5 rows read: 4 kept (8 user turns), 1 duplicates" in result.stdout
    (made,) = earlier_runs(tmp_path / "prompts.jsonl.zst.provenance.json")
    assert made["counts"]["kept"] == 4
    config = tmp_path / "run.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "prompts": str(prompts),
                "out": str(answers),
                "model": str(folder),
                "max_new_tokens": 4,
                "max_prompt_tokens": 128,
                "shard_rows": 3,
                "dtype": "float32",
            }
        )
    )
    result = run("regenerate", "--config", str(config), "--limit", "3")
    assert result.exit_code == 0, result.output
    assert "6 new answers" in result.stdout
    assert "6 of 6 answers" in result.stderr
    assert "tokens/s, 0:00 left" in result.stderr
    assert len(list(answers.glob("answers-*.jsonl"))) == 2
    result = run("regenerate", "--config", str(config))
    assert "2 new answers" in result.stdout
    first, second = earlier_runs(answers / "provenance.json")
    assert (first["settings"]["limit"], second["settings"]["limit"]) == (3, None)
    assert first["inputs"][0]["sha256"] == second["inputs"][0]["sha256"]
    other = shutil.copytree(folder, tmp_path / "other")
    make_target("qwen3", vocab_size=len(chat_tokenizer()), num_hidden_layers=2).save_pretrained(
        other
    )
    refused(run("regenerate", "--config", str(config), "--model", str(other)), "another target")
    refused(
        run("regenerate", "--config", str(config), "--max-new-tokens", "1000"), "context is 256"
    )


def test_dry_runs_print_the_settings_and_do_nothing(run, tmp_path):
    for arguments in (
        ("prepare-data", "--source", "none", "--limit", "5"),
        ("regenerate", "--prompts", "none", "--limit", "5"),
        ("train", "--answers", "none", "--limit", "5", "--no-sink"),
    ):
        result = run(*arguments, "--out", str(tmp_path / "out"), "--dry-run")
        assert result.exit_code == 0, result.output
        shown = yaml.safe_load(result.stdout)
        assert shown["limit"] == 5
        assert shown["out"] == str(tmp_path / "out")
        assert shown.get("sink", False) is False
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_sentences(run, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("sorce: x\nout: y\n")
    refused(run("prepare-data", "--config", str(config), "--source", "x"), "did you mean 'source'")
    refused(run("prepare-data", "--out", "y"), "'source' is missing")
    refused(run("prepare-data", "--source", str(tmp_path / "no.jsonl"), "--out", "y"), "no prompt")
    assert run("train", "--epochs", "many").exit_code == 2


def test_broken_rows_are_skipped_where_asked(run, tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "a"}\n{half\n')
    refused(run("prepare-data", "--source", str(source), "--out", str(out)), "line 2 ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]
    arguments = ("--source", str(source), "--out", str(out), "--on-error", "skip")
    result = run("prepare-data", *arguments)
    assert result.exit_code == 0
    assert "line 2 " in result.stderr
    assert "1 broken" in result.stdout


def test_training_gets_what_was_asked_for(run, folder, source, monkeypatch, tmp_path):
    from specblock.training import pipeline

    calls = []
    monkeypatch.setattr(
        pipeline, "train_drafter", lambda *given, **options: calls.append((given, options))
    )
    out = tmp_path / "drafter"
    result = run("train", "--conversations", str(source), "--out", str(out), "--model",
                 str(folder), "--epochs", "2", "--minutes", "1", "--start", "scratch",
                 "--blocks", "3")  # fmt: skip
    assert result.exit_code == 0, result.output
    (((_, _, answers, where, recipe), options),) = calls
    assert where == out
    assert options["max_seconds"] == 60
    assert options["name"] == str(folder)
    assert (recipe.train.epochs, recipe.from_scratch) == (2, True)
    assert recipe.objective.blocks == 3
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(rows) == 5
    assert chat_tokenizer().decode(rows[0]["answer_ids"]) == "the answer 0<|im_end|>"
    assert "question 0" in result.stderr, "a sample is shown"
    assert earlier_runs(out / "provenance.json")[0]["status"] == "finished"


def test_the_settings_are_the_pipelines():
    assert TrainSettings(answers="a", out="b").recipe() == DrafterRecipe()
    said = {"blocks": 3, "epochs": 2, "layers": 1, "start": "scratch", "betas": (0.8, 0.9)}
    recipe = TrainSettings(answers="a", out="b", **said).recipe()
    assert (recipe.objective.blocks, recipe.train.epochs, recipe.layers) == (3, 2, 1)
    assert recipe.from_scratch
    assert recipe.train.betas == (0.8, 0.9)


def test_an_unknown_kind_is_refused_before_anything_is_loaded(run):
    result = run("train", "--answers", "a", "--out", "b", "--kind", "eagle", "--model", "none")
    assert result.exit_code == 2
    assert "There is no drafter kind 'eagle'; choose specblock" in result.stderr


def test_progress_in_words():
    line = progress_line(Progress(of=10, answers=4, tokens=200, seconds=8.0))
    assert line == "4 of 10 answers, 200 tokens, 25 tokens/s, 0:12 left"
    assert duration(3930) == "1:05:30"
