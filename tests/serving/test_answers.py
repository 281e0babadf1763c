"""What is served is what the engine writes: texts, figures, log-probabilities."""

import pytest
import torch

from tests.serving.conftest import asked, events

QUESTION = [{"role": "user", "content": "Name three colours and say why you like them."}]


def chat(server, **more):
    found = server.post("/v1/chat/completions", {"messages": QUESTION, "max_tokens": 40, **more})
    assert found.status_code == 200, found.text
    return found.json()


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0},
        {"temperature": 0.9, "seed": 7},
        {"temperature": 1.3, "top_p": 0.8, "top_k": 40, "min_p": 0.02, "seed": 3},
        {"temperature": 0, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
        {"temperature": 0, "stop": ["colours", ","]},
    ],
)
def test_the_text_is_the_speculators(embedded, settings):
    given = dict(settings)
    given["stop_strings"] = tuple(given.pop("stop", ()))
    expected = embedded.speculator.generate(QUESTION, max_new_tokens=40, **given)
    found = chat(embedded, **settings)
    assert found["choices"][0]["message"]["content"] == expected.text
    assert found["choices"][0]["finish_reason"] == expected.finish_reason
    assert found["usage"]["completion_tokens"] == len(expected.token_ids)
    stream = embedded.post(
        "/v1/chat/completions",
        {"messages": QUESTION, "max_tokens": 40, "stream": True, **settings},
    )
    parts = [own["choices"][0] for own in events(stream.text)]
    assert "".join(part["delta"]["content"] for part in parts) == expected.text
    assert [part["finish_reason"] for part in parts[:-1]] == [None] * (len(parts) - 1)
    assert parts[-1]["finish_reason"] == expected.finish_reason
    assert [part["delta"].get("role") for part in parts[:2]] == ["assistant", None]


def test_openais_defaults_sample_and_a_seed_is_drawn(embedded):
    texts = {chat(embedded)["choices"][0]["message"]["content"] for _ in range(3)}
    assert len(texts) > 1


def test_several_choices_are_several_seeds(embedded):
    found = chat(embedded, n=3, seed=11, max_tokens=16)
    expected = [
        embedded.speculator.generate(QUESTION, max_new_tokens=16, temperature=1.0, seed=seed)
        for seed in (11, 12, 13)
    ]
    assert [own["index"] for own in found["choices"]] == [0, 1, 2]
    texts = [own["message"]["content"] for own in found["choices"]]
    assert texts == [own.text for own in expected]
    assert found["usage"]["completion_tokens"] == sum(len(own.token_ids) for own in expected)
    assert found["usage"]["prompt_tokens"] == expected[0].prompt_tokens
    assert found["metrics"]["speculative_decoding"] is None
    stream = embedded.post(
        "/v1/chat/completions",
        {"messages": QUESTION, "max_tokens": 16, "n": 3, "seed": 11, "stream": True},
    )
    streamed = ["", "", ""]
    for own in events(stream.text):
        streamed[own["choices"][0]["index"]] += own["choices"][0]["delta"]["content"]
    assert streamed == texts


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0},
        {"temperature": 0, "repetition_penalty": 1.5, "presence_penalty": 1.0},
        {"temperature": 1.0, "seed": 4, "top_k": 5, "logit_bias": {"260": 5}},
    ],
)
def test_logprobs_are_the_targets_own(embedded, settings):
    found = chat(embedded, logprobs=True, top_logprobs=3, **settings)
    content = found["choices"][0]["logprobs"]["content"]
    assert len(content) == found["usage"]["completion_tokens"]
    speculator = embedded.speculator
    prompt = speculator.encode(QUESTION)
    names = [bytes(own["bytes"]) for own in content]
    # the tokens, read back from their bytes
    bias = {int(token): value for token, value in settings.get("logit_bias", {}).items()}
    given = {name: value for name, value in settings.items() if name != "logit_bias"}
    ids = speculator.generate(
        prompt, max_new_tokens=40, logits_processor=[Biased(bias)] if bias else [], **given
    ).token_ids
    assert len(ids) == len(content)
    with torch.inference_mode():
        logits = speculator.target.model(torch.tensor([prompt + ids])).logits[0]
    rows = torch.log_softmax(logits[len(prompt) - 1 : -1].float(), dim=-1)
    for row, token, own in zip(rows, ids, content, strict=True):
        assert own["logprob"] == pytest.approx(float(row[token]), abs=2e-3)
        best = row.topk(3).values.tolist()
        assert [top["logprob"] for top in own["top_logprobs"]] == pytest.approx(best, abs=2e-3)
    text = b"".join(names).decode("utf-8", "replace").removesuffix("<|im_end|>")
    assert text == found["choices"][0]["message"]["content"]


class Biased:
    def __init__(self, bias):
        self.bias = bias

    def __call__(self, ids, scores):
        for token, value in self.bias.items():
            scores[:, token] += value
        return scores


