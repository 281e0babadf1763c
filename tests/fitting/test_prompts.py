"""The prompts that a model writes: its own user's turns, each once, whole or not at all."""

import json

import pytest
from tests.engine.test_speculator import make_tokenizer
from tests.fitting.test_fit import base_model, chat_model
from tests.training.data.test_chat_mask import chat_tokenizer

from specblock.errors import ModelError
from specblock.fitting import prompts
from specblock.fitting.prompts import SEEDS, PromptWriter, _around_user, asked_of

OPENING = "<|im_start|>user\n"


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(prompts, "TURN_TOKENS", 12)
    monkeypatch.setattr(prompts, "TEXT_TOKENS", 6)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_chat_model_goes_on_from_the_opening_of_a_users_turn(tmp_path):
    model, tokenizer = chat_model()
    writer = PromptWriter(model, tokenizer, tmp_path / "prompts.jsonl", 0, 16)
    (start,) = writer._starts
    assert tokenizer.decode(start).endswith(OPENING)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in writer._ends
    count = writer.write()
    found = rows(tmp_path / "prompts.jsonl")
    assert len(found) == count > 2
    asked = asked_of(tmp_path / "prompts.jsonl", tokenizer, 64, len(tokenizer))
    for row, prompt in zip(found, asked, strict=True):
        assert prompt.messages == [{"role": "user", "content": row["prompt"]}]
        assert tokenizer.decode(prompt.ids).endswith("<|im_start|>assistant\n")


def test_a_base_model_goes_on_from_words(tmp_path):
    model, tokenizer = base_model()
    writer = PromptWriter(model, tokenizer, tmp_path / "prompts.jsonl", 0, 24)
    assert writer._starts == [tokenizer(word)["input_ids"] for word in SEEDS]
    assert writer.write() > 4
    asked = asked_of(tmp_path / "prompts.jsonl", tokenizer, 64, 97)
    for row, prompt in zip(rows(tmp_path / "prompts.jsonl"), asked, strict=True):
        assert prompt.ids == tokenizer(row["prompt"])["input_ids"]


def test_what_is_written_follows_from_the_seed_and_goes_on_where_it_stopped(tmp_path):
    model, tokenizer = chat_model()

    def written(name, batches, seed=0):
        for batch in batches:  # each by a program of its own
            PromptWriter(model, tokenizer, tmp_path / name, seed, batch).write()
        return [row["prompt"] for row in rows(tmp_path / name)]

    once = written("once", [8, 8])
    assert written("again", [8, 8]) == once
    assert len(set(once)) == len(once)
    assert written("other", [8, 8], seed=1) != once
    path = tmp_path / "again"
    path.write_text(path.read_text() + '{"id": "own-0000')  # what a kill leaves
    PromptWriter(model, tokenizer, path, 0, 8)
    assert [row["prompt"] for row in rows(path)] == once


def test_equal_turns_are_written_once(tmp_path, monkeypatch):
    model, tokenizer = chat_model()
    writer = PromptWriter(model, tokenizer, tmp_path / "prompts.jsonl", 0, 8)
    said = iter(["Why?  Because", "why? because", "Ｗhy? because", None, "What", "What\n", "So so"])
    monkeypatch.setattr(writer, "_text", lambda start, drawn: next(said, None))
    assert writer.write() == 3
    assert [row["prompt"] for row in rows(writer.path)] == ["Why?  Because", "What", "So so"]


def test_a_turn_that_does_not_end_is_no_prompt(tmp_path):
    model, tokenizer = chat_model()
    writer = PromptWriter(model, tokenizer, tmp_path / "prompts.jsonl", 0, 8)
    ids = tokenizer("How are you", add_special_tokens=False)["input_ids"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert writer._text([], ids) is None
    assert writer._text([], [*ids, end]) == "How are you"
    assert writer._text([], [*ids[:3], end]) is None, "three letters are none"


def test_a_template_without_a_special_end_of_turn():
    before, behind = _around_user(chat_tokenizer("[INST] {{ messages[0]['content'] }} [/INST]"))
    assert (before, behind) == ("[INST] ", " [/INST]")
    with pytest.raises(ModelError, match="--prompts"):
        _around_user(chat_tokenizer("{{ messages[0]['content'][::-1] }}"))


def test_its_words_end_where_the_template_goes_on(tmp_path):
    tokenizer = chat_tokenizer("[INST] {{ messages[0]['content'] }} [/INST]")
    model = chat_model()[0]
    writer = PromptWriter(model, tokenizer, tmp_path / "prompts.jsonl", 0, 8)
    ids = tokenizer("Name a river. [/INST] The Elbe", add_special_tokens=False)["input_ids"]
    assert writer._text([], ids) == "Name a river."


def test_a_base_models_file_is_asked_as_it_stands(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    path = tmp_path / "texts.jsonl"
    path.write_text('{"prompt": "w5 w6"}\n{"id": "b", "prompt": "w7 w8 w9"}\n')
    found = asked_of(path, tokenizer, 2, 97)
    assert [(prompt.id, prompt.ids) for prompt in found] == [("line-1", [5, 6])]
