"""Fields: what is taken, what is refused by name, and how an error looks."""

import json

import pytest

from tests.serving.conftest import asked, events

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
UNSUPPORTED = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
    "functions": [{"name": "f"}],
    "audio": {"voice": "x"},
    "modalities": ["text", "audio"],
    "prediction": {"type": "content", "content": "x"},
    "reasoning_effort": "low",
    "web_search_options": {},
    "store": True,
    "service_tier": "flex",
    "logits_processors": ["os.system"],
    "best_of": 3,
    "echo": True,
    "suffix": "x",
    "beam_width": 4,
}
WRONG = {
    "model": 5,
    "n": 0,
    "temperature": 2.5,
    "top_p": "0.5",
    "top_k": -2,
    "min_p": 1.5,
    "frequency_penalty": 3,
    "presence_penalty": [],
    "repetition_penalty": 0,
    "seed": 1.5,
    "stop": ["a"] * 17,
    "max_tokens": 0,
    "logit_bias": {"5": 101},
    "stream": "yes",
    "messages": [],
    "response_format": {"type": "xml"},
    "top_logprobs": 21,
    "ignore_eos": 1,
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_name(tiny, name):
    error = tiny.refused(CHAT, asked(**{name: UNSUPPORTED[name]}))
    assert error["param"] == name
    assert name in error["message"]
    assert error["code"] == "unsupported_parameter"
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_refused_by_name(tiny, name):
    error = tiny.refused(CHAT, {**asked(logprobs=True), name: WRONG[name]})
    assert error["param"].split(".")[0] == name
    assert name in error["message"]


def test_what_asks_for_nothing_is_taken(tiny):
    nothing = dict.fromkeys([*UNSUPPORTED, "stop", "seed", "stream_options", "logit_bias", "n"])
    tiny.chat(**nothing, unheard_of=None)
    tiny.chat(
        user="me", metadata={"a": "b"}, store=False, parallel_tool_calls=True, tools=[],
        tool_choice="none", modalities=["text"], service_tier="auto", safety_identifier="x",
        prompt_cache_key="y", stream=False, logprobs=False,
    )  # fmt: skip
    messages = [
        {"role": "developer", "content": "w5"},
        {"role": "user", "content": [{"type": "text", "text": "w6"}]},
        {"role": "assistant", "content": "w7", "refusal": None, "tool_calls": None,
         "annotations": [], "audio": None, "function_call": None},
        {"role": "user", "content": "w8"},
    ]  # fmt: skip
    tiny.chat(messages=messages)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "x", "tool_call_id": "1"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "user", "content": []},
        {"role": "user", "content": "x", "name": "me"},
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]},
        {"content": "x"},
        "x",
        None,
        {},
    ],
)
def test_messages_of_other_kinds_are_refused(tiny, message):
    error = tiny.refused(CHAT, {"messages": [message]})
    assert error["param"].startswith("messages.0")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"5", b'"x"', b"null", b"\xff\xfe", b"{\"a\": NaN}", b'{"a": "\\ud800"}',
        b"[" * 100_000, b'{"a":' * 100_000, b'{"messages": ' + b"9" * 50_000 + b"}",
    ],
)  # fmt: skip
def test_what_is_no_json_object_is_refused(tiny, body):
    header = {"Content-Type": "application/json"}
    found = tiny.run(lambda client: client.post(CHAT, content=body, headers=header))
    assert found.status_code == 400
    assert found.json()["error"]["type"] == "invalid_request_error"


