"""The verbs ``report`` and ``bench cost``."""

import json
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[2] / "docs/results"
COMMITTED = str(RESULTS / "own-prompts-float32.json")
EVALUATION = str(RESULTS / "evaluate-memory.json")
STREAM = str(RESULTS / "adaptation-float32.json")


def test_report_prints_writes_and_updates(run, tmp_path):
    result = run("report", COMMITTED)
    assert result.exit_code == 0, result.output
    assert "| specblock |" in result.stdout
    out = tmp_path / "tables.md"
    assert run("report", COMMITTED, "--markdown", str(out)).stdout == ""
    assert out.read_text() == result.stdout
    figures = json.loads(run("report", COMMITTED, "--json").stdout)
    assert figures["own-prompts-float32"]["specblock"]["speedup"]["median"]
    document = tmp_path / "doc.md"
    document.write_text(
        f"<!-- specblock report {COMMITTED} -->\n<!-- end of specblock report -->\n"
    )
    assert "updated" in run("report", "--update", str(document)).stderr
    assert "unchanged" in run("report", "--update", str(document)).stderr


def test_report_writes_a_page(run, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "page.html"
    assert run("report", COMMITTED, "--html", str(out)).exit_code == 0
    assert out.read_text().startswith("<!doctype html>")


def test_report_knows_streams(run, tmp_path):
    result = run("report", STREAM)
    assert result.exit_code == 0, result.output
    assert "| always-heads |" in result.stdout
    figures = json.loads(run("report", STREAM, COMMITTED, "--json").stdout)
    assert figures["adaptation-float32"]["bandit"]["tokens_per_second"]
    assert figures["own-prompts-float32"]["specblock"]


def test_a_stream_is_drawn_and_the_same_each_time(run, tmp_path):
    pytest.importorskip("matplotlib")
    pictures = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for picture in pictures:
        assert run("report", STREAM, "--plot", str(picture)).stdout == ""
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert "<svg" in pictures[0].read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("report",), "Name a report"),
        (("report", COMMITTED, "--plot", "x.svg"), "one report of `bench adapt`"),
        (("report", STREAM, "--html", "x.html"), "--plot"),
        (("report", EVALUATION, "--html", "x.html"), "--plot"),
        (("report", EVALUATION, "--plot", "x.svg"), "--states"),
        (("report", "none.json"), "cannot be read"),
        (("report", COMMITTED, COMMITTED), "same file name"),
        (("bench", "cost", "--shape", "llama-9b"), "did you mean"),
        (("bench", "cost", "--nodes", "60;90"), "list of numbers"),
        (("bench", "cost", "--nodes", "0"), "at least 1"),
        (("bench", "cost", "--dtype", "int8"), "dtype must be"),
    ],
)
def test_mistakes_are_one_sentence(run, arguments, said):
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_bench_cost_counts_parameters_anywhere(run, tmp_path):
    out = tmp_path / "cost.json"
    result = run(
        "bench", "cost", "--shape", "qwen3-8b", "--device", "meta", "--dtype", "bfloat16",
        "--json", str(out),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "8190.7 M" in result.stdout
    report = json.loads(out.read_text())
    assert report["shape"] == "qwen3-8b"
    assert report["parameters"]["specblock"] > 1e8
