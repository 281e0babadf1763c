import json
import sys
from types import SimpleNamespace

import pytest

from specblock.bench.suites.prompts import load_prompts
from specblock.bench.suites.suites import PUBLIC, load_suite, sample_per_task
from specblock.data import OWN_PROMPTS
from specblock.errors import SpecBlockError


def test_our_own_is_the_default():
    assert load_suite() == load_suite("own") == load_prompts(OWN_PROMPTS)
    assert len(load_suite(limit=3)) == 3


def test_a_sample_takes_as_many_of_every_task():
    own = load_suite()
    drawn = load_suite(per_task=2, seed=1)
    tasks = [prompt.task for prompt in drawn]
    assert sorted(set(tasks)) == sorted({prompt.task for prompt in own})
    assert all(tasks.count(task) == 2 for task in tasks)
    assert drawn == load_suite(per_task=2, seed=1) != load_suite(per_task=2, seed=2)
    places = [own.index(prompt) for prompt in drawn]
    assert places == sorted(places)
    assert sample_per_task(own, 99, 0) == own
    assert load_suite(per_task=2, seed=1, limit=3) == drawn[:3]


def test_a_file_keeps_its_turns(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"turns": ["a", "b"], "task": "x"}) + "\n")
    (prompt,) = load_suite(path)
    assert (prompt.turns, prompt.task) == (("a", "b"), "x")
    with pytest.raises(SpecBlockError, match="no prompt file no-such-set"):
        load_suite("no-such-set")


class DatasetsError(Exception):
    pass


ROWS = {
    "spec-bench": {"question_id": 81, "category": "writing", "turns": ["one", "two"]},
    "mt-bench": {"prompt": ["one", "two"]},
    "humaneval": {"prompt": "def f():"},
    "gsm8k": {"question": "one"},
    "math-500": {"problem": "one"},
    "alpaca": {"instruction": "one", "input": ""},
}


@pytest.fixture
def datasets(monkeypatch):
    """A stand-in for the package; ``calls`` has what was asked for."""
    module = SimpleNamespace(exceptions=SimpleNamespace(DatasetsError=DatasetsError), calls=[])
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_sets_are_fetched_by_name(datasets, name):
    def load_dataset(*arguments, split, **options):
        datasets.calls.append((arguments, split, options))
        return [ROWS[name]]

    datasets.load_dataset = load_dataset
    (prompt,) = load_suite(name)
    assert datasets.calls[0][0]
    assert prompt.task
    assert len(prompt.turns) == (2 if name in ("spec-bench", "mt-bench") else 1)
    if name == "spec-bench":
        assert (prompt.id, prompt.task) == ("spec_bench-81", "multi_turn_conversation")
    if name == "math-500":
        assert prompt.turns[0].endswith("\\boxed{}.")


def test_without_a_network_it_is_one_sentence(datasets, monkeypatch):
    def load_dataset(*arguments, **options):
        raise ConnectionError("no route\nto host")

    datasets.load_dataset = load_dataset
    with pytest.raises(SpecBlockError, match=r"'gsm8k' cannot be fetched \(no route\)"):
        load_suite("gsm8k")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SpecBlockError, match=r"specblock\[train\]"):
        load_suite("gsm8k")
