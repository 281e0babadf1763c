"""Whatever is asked, the answer is an answer or says what is wrong with the request."""

import json
import string

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specblock.serving.api.requests import ChatRequest, CompletionRequest
from tests.serving.test_api import UNSUPPORTED, WRONG

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["w5 w6", "", "json_object", "user", "\x00", "�", "w2"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(string.ascii_lowercase, max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
NAMES = [*ChatRequest.model_fields, *CompletionRequest.model_fields, *UNSUPPORTED, *WRONG]
SENSIBLE = {
    "n": st.integers(-1, 4), "temperature": st.floats(-0.1, 2.1), "top_p": st.floats(0, 1),
    "top_k": st.integers(-2, 100), "min_p": st.floats(0, 1), "seed": st.integers(-(2**64), 2**64),
    "frequency_penalty": st.floats(-2, 2), "presence_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0, 11), "max_tokens": st.integers(-1, 6),
    "stop": st.lists(st.text(max_size=3), max_size=3) | st.text(max_size=3),
    "logit_bias": st.dictionaries(st.integers(-2, 99).map(str), st.floats(-100, 100), max_size=4),
    "stream": st.booleans(), "top_logprobs": st.integers(0, 20), "ignore_eos": st.booleans(),
    "stream_options": st.fixed_dictionaries(
        {}, optional={"include_usage": st.booleans(), "include_rounds": st.booleans()}
    ),
    "response_format": st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "json_object", "json_schema"])},
        optional={"json_schema": st.fixed_dictionaries({"name": st.text(), "schema": JSON})},
    ),
}  # fmt: skip
FIELDS = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3)
GOOD = st.fixed_dictionaries({}, optional=SENSIBLE)
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
        "content": st.text(max_size=5) | JSON,
    },
    optional={"name": JSON, "tool_calls": JSON, "refusal": JSON},
)
BOUNDED = settings(
    max_examples=150, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


def check(found, stream):
    assert found.status_code < 500, found.text
    if found.status_code != 200:
        assert set(found.json()["error"]) == {"message", "type", "param", "code"}
    elif stream:
        assert found.text.endswith("\n\n")
    else:
        assert found.json()["choices"]


@BOUNDED
@given(values=st.one_of(GOOD, FIELDS, st.tuples(GOOD, FIELDS).map(lambda two: two[0] | two[1])))
def test_chat(tiny, values):
    values = {"messages": [{"role": "user", "content": "w5"}], "max_tokens": 3, **values}
    check(tiny.post("/v1/chat/completions", values), values.get("stream"))


@BOUNDED
@given(prompt=JSON | st.lists(st.integers(-1, 99), max_size=5), values=st.one_of(GOOD, FIELDS))
def test_completions(tiny, prompt, values):
    values = {"max_tokens": 3, "prompt": prompt, **values}
    check(tiny.post("/v1/completions", values), values.get("stream"))


@BOUNDED
@given(
    body=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()),
    path=st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/models", "/nothing"]),
)
def test_any_bytes(tiny, body, path):
    header = {"Content-Type": "application/json"}
    found = tiny.run(lambda client: client.post(path, content=body, headers=header))
    assert 400 <= found.status_code < 500


@BOUNDED
@given(messages=JSON | st.lists(MESSAGE, max_size=4))
def test_messages(tiny, messages):
    check(tiny.post("/v1/chat/completions", {"messages": messages, "max_tokens": 2}), False)
