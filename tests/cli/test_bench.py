"""The verb ``bench`` over a tiny model."""

import json

import pytest
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import make_target

from specblock.engine import loading
from specblock.target.loading import zoo


@pytest.fixture
def tiny(monkeypatch):
    """What ``load_model`` loads; counts how often."""
    loads = []

    def load_model(name, **options):
        loads.append((name, options))
        small = {"max_position_embeddings": 1024, "num_hidden_layers": 1}
        return make_target("llama", **small), make_tokenizer()

    for module in (zoo, loading):
        monkeypatch.setattr(module, "load_model", load_model)
    return loads


ARGUMENTS = ("bench", "--model", "tiny", "--methods", "plain,lookup", "--max-new-tokens", "8")


def test_bench_writes_the_report_and_goes_on(tiny, run, tmp_path):
    out = tmp_path / "report.json"
    chosen = (*ARGUMENTS, "--per-task", "1", "--json", str(out))
    result = run(*chosen)
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert set(report["methods"]) == {"plain", "lookup"}
    assert report["methods"]["plain"]["speedup"]["median"] == 1.0
    assert len({row["id"] for row in report["rows"]}) == 7
    assert report["settings"]["contenders"]["lookup"]["budget"] == "measured"
    assert report["costs"].keys() == {"", "lookup"}
    assert "1.00 (1.00–1.00)" in result.stdout
    assert "1/7, " in result.stderr
    assert " left, tokens/s: plain " in result.stderr
    again = run(*chosen, "--resume")
    assert again.exit_code == 0, again.output
    assert json.loads(out.read_text())["rows"] == report["rows"], "nothing was left to do"
    other = run(*chosen, "--resume", "--seed", "9")
    assert other.exit_code == 2
    assert "is of a run with another" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--methods", "plain,specblok"), "did you mean 'specblock'"),
        (("--methods", "plain,eagle3"), "--drafter eagle3=FOLDER"),
        (("--prompts", "none.jsonl"), "no prompt file"),
        (("--resume",), "name it with --json"),
        (("--costs", "h100-qwen3-8"), "did you mean 'h100-qwen3-8b'"),
        (("--costs", "h100-qwen3-8b", "--temperature", "1"), "leave --temperature at 0"),
        (("--drafter", "eagle4=x"), "no kind of drafter"),
        (("--budget", "big"), "budget must be"),
    ],
)
def test_bench_refuses_in_a_sentence(tiny, run, arguments, said):
    result = run(*ARGUMENTS, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_many_clients(tiny, run, tmp_path):
    out = tmp_path / "clients.json"
    arguments = ("bench", "--model", "tiny", "--drafter", "lookup", "--max-new-tokens", "4",
                 "--limit", "2", "--methods", "plain,specblock", "--json", str(out))  # fmt: skip
    result = run(*arguments, "--concurrency", "1,2")
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text())["load"].keys() == {"1", "2"}
    assert "| 2, specblock |" in result.stdout
    assert "2 clients, plain: " in result.stderr
    refused = run(*arguments, "--concurrency", "a")
    assert refused.exit_code == 2
    assert "as numbers of clients: 1,2,4" in refused.stderr


def test_bench_plays_rounds_back_and_goes_on(tiny, run, tmp_path):
    out = tmp_path / "played.json"
    chosen = (*ARGUMENTS, "--limit", "2", "--costs", "h100-qwen3-8b", "--json", str(out))
    result = run(*chosen)
    assert result.exit_code == 0, result.output
    assert "| h100-qwen3-8b, lookup |" in result.stdout
    report = json.loads(out.read_text())
    assert {row["method"] for row in report["rows"]} == {"lookup"}
    again = run(*chosen, "--resume")
    assert again.exit_code == 0, again.output
    assert json.loads(out.read_text()) == report
    assert "plain decoding" not in again.stderr
    other = run(*chosen, "--resume", "--max-new-tokens", "9")
    assert other.exit_code == 2
    assert "with other settings" in other.stderr
