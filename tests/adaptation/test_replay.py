"""Policies against each other on a stream, told in one report that can be gone on with."""

import json

import pytest
import torch
from tests.adaptation.world import config, make_speculator, prompt

from specblock.adaptation.adapter import Adaptation
from specblock.adaptation.feedback.observer import TargetReducer
from specblock.adaptation.replay import stream as module
from specblock.adaptation.replay.poison import LyingReducer
from specblock.adaptation.replay.report import Row, draw, regret_told, report_of
from specblock.adaptation.replay.run import compare_policies
from specblock.adaptation.replay.stream import Plan, Request
from specblock.bench.suites.prompts import load_prompts
from specblock.config import GenerationConfig
from specblock.data import SHIFTING_STREAM
from specblock.errors import ConfigError

SHORT = GenerationConfig(max_new_tokens=8, ignore_eos=True)
POLICIES = ("never", "always-heads", "bandit")


def stream(count):
    return [Request(f"r{n}", "ab"[2 * n >= count], prompt(n)) for n in range(count)]


def play(out=None, count=6, **more):
    asked = {"config": SHORT, "adapt": config()}
    asked |= {name: more.pop(name) for name in ("adapt", "progress") if name in more}
    plan = Plan(**{"policies": POLICIES, "out": out, **more})
    return compare_policies(make_speculator(), stream(count), plan, **asked)


def test_the_report_has_what_was_promised(tmp_path):
    out = tmp_path / "report.json"
    seen = []
    report = play(out, checkpoint_every=2, progress=lambda done, of, _: seen.append((done, of)))
    assert seen == [(2, 6), (4, 6), (6, 6)]
    assert json.loads(out.read_text()) == json.loads(json.dumps(report))
    assert set(report["policies"]) == set(POLICIES)
    for row in report["policies"].values():
        assert row["tokens_per_second"] > 0
        assert row["accepted_length"] >= 1
        assert row["different_answers"] == 0
        assert row["requests"] == 6
        assert {"updates", "update_seconds", "rollbacks"} <= set(row)
    heads = report["policies"]["always-heads"]
    assert heads["updates"] >= 1
    assert 0 < heads["update_seconds"] < heads["seconds"], "updates are inside the clock"
    assert report["policies"]["never"]["updates"] == 0
    assert set(report["tasks"]) == {"a", "b"}
    assert len(report["won_seconds"]["bandit"]) == 6
    assert report["regret"]["best_fixed"] in ("never", "always-heads")
    assert len(report["rows"]) == 18
    image = tmp_path / "plot.png"
    pytest.importorskip("matplotlib")
    draw(report, image)
    assert image.stat().st_size > 1000


def test_a_run_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    out = tmp_path / "report.json"
    answer = module._answered
    monkeypatch.setattr(module, "_answered", _until(answer, "r3"))
    with pytest.raises(KeyboardInterrupt):
        play(out, checkpoint_every=2)
    kept = json.loads(out.read_text())["rows"]
    assert {row["id"] for row in kept} == {"r0", "r1"}
    asked = []
    monkeypatch.setattr(module, "_answered", _noting(answer, asked))
    report = play(out, checkpoint_every=2)
    assert asked == ["r2", "r3", "r4", "r5"]
    assert report["rows"][: len(kept)] == kept
    assert [row["index"] for row in report["rows"]] == [n for n in range(6) for _ in POLICIES]
    with pytest.raises(ConfigError, match="other settings"):
        play(out, seed=1)
    out.write_text("{}")
    with pytest.raises(ConfigError, match="no report"):
        play(out)


def _until(answer, stop):
    def asked(days, order, request, *more):
        if request.id == stop:
            raise KeyboardInterrupt
        return answer(days, order, request, *more)

    return asked


def _noting(answer, asked):
    def noted(days, order, request, *more):
        asked.append(request.id)
        return answer(days, order, request, *more)

    return noted


