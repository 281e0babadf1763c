"""Figures for programs and people are those of the engine."""

import math
from collections import Counter

from prometheus_client.parser import text_string_to_metric_families

from tests.serving.conftest import asked


def metrics(server):
    """Name and labels -> value."""
    text = server.get("/metrics").text
    return {
        (own.name.removeprefix("specblock:"), *own.labels.values()): own.value
        for family in text_string_to_metric_families(text)
        for own in family.samples
    }


def test_metrics_are_sums_of_the_answers_figures(started, monkeypatch):
    server, seen = started(), []
    request = server.speculator.request
    monkeypatch.setattr(
        server.speculator, "request", lambda *given: seen.append(request(*given)) or seen[-1]
    )
    for number in range(3):
        server.chat(f"w{number + 5}", n=number + 1, seed=number, temperature=0.7)
    server.chat(ignore_eos=True, temperature=0)
    assert len(seen) == 7
    found, stats = metrics(server), [own.stats for own in seen]
    for name, field in (
        ("prompt_tokens_total", "prompt_tokens"),
        ("generation_tokens_total", "new_tokens"),
        ("spec_decode_num_drafts_total", "speculative_rounds"),
        ("spec_decode_num_draft_tokens_total", "drafted_nodes"),
    ):
        assert found[name,] == sum(getattr(own, field) for own in stats) > 0
    depths = Counter()
    for own in stats:
        depths.update(dict(enumerate(own.accepted_by_depth)))
    for depth, count in depths.items():
        assert found["spec_decode_num_accepted_tokens_per_pos_total", str(depth)] == count
    assert found["spec_decode_num_accepted_tokens_total",] == depths.total()
    reasons = {own[1]: value for own, value in found.items() if own[0] == "request_success_total"}
    assert sum(reasons.values()) == 7
    assert reasons["length"] >= 1
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time"):
        assert found[f"{name}_seconds_count",] == 7
        assert found[f"{name}_seconds_sum",] >= 0
    later = sum(own.new_tokens for own in stats) - 7
    assert math.isclose(found["inter_token_latency_seconds_count",], later)
    assert found["num_requests_running",] == found["num_requests_waiting",] == 0


def test_two_servers_count_apart(started):
    first, second = started(), started()
    first.chat()
    assert metrics(second)["prompt_tokens_total",] == 0 < metrics(first)["prompt_tokens_total",]


def test_status(started):
    server = started()
    empty = server.get("/status").json()
    assert empty["tokens_per_second"] is empty["accepted_length"] is None
    for _ in range(2):
        server.chat(temperature=0, ignore_eos=True)
    found = server.get("/status").json()
    assert set(found) == {
        "model", "drafter", "running", "waiting", "max_running", "tokens_per_second",
        "plain_tokens_per_second", "accepted_length", "generated_tokens", "cached_tokens",
        "requests", "uptime_seconds", "adaptation",
    }  # fmt: skip
    assert found["model"] == "tiny"
    assert found["drafter"] == "specblock"
    assert found["generated_tokens"] == 24
    assert found["requests"] == 2
    assert found["tokens_per_second"] > 0
    assert found["accepted_length"] >= 1
    assert found["plain_tokens_per_second"] is None
    assert found["adaptation"] is None
    assert (found["running"], found["waiting"], found["max_running"]) == (0, 0, 16)


def test_status_of_an_adaptation(started, tmp_path):
    from tests.adaptation.world import config, make_speculator

    learning = make_speculator(config(folder=tmp_path, policy="always-heads"))
    server = started(learning)
    for number in range(8):
        server.complete([number + 5] * 6, max_tokens=12, ignore_eos=True)
    told = server.get("/status").json()["adaptation"]
    status = learning.adaptation.status()
    assert told["memory_tokens"] == status["memory_tokens"] > 0
    assert sum(told["decisions"].values()) == status["attempts"] + status["skips"] > 0
    assert told["update_seconds"] == status["update_seconds"] > 0
    assert set(told) == {
        "updates", "rolled_back", "memory_tokens", "gain", "decisions", "update_seconds"
    }  # fmt: skip


def test_rounds_do_not_tell_what_others_were_answered():
    import torch

    from specblock.serving.decoding.pieces import Draw, round_of
    from specblock.tree.draft_tree import DraftTree
    from specblock.tree.source import Source
    from tests.engine.test_speculator import make_tokenizer

    zeros = torch.zeros(4, dtype=torch.float32)
    sources = [Source.NETWORK, Source.REMEMBERED, Source.REMEMBERED_ALONE, Source.COPIED]
    tree = DraftTree(
        torch.tensor([5, 6, 7, 8]), torch.tensor([-1, 0, 1, 1]), torch.tensor([0, 1, 2, 2]),
        zeros, zeros, torch.zeros(4, dtype=torch.int64), torch.tensor(sources),
    )  # fmt: skip
    told = round_of(Draw(tree, [0, 1], [6, 9]), 1, 2, make_tokenizer())
    assert [own["text"] for own in told["nodes"]] == ["w5", "w6", "", "w8"]
    assert [own["source"] for own in told["nodes"]] == ["network", "memory", "memory", "text"]
    assert told["accepted"] == 1
    assert told["bonus"] == "w9"


def test_a_client_is_asked_nothing(tiny):
    assert "set-cookie" not in tiny.post("/v1/chat/completions", asked()).headers
