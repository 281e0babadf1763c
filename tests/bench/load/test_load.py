"""Many clients at once: every request once, in turns, with figures that follow from them."""

import json

import pytest
from tests.engine.test_engine import make, prompts

from specblock.bench.load.clients import METHODS
from specblock.bench.load.report import load_markdown
from specblock.bench.load.run import measure
from specblock.bench.load.served import Request, Turn, figures
from specblock.bench.report.document import read_report
from specblock.config import GenerationConfig
from specblock.errors import ConfigError

CONFIG = GenerationConfig(max_new_tokens=6, ignore_eos=True)


@pytest.mark.parametrize("method", METHODS)
def test_clients_get_all_their_answers(method):
    turn = METHODS[method](make(kind="network"), prompts(5), CONFIG, 2)
    assert (turn.method, turn.concurrency) == (method, 2)
    assert [request.tokens for request in turn.requests] == [6] * 5
    assert all(0 < request.first <= request.last <= turn.seconds for request in turn.requests)
    if method != "transformers":
        assert turn.steps >= 3 * 2  # two at a time


def test_no_more_run_than_there_are_clients():
    speculator, most = make(), []
    step, engine = speculator.engine.step, speculator.engine
    engine.step = lambda: (step(), most.append(len(engine._running)))
    METHODS["plain"](speculator, prompts(6), CONFIG, 3)
    assert max(most) == 3
    assert not engine.busy


def test_figures_are_medians_of_turns_and_ratios_within_them():
    def turn(method: str, seconds: float) -> Turn:
        return Turn(method, 2, seconds, [Request(10, 1.0, 10.0)] * 2, steps=10, nodes=5)

    turns = [turn("plain", 4.0), turn("fast", 2.0), turn("fast", 5.0), turn("plain", 20.0),
             turn("plain", 4.0), turn("fast", 3.0)]  # fmt: skip
    found = figures(turns, "plain")[2]["fast"]
    assert found["tokens_per_second"] == pytest.approx(20 / 3)
    assert found["ratio"] == 2.0
    assert found["first"] == 1.0
    assert found["each"] == found["each_95"] == 1.0
    assert found["tokens_per_step"] == 2.0
    assert found["nodes_per_step"] == 0.5


def test_a_report_is_kept_turn_by_turn_and_read_again(tmp_path):
    out, told = tmp_path / "load.json", []
    methods = ["plain", "specblock"]
    report = measure(
        make(kind="network"), prompts(3), [1, 2], methods, CONFIG, out=out, progress=told.append
    )
    assert len(told) == 2 * 2 * 3
    kept = read_report(out)
    assert json.loads(json.dumps(kept["load"])) == json.loads(json.dumps(report["load"]))
    text = load_markdown(kept)
    assert "| 1, plain |" in text
    assert "| 2, specblock |" in text


def test_what_is_no_method_or_no_number_of_clients_is_refused():
    with pytest.raises(ConfigError, match="no method 'eagle3'; known: plain, specblock, tr"):
        measure(make(), prompts(1), [1], ["eagle3"], CONFIG)
    with pytest.raises(ConfigError, match="1 or more"):
        measure(make(), prompts(1), [0], ["plain"], CONFIG)
