"""Reports of drafters on known answers: their tables, their curves, what is refused."""

import json
from pathlib import Path

import pytest

from specblock.bench.report.document import figures_of, markdown, read_report
from specblock.bench.report.evaluations import draw_curves
from specblock.errors import SpecBlockError

MEMORY = Path(__file__).parents[2] / "docs/results/evaluate-memory.json"


def state(step, tau):
    return {"step": step, "answer_tokens": 800 * step, "tau": tau, "accuracy_b1s0": tau / 5}


def report(**changes):
    drafter = {"answers": 9, "greedy_answers": 8, "accuracy_b1s0": 0.4, "tau": 2.25}
    settings = {"max_new_tokens": 48, "nodes": 60, "leaves": 28, "rank_branching": True}
    return {
        "drafters": {
            "runs/one": {**drafter, "curve": [state(1, 1.5), state(500, 2.25)]},
            "runs/two": {**drafter, "tau": 1.75},
        },
        "settings": {**settings, **changes},
        "environment": {"date": "2026-11-23T00:00:00", "commit": "abc"},
    }


@pytest.fixture
def saved(tmp_path):
    def save(document):
        path = tmp_path / "evaluation.json"
        path.write_text(json.dumps(document))
        return path

    return save


def test_the_tables_of_an_evaluation(saved):
    text = markdown(read_report(saved(report())))
    assert "8 greedy answers of at most 48 tokens" in text
    assert "60 nodes and 28 leaves;" in text
    assert "| one | 40.0% | – | – | – | 2.25 |" in text
    assert "| two | 40.0% | – | – | – | 1.75 |" in text
    assert "| one | 400,000 | 500 | 45.0% | – | – | – | 2.25 |" in text
    assert "without the rank head" in markdown(read_report(saved(report(rank_branching=False))))


def test_what_was_played_back_has_columns_of_its_own():
    text = markdown(read_report(MEMORY))
    assert "| speed-up played back | with copies | with memory |" in text
    assert "| 1.67 | 1.83 |" in text


def test_drafters_of_one_name_keep_their_paths(saved):
    document = report()
    document["drafters"] = {"a/same": {"tau": 1, "answers": 1}, "b/same": {"tau": 2, "answers": 1}}
    assert list(figures_of(read_report(saved(document)))) == ["a/same", "b/same"]


@pytest.mark.parametrize("drafters", [{}, {"one": {"answers": 3}}])
def test_what_is_no_evaluation_is_refused(saved, drafters):
    with pytest.raises(SpecBlockError, match="is no report"):
        read_report(saved({**report(), "drafters": drafters}))


def test_the_same_curves_give_the_same_picture(saved, tmp_path):
    pytest.importorskip("matplotlib")
    found = read_report(saved(report()))
    for name in ("a.svg", "b.svg"):
        draw_curves([found], tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    del found["drafters"]["one"]
    with pytest.raises(SpecBlockError, match="--states"):
        draw_curves([found], tmp_path / "none.svg")
