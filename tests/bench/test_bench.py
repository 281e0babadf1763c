import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fake_speculator import FakeSpeculator, answer_token
from specblock.bench import BenchPrompt, run
from specblock.bench.environment import describe_environment
from specblock.bench.measure.divergence import classify, first_difference, near_tie_limit
from specblock.bench.measure.methods import resolve
from specblock.bench.report.intervals import bootstrap_median
from specblock.config import GenerationConfig
from specblock.errors import ConfigError, ContextError

CONFIG = GenerationConfig(max_new_tokens=20)


def prompt(id, *turns, lead=()):
    return BenchPrompt(id=id, task="t", lead=tuple(lead), turns=turns)


PROMPTS = [prompt(f"p{i}", f"text {i}") for i in range(6)]


def test_report_has_the_promised_shape():
    report = run(FakeSpeculator(), PROMPTS, config=CONFIG)
    assert set(report["methods"]) == {"plain", "specblock"}
    for row in report["methods"].values():
        promised = {"tokens_per_second", "accepted_length", "speedup", "draft_seconds"}
        assert promised | {"verify_seconds", "rounds", "new_tokens"} <= set(row)
        assert set(row["speedup"]) == {"median", "low", "high"}
    assert report["divergences"] == []
    assert report["environment"]["dtype"] == "float32"
    assert report["near_tie_thresholds"]["logits"] == 1e-3
    assert len(report["rows"]) == 12
    json.dumps(report, allow_nan=False)


def test_figures():
    report = run(FakeSpeculator(speedup=2.0, accepted_length=2.5), PROMPTS, config=CONFIG)
    plain, fast = report["methods"]["plain"], report["methods"]["specblock"]
    assert plain["speedup"] == pytest.approx({"median": 1.0, "low": 1.0, "high": 1.0})
    assert fast["speedup"]["median"] == pytest.approx(2.0)
    # the first token takes 0.1 s, each of the 19 others 10 ms against 5 ms
    assert fast["end_to_end_speedup"]["median"] == pytest.approx(0.29 / 0.195)
    assert plain["tokens_per_second"] == pytest.approx(20 / 0.29)
    assert plain["decode_tokens_per_second"] == pytest.approx(100)
    assert (fast["new_tokens"], fast["rounds"]) == (120, 48)
    assert fast["accepted_length"] == pytest.approx(2.5)
    assert fast["draft_seconds"] == pytest.approx(0.12)


def test_methods_are_interleaved_in_a_seeded_random_order():
    def order(seed):
        fake = FakeSpeculator()
        run(fake, PROMPTS * 3, config=CONFIG, seed=seed)
        return [use_drafter for _, config, use_drafter in fake.calls if config is CONFIG]

    drawn = order(1)
    pairs = list(zip(drawn[::2], drawn[1::2], strict=True))
    assert all(first != second for first, second in pairs)
    assert len(set(pairs)) == 2
    assert order(1) == drawn
    assert order(2) != drawn


def test_the_warm_up_is_discarded():
    fake = FakeSpeculator()
    report = run(fake, PROMPTS[:1], config=CONFIG)
    assert [call[1].max_new_tokens for call in fake.calls] == [16, 16, 20, 20]
    assert report["methods"]["plain"]["new_tokens"] == 20


def test_later_turns_continue_plains_answer():
    fake = FakeSpeculator(alter=lambda ids, finish: ([0] * len(ids), finish))
    lead = ({"role": "system", "content": "S"},)
    report = run(fake, [prompt("two", "first", "second", lead=lead)], config=CONFIG)
    plain_text = "".join(f"w{answer_token(3 + i)} " for i in range(20))
    assert fake.encoded[-1] == ["S", "first", plain_text, "second"]
    assert [row["turn"] for row in report["rows"]] == [0, 0, 1, 1]
    assert [item["id"] for item in report["divergences"]] == ["two", "two#2"]
    assert report["methods"]["specblock"]["speedup"]["median"] == pytest.approx(2.0)


def test_saved_after_every_prompt(tmp_path):
    out = tmp_path / "deep" / "report.json"
    seen = []

    def progress(done, of, report):
        saved = json.loads(out.read_text())
        seen.append((done, of, len(saved["rows"])))
        assert saved == json.loads(json.dumps(report))
        assert report["methods"]["specblock"]["speedup"]["low"] is None, "intervals come last"

    run(FakeSpeculator(), PROMPTS[:3], config=CONFIG, out=out, progress=progress)
    assert seen == [(1, 3, 2), (2, 3, 4), (3, 3, 6)]
    names = {path.name for path in out.parent.iterdir()}
    assert names == {"report.json", "report.json.journal.jsonl"}
    assert json.loads(out.read_text())["methods"]["specblock"]["speedup"]["low"] is not None


def test_a_prompt_that_is_too_long_is_skipped_and_said():
    fake = FakeSpeculator(error=ContextError("Too long."))
    report = run(fake, PROMPTS[:2], config=CONFIG)
    assert report["rows"] == []
    assert [item["id"] for item in report["skipped"]] == ["p0", "p1"]
    assert report["methods"]["plain"]["tokens_per_second"] is None
    json.dumps(report, allow_nan=False)


def test_methods_by_callable():
    fake = FakeSpeculator()
    methods = {
        "plain": lambda ids, config: fake.generate(ids, config, use_drafter=False),
        "other": lambda ids, config: fake.generate(ids, config),
    }
    assert set(run(fake, PROMPTS[:1], methods=methods, config=CONFIG)["methods"]) == set(methods)