def test_a_name_that_is_half_a_character_is_refused(tiny):
    for body in (b'{"\\ud83d": 1}', b'{"model": "\\udc00"}', '{"ü€😀": 1}'.encode()):
        header = {"Content-Type": "application/json"}
        found = tiny.run(lambda c, b=body, h=header: c.post(CHAT, content=b, headers=h))
        assert found.status_code == 400


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "text", "json_schema": {"schema": {}}}}, "response_format"),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
        ({"logit_bias": {"97": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1_0": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"max_tokens": 4000}, "max_tokens"),
        ({"n": 9}, "n"),
        ({"stream": True, "stream_options": {"include_more": True}}, "stream_options.include_more"),
    ],
)
def test_what_does_not_go_together_or_is_too_much_is_refused(tiny, more, param):
    assert tiny.refused(CHAT, asked(**more))["param"] == param


def test_another_model_is_not_found(tiny):
    assert tiny.refused(CHAT, asked(model="gpt-7"), 404)["code"] == "model_not_found"
    assert tiny.get("/v1/models/gpt-7").status_code == 404
    listed = tiny.get("/v1/models").json()["data"]
    assert [own["id"] for own in listed] == ["tiny"]
    assert tiny.get("/v1/models/tiny").json() == listed[0]
    tiny.chat(model="tiny")


@pytest.mark.parametrize(
    "prompt", ["", "  ", [], [[]], [500], [-1], [1.5], [True], ["x", 5], {"a": 1}, 5, [[5], []]]
)
def test_a_prompt_that_is_none_is_refused(tiny, prompt):
    assert "message" in tiny.refused(COMPLETIONS, {"prompt": prompt})


def test_long_prompts_are_refused_with_the_numbers(started):
    server = started(max_prompt_tokens=20, max_output_tokens=10)
    error = server.refused(COMPLETIONS, {"prompt": [5] * 21})
    assert error["code"] == "context_length_exceeded"
    assert "21 tokens" in error["message"]
    assert (
        server.complete([5] * 20, ignore_eos=True, max_tokens=None)["usage"]["completion_tokens"]
        == 10
    )
    server = started()
    assert server.refused(COMPLETIONS, {"prompt": [5] * 256})["code"] == "context_length_exceeded"
    found = server.complete([5] * 250, ignore_eos=True)
    assert found["choices"][0]["finish_reason"] == "length"


def test_a_text_that_must_be_too_long_is_not_split_into_tokens(started, monkeypatch):
    server = started(max_prompt_tokens=20)

    def never(*_, **__):
        raise AssertionError("split")

    monkeypatch.setattr(server.speculator, "encode", never)
    for path, values in (
        (CHAT, asked("a" * 4_000)),
        (COMPLETIONS, {"prompt": ["w5", "a" * 4_000]}),
    ):
        error = server.refused(path, values)
        assert error["code"] == "context_length_exceeded"
        assert "4000 characters" in error["message"]
    assert server.refused(COMPLETIONS, {"prompt": ["w5"] * 9})["param"] == "n"


def test_of_a_value_that_may_be_of_several_kinds_the_likeliest_is_spoken_of(tiny):
    assert "16 items" in tiny.refused(CHAT, asked(stop=["a"] * 17))["message"]
    assert "1 item" in tiny.refused(COMPLETIONS, {"prompt": []})["message"]
    content = [{"type": "image_url", "image_url": {"url": "x"}}]
    error = tiny.refused(CHAT, {"messages": [{"role": "user", "content": content}]})
    assert error["param"] == "messages.0.content.0.type"
    assert "'text'" in error["message"]


def test_a_template_that_refuses_is_the_callers_affair(started):
    server = started()
    server.speculator.tokenizer.chat_template = "{{ raise_exception('no system') }}"
    assert "no system" in server.refused(CHAT, asked())["message"]


def test_logit_bias_decides(tiny):
    assert set(tiny.chat(logit_bias={"9": 100})["choices"][0]["message"]["content"].split()) == {
        "w9"
    }


def test_unknown_addresses_and_methods_are_error_objects(tiny):
    for path, status in (("/v1/nothing", 404), ("/v1/chat/completions", 405)):
        found = tiny.get(path)
        assert found.status_code == status
        assert set(found.json()["error"]) == {"message", "type", "param", "code"}


def test_streams_are_the_same_pieces(tiny):
    whole = tiny.chat(temperature=0, ignore_eos=True)
    more = {"stream": True, "stream_options": {"include_usage": True}}
    text = tiny.post(CHAT, asked(temperature=0, ignore_eos=True, **more)).text
    *chunks, last = events(text)
    assert (
        "".join(own["choices"][0]["delta"]["content"] for own in chunks)
        == (whole["choices"][0]["message"]["content"])
    )
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert len({own["id"] for own in [*chunks, last]}) == 1
    json.dumps(chunks, allow_nan=False)
