"""Answers that are JSON of a schema, and schemas that no answer can follow."""

import json

import pytest
import torch

from specblock.serving.api.errors import ApiError
from specblock.serving.decoding.schemas import endless
from tests.serving.conftest import asked
from tests.serving.test_answers import chat

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 10, "maximum": 99},
        "likes": {"type": "array", "items": {"enum": ["tea", "trees"]}, "maxItems": 2},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 1.2, "seed": 5}])
def test_a_json_schema_is_kept(embedded, settings):
    shape = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    found = chat(embedded, response_format=shape, max_tokens=200, **settings)
    assert found["choices"][0]["finish_reason"] == "stop"
    person = json.loads(found["choices"][0]["message"]["content"])
    assert set(person) == {"name", "age", "likes"}
    assert 10 <= person["age"] <= 99


def test_a_json_object_is_one(embedded):
    more = {"temperature": 0, "max_tokens": 100, "response_format": {"type": "json_object"}}
    found = chat(embedded, **more)
    text = found["choices"][0]["message"]["content"]
    assert text.startswith("{")
    if found["choices"][0]["finish_reason"] == "stop":
        assert isinstance(json.loads(text), dict)
    plain = chat(embedded, response_format={"type": "text"}, temperature=0)
    assert not plain["choices"][0]["message"]["content"].startswith("{")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nothing"},
        {"type": "object", "properties": 5},
        {"$ref": "https://example.org/elsewhere.json"},
        {"type": "string", "pattern": "("},
        {"not": {"type": "string"}},
        {"$ref": "#"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {
            "type": "array",
            "items": {"$ref": "#/$defs/a~1b"},
            "minItems": 1,
            "$defs": {"a/b": {"allOf": [{"$ref": "#"}]}},
        },
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(tiny, schema):
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    error = tiny.refused("/v1/chat/completions", asked(response_format=shape))
    assert error["param"] == "response_format"
    assert "\n" not in error["message"]


def test_schemas_that_repeat_themselves_and_can_end_are_no_endless_ones():
    ref = {"$ref": "#"}
    for schema in (
        {"type": "object", "properties": {"a": ref}},
        {"type": "array", "items": ref},
        {"type": "object", "properties": {"a": {"anyOf": [ref, {"type": "null"}]}},
         "required": ["a"]},
        {"properties": {"a": ref}, "required": ["a"]},  # a number, for one
        {"type": "array", "prefixItems": [{}], "items": ref, "minItems": 1},
    ):  # fmt: skip
        assert not endless(schema)
    chain = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(5000)}
    assert not endless({"$ref": "#/$defs/d0", "$defs": chain})
    assert endless({"$ref": "#/$defs/d0", "$defs": {**chain, "d5000": ref}})


def test_a_dead_end_of_a_schema_is_an_error_and_no_end(embedded):
    grammars = embedded.service._preparation.grammars
    grammar = grammars.of_schema({"type": "object"})
    scores = torch.zeros(1, embedded.speculator.target.vocab_size)
    grammar(torch.tensor([[5]]), scores)
    wrong = embedded.speculator.tokenizer("x")["input_ids"]
    with pytest.raises(ApiError, match="leads to no JSON") as found:
        grammar(torch.tensor([[5, *wrong]]), scores)
    assert found.value.param == "response_format"