def test_unknown_methods_and_missing_drafter():
    with pytest.raises(ConfigError, match="did you mean 'plain'"):
        resolve(["plan"])
    with pytest.raises(ConfigError, match="at least one method"):
        resolve([])
    with pytest.raises(ConfigError, match="at least one method"):
        run(FakeSpeculator(), PROMPTS, methods={})
    report = run(FakeSpeculator(drafter=None), PROMPTS[:1], config=CONFIG)
    assert list(report["methods"]) == ["plain"]


class Stopped(Exception):
    pass


def test_a_stopped_run_goes_on_where_it_was(tmp_path):
    def stop(done, of, report):
        if done == 2:
            raise Stopped

    out, whole = tmp_path / "report.json", FakeSpeculator()
    with pytest.raises(Stopped):
        run(FakeSpeculator(), PROMPTS[:4], config=CONFIG, out=out, progress=stop)
    journal = out.with_name("report.json.journal.jsonl")
    journal.write_text(journal.read_text() + '{"id": "p2", "ro')  # cut short by a crash
    rest, seen = FakeSpeculator(), []
    report = run(
        rest, PROMPTS[:4], config=CONFIG, out=out, resume=True,
        progress=lambda done, of, report: seen.append(done),
    )  # fmt: skip
    assert seen == [3, 4]
    assert rest.encoded == [["text 2"], ["text 2"], ["text 3"]]  # a warm-up, then what is left
    assert report["methods"] == run(whole, PROMPTS[:4], config=CONFIG)["methods"]
    again = run(FakeSpeculator(), PROMPTS[:4], config=CONFIG, out=out, resume=True)
    assert again["rows"] == report["rows"]


def test_another_run_is_not_gone_on_with(tmp_path):
    out = tmp_path / "report.json"
    run(FakeSpeculator(), PROMPTS[:2], config=CONFIG, out=out)
    with pytest.raises(ConfigError, match="another seed .0, now 5."):
        run(FakeSpeculator(), PROMPTS[:2], config=CONFIG, out=out, resume=True, seed=5)
    with pytest.raises(ConfigError, match="another prompts"):
        run(FakeSpeculator(), PROMPTS[:3], config=CONFIG, out=out, resume=True)
    fresh = tmp_path / "new.json"
    assert len(run(FakeSpeculator(), PROMPTS[:1], config=CONFIG, out=fresh, resume=True)["rows"])


def test_first_difference():
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert first_difference([1, 2, 3], [1, 2]) == 2
    assert first_difference([], [1]) == 0


def generation(ids, finish="length"):
    return SimpleNamespace(token_ids=ids, finish_reason=finish)


def plain_ids(count, prompt_length=2):
    return [answer_token(prompt_length + i) for i in range(count)]


@pytest.mark.parametrize(("gap", "kind"), [(5e-4, "near-tie"), (5e-2, "bug")])
def test_the_margin_tells_near_ties_from_bugs(gap, kind):
    fake = FakeSpeculator(gap=gap)
    plain = plain_ids(6)
    other = [*plain[:3], plain[3] + 1, 0, 0]
    found = classify(
        fake, [4, 5], generation(plain), generation(other), CONFIG, id="x", method="specblock"
    )
    assert (found.position, found.kind) == (3, kind)
    assert found.margin == pytest.approx(gap, rel=1e-2)
    assert fake.target.ids == [4, 5, *plain[:3]]
    assert set(found.to_dict()) == {"id", "method", "position", "kind", "margin"}


def test_an_early_stop_counts():
    fake = FakeSpeculator(gap=5.0)
    plain = plain_ids(6)
    found = classify(
        fake, [4, 5], generation(plain), generation(plain[:4], "stop"), CONFIG, id="x", method="m"
    )
    assert (found.position, found.kind) == (4, "bug")


def test_another_reason_to_finish_counts():
    plain = plain_ids(4)
    found = classify(
        FakeSpeculator(), [1], generation(plain), generation(plain, "stop"), CONFIG, id="x",
        method="m",
    )  # fmt: skip
    assert (found.position, found.kind, found.margin) == (4, "bug", None)
    same = generation(plain)
    assert classify(FakeSpeculator(), [1], same, same, CONFIG, id="x", method="m") is None


def test_sampled_margins_are_judged_like_greedy_ones():
    fake = FakeSpeculator(gap=0.0)  # two tokens of equal probability
    config = GenerationConfig(max_new_tokens=4, temperature=1.0, seed=3)
    found = classify(
        fake, [4, 5], generation([1, 2]), generation([1, 3]), config, id="x", method="m"
    )
    # the noise decides between them, and it is never that close
    assert (found.kind, found.position) == ("bug", 1)
    assert found.margin > 1e-3


def test_near_ties_widen_with_the_dtype():
    assert near_tie_limit(torch.float32) == near_tie_limit("unheard of") == 1e-3
    assert near_tie_limit("bfloat16") > near_tie_limit(torch.float16) > 1e-3


def test_bootstrap_interval():
    rng = np.random.default_rng(0)
    values = rng.normal(1.5, 0.1, 60).tolist()
    interval = bootstrap_median(values, seed=1)
    assert interval["low"] < interval["median"] < interval["high"]
    assert interval["median"] == pytest.approx(np.median(values))
    assert interval["high"] - interval["low"] < 0.1
    assert bootstrap_median(values, seed=1) == interval
    assert bootstrap_median([2.0]) == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert bootstrap_median([]) == {"median": None, "low": None, "high": None}


def test_environment_is_json():
    described = describe_environment()
    assert described["packages"]["torch"]
    assert described["cpu"]
    assert described["threads"] >= 1
    json.dumps(described, allow_nan=False)