def test_won_seconds_and_regret_add_up():
    def row(policy, index, seconds, events=()):
        return Row(index, f"r{index}", "t", policy, 10, seconds, 5, 10, True, list(events))

    attempt = {"event": "attempt", "arm": "heads", "outcome": "better", "seconds": 0.5}
    rows = [
        *(row("never", n, 2.0) for n in range(3)),
        *(row("always-heads", n, 1.5) for n in range(3)),
        row("bandit", 0, 2.0),
        row("bandit", 1, 2.5, [attempt, {"event": "rollback", "arm": "heads", "lost": 0.2}]),
        row("bandit", 2, 1.0),
    ]
    report = report_of(rows, list(POLICIES), {})
    assert report["won_seconds"]["bandit"] == [0.0, -0.5, 0.5]
    assert report["regret"] == {"best_fixed": "always-heads", "seconds": [0.5, 1.5, 1.0]}
    bandit = report["policies"]["bandit"]
    assert bandit["tokens_per_second"] == pytest.approx(30 / 5.5)
    assert (bandit["updates"], bandit["swaps"], bandit["rollbacks"]) == (1, 1, 1)
    assert bandit["update_seconds"] == 0.5


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        ([0.5, -3.84], "was 3.8 s ahead of the best fixed policy ('never') in the end."),
        (
            [0.5, 3.84],
            "was 3.8 s behind the best fixed policy ('never') in the end, and never caught up.",
        ),
        (
            [-0.5, 3.84],
            "was 3.8 s behind the best fixed policy ('never') in the end, having been level or "
            "ahead on the way.",
        ),
        ([3.84, 0.0], "took as long as the best fixed policy ('never')."),
        ([3.84, -0.04], "took as long as the best fixed policy ('never')."),
        ([3.84, 0.04], "took as long as the best fixed policy ('never')."),
    ],
)
def test_the_regret_is_told_as_it_is(seconds, told):
    assert regret_told("never", seconds) == f"The bandit {told}"


def test_policies_are_checked():
    for policies, words in (
        (("nevr",), "did you mean 'never'"),
        ((), "at least one"),
        (("never", "never"), "once"),
    ):
        with pytest.raises(ConfigError, match=words):
            play(policies=policies)


def test_our_own_stream_shifts():
    tasks = [prompt.task for prompt in load_prompts(SHIFTING_STREAM)]
    assert len(tasks) == 36
    assert list(dict.fromkeys(tasks)) == ["recipes", "sql", "letters"]
    assert tasks == sorted(tasks, key=["recipes", "sql", "letters"].index)


def test_feedback_lies_only_where_it_is_told_to(monkeypatch):
    lied = []
    absorb = Adaptation._absorb

    def noting(adaptation, observer, stats):
        lied.append(isinstance(adaptation.reducer, LyingReducer))
        absorb(adaptation, observer, stats)

    monkeypatch.setattr(Adaptation, "_absorb", noting)
    report = play(policies=("never", "memory"), poison=(2, 4))
    assert lied == [False, False, True, True, False, False]
    assert set(report["poison"]) == {"never", "memory"}
    assert set(report["poison"]["never"]) == {"before", "during", "after"}
    assert report["settings"]["poison"] == [2, 4]


def test_a_lie_swaps_tokens_and_nothing_else():
    honest, drafted = TargetReducer(8), torch.arange(40) % 2 == 0
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    ids, probabilities = honest(logits)
    other, same = LyingReducer(honest, drafted)(logits)
    assert torch.equal(same, probabilities)
    swapped = drafted[ids.long()]
    assert (other != ids)[swapped].float().mean() > 0.8
    assert torch.equal(other[~swapped], ids[~swapped]), "what cannot be drafted teaches nothing"
    assert torch.equal(other, LyingReducer(honest, drafted)(logits)[0]), "always the same lie"
    for row, twisted in zip(ids.tolist(), other.tolist(), strict=True):
        assert len(set(row)) == len(set(twisted))