def test_logprobs_come_with_their_pieces_and_end_with_the_answer(embedded):
    """Tokens that a round accepts beyond the end of the answer are not told of."""
    more = {"temperature": 0, "logprobs": True, "stop": ["you"]}
    whole = chat(embedded, **more)
    stream = embedded.post(
        "/v1/chat/completions", {"messages": QUESTION, "max_tokens": 40, "stream": True, **more}
    )
    chunks = events(stream.text)
    streamed = [one for own in chunks for one in own["choices"][0]["logprobs"]["content"]]
    expected = whole["choices"][0]["logprobs"]["content"]
    assert [own["token"] for own in streamed] == [own["token"] for own in expected]
    for own, other in zip(streamed, expected, strict=True):
        assert own["logprob"] == pytest.approx(other["logprob"], abs=2e-3)
    assert len(streamed) == whole["usage"]["completion_tokens"]


def test_completions_tell_logprobs_in_their_form(embedded):
    found = embedded.complete("The sky is", max_tokens=8, logprobs=2)
    told = found["choices"][0]["logprobs"]
    assert {len(values) for values in told.values()} == {8}
    assert "".join(told["tokens"]) == found["choices"][0]["text"]
    assert told["text_offset"][1] == len(told["tokens"][0])
    assert told["top_logprobs"][0][told["tokens"][0]] == told["token_logprobs"][0]


def test_usage_counts_what_was_known_already(embedded):
    first = "You are terse. " * 20
    messages = [{"role": "system", "content": first}, *QUESTION]
    more = {"messages": messages, "max_tokens": 5, "temperature": 0}
    texts = [embedded.post("/v1/chat/completions", more).json() for _ in range(2)]
    prompt = len(embedded.speculator.encode(messages))
    for found in texts:
        assert found["usage"]["prompt_tokens"] == prompt
        assert found["usage"]["total_tokens"] == prompt + 5
    cached = [found["usage"]["prompt_tokens_details"]["cached_tokens"] for found in texts]
    assert cached[1] == prompt - 1 > cached[0]
    assert texts[1]["timings"]["prompt_n"] == 1
    assert texts[1]["timings"]["cache_n"] == prompt - 1


def test_prompts_as_texts_ids_and_lists(embedded):
    ids = embedded.speculator.tokenizer("The sky is")["input_ids"]
    texts = [
        [own["text"] for own in embedded.complete(prompt, max_tokens=6)["choices"]]
        for prompt in ("The sky is", ids, ["The sky is"], [ids, ids])
    ]
    assert texts[0] == texts[1] == texts[2]
    assert texts[3] == texts[0] * 2
    found = embedded.complete(["The sky is", "Once upon"], max_tokens=6)
    assert found["usage"]["prompt_tokens"] == len(ids) + 2
    assert [own["index"] for own in found["choices"]] == [0, 1]


def test_rounds_are_told_of_the_answer_alone(embedded):
    more = {"stream": True, "stream_options": {"include_rounds": True, "include_usage": True}}
    found = embedded.post(
        "/v1/chat/completions",
        {"messages": QUESTION, "max_tokens": 40, "temperature": 0, **more},
    )
    *chunks, last = events(found.text)
    text = "".join(own["choices"][0]["delta"]["content"] for own in chunks)
    assert "round" not in chunks[0]
    rounds = [own["round"] for own in chunks if "round" in own]
    assert [own["number"] for own in rounds] == list(range(1, len(rounds) + 1))
    spelled = rounds[0]["nodes"][0]["text"]
    for own in rounds:
        nodes = own["nodes"]
        assert nodes[0]["parent"] == -1
        assert nodes[0]["accepted"]
        assert all(0 <= node["parent"] < place for place, node in enumerate(nodes) if place)
        path = [node for node in nodes if node["accepted"]]
        assert own["accepted"] == len(path) - 1
        assert all(nodes[node["parent"]]["accepted"] for node in path[1:])
        assert {node["source"] for node in nodes} <= {"network", "text", "memory"}
        spelled += "".join(node["text"] for node in path[1:]) + own["bonus"]
    assert spelled.removesuffix("<|im_end|>") == text
    assert sum(len(own["nodes"]) - 1 for own in rounds) == last["timings"]["draft_n"]
    assert sum(own["accepted"] for own in rounds) == last["timings"]["draft_n_accepted"]
    assert last["choices"] == []


def test_a_round_without_a_drafter_is_its_root(started):
    from tests.engine.test_engine import make

    server = started(make(kind="plain"))
    more = {"stream": True, "stream_options": {"include_rounds": True}, "ignore_eos": True}
    chunks = events(server.post("/v1/chat/completions", asked(**more)).text)
    rounds = [own["round"] for own in chunks if "round" in own]
    assert len(rounds) == 11
    assert all(len(own["nodes"]) == 1 for own in rounds)
    assert server.get("/status").json()["drafter"] is None


def test_figures_of_an_answer_agree(tiny):
    found = tiny.chat(temperature=0, ignore_eos=True)
    told, timings = found["metrics"]["speculative_decoding"], found["timings"]
    assert sum(told["acceptance_histogram"]) == told["num_spec_steps"]
    accepted = sum(n * count for n, count in enumerate(told["acceptance_histogram"]))
    assert accepted == told["num_accepted_draft_tokens"] == timings["draft_n_accepted"]
    assert told["num_draft_tokens"] == timings["draft_n"] > 0
    assert timings["predicted_n"] == 12
    assert timings["prompt_per_second"] > 0 < timings["predicted_per_second"]
