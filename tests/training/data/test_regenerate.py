"""Answers of several turns and shards, cut off anywhere and started again."""

import json

import pytest
import torch
from tests.tiny import make_target
from tests.training.data.test_chat_mask import chat_tokenizer

from specblock.errors import SpecBlockError
from specblock.target.chat.template import chat_tokens as render
from specblock.training.data.prompts import read_prompts
from specblock.training.data.regenerate import RegenerateConfig, regenerate
from specblock.training.data.shards import AnswerStore, shard_files
from specblock.training.data.turns import Progress

ENDS = frozenset([4])
SETTINGS = {"max_new_tokens": 6, "batch_size": 3, "shard_rows": 4}
SYSTEM = {"role": "system", "content": "be"}


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_target("qwen3", vocab_size=len(tokenizer), num_hidden_layers=2)


@pytest.fixture(scope="module")
def prompts(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = []
    for i in range(11):
        turns = [{"role": "user", "content": "w" * (1 + i % 4) + str(i)} for _ in range(1 + i % 3)]
        lead = [SYSTEM] if i % 4 == 0 else []
        rows.append({"id": f"p{i}", "messages": [*lead, *turns]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_prompts(path, tokenizer, limit=None, max_tokens=200)


def run(model, tokenizer, prompts, out, **options):
    max_seconds = options.pop("max_seconds", None)
    config = RegenerateConfig(**{**SETTINGS, **options})
    return regenerate(
        model, prompts, out, ENDS, config, max_seconds=max_seconds, tokenizer=tokenizer
    )


def rows_of(out):
    lines = [line for path in shard_files(out) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def by_turn(out):
    rows = rows_of(out)
    found = {(row["id"], row["turn"]): row for row in rows}
    assert len(found) == len(rows), "an answer was repeated"
    return found


@pytest.fixture(scope="module")
def whole(model, tokenizer, prompts, tmp_path_factory):
    """The answers of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "answers"
    assert run(model, tokenizer, prompts, out) == sum(1 + len(p.later) for p in prompts)
    return out


def test_a_later_turn_holds_the_targets_own_answers(whole, tokenizer, prompts):
    answers = by_turn(whole)
    assert set(answers) == {(p.id, n) for p in prompts for n in range(1 + len(p.later))}
    assert len({answer["temperature"] for answer in answers.values()}) > 1
    for prompt in prompts:
        messages = list(prompt.messages)
        for number in range(1 + len(prompt.later)):
            row = answers[prompt.id, number]
            assert row["prompt_ids"] == render(tokenizer, messages)
            stopped = row["answer_ids"][-1] in ENDS
            assert row["finish_reason"] == ("stop" if stopped else "length")
            if number < len(prompt.later):
                said = tokenizer.decode(row["answer_ids"], skip_special_tokens=True).strip()
                messages += [{"role": "assistant", "content": said}, *prompt.later[number]]
    assert prompts[0].messages[0] == SYSTEM
    assert [len(p.read_text().splitlines()) for p in shard_files(whole)] == [4, 4, 4, 4, 4, 1]


def test_one_file_or_many_shards_hold_the_same(whole, model, tokenizer, prompts, tmp_path):
    out = tmp_path / "answers.jsonl"
    run(model, tokenizer, prompts, out)
    assert out.is_file()
    assert rows_of(out) == rows_of(whole)


@pytest.mark.parametrize("seed", range(4))
def test_cut_anywhere_the_answers_are_the_same_in_the_end(
    seed, whole, model, tokenizer, prompts, tmp_path
):
    """A kill leaves a prefix of what would have been written, to the byte."""
    random = torch.Generator().manual_seed(seed)
    text = b"".join(path.read_bytes() for path in shard_files(whole))
    cut = int(torch.randint(1, len(text), (), generator=random))
    left, out = text[:cut].splitlines(keepends=True), tmp_path / "answers"
    out.mkdir()
    for number in range(0, len(left), SETTINGS["shard_rows"]):
        part = left[number : number + SETTINGS["shard_rows"]]
        (out / f"answers-{number // 4:05d}.jsonl").write_bytes(b"".join(part))
    kept = sum(line.endswith(b"\n") for line in left)
    while run(model, tokenizer, prompts, out, max_seconds=0):  # up to the next end
        pass
    assert by_turn(out) == by_turn(whole)
    assert rows_of(out)[:kept] == rows_of(whole)[:kept]
    assert run(model, tokenizer, prompts, out) == 0


def test_every_shard_may_end_in_the_middle_of_a_line(whole, model, tokenizer, prompts, tmp_path):
    out = tmp_path / "answers"
    out.mkdir()
    for path in shard_files(whole):
        (out / path.name).write_bytes(path.read_bytes()[:-20])
    assert run(model, tokenizer, prompts, out) == len(shard_files(whole))
    assert by_turn(out) == by_turn(whole)


def test_rows_without_a_turn_end_their_conversation(whole, model, tokenizer, prompts, tmp_path):
    out = tmp_path / "answers.jsonl"
    old = {key: value for key, value in rows_of(whole)[0].items() if key != "turn"}
    name = next(p.id for p in prompts if len(p.later) == 2)
    out.write_text(json.dumps({**old, "id": name}) + "\n")
    run(model, tokenizer, prompts, out)
    assert sum(row["id"] == name for row in rows_of(out)) == 1
    assert len(rows_of(out)) == len(rows_of(whole)) - 2


def test_a_conversation_ends_before_a_turn_that_is_too_long(model, tokenizer, prompts, tmp_path):
    out = tmp_path / "answers"
    run(model, tokenizer, prompts, out, max_prompt_tokens=60)
    rows = rows_of(out)
    assert {row["id"] for row in rows} == {prompt.id for prompt in prompts}
    assert 0 < sum(row["turn"] > 0 for row in rows) < sum(len(p.later) for p in prompts)
    assert all(len(row["prompt_ids"]) <= 60 for row in rows)
    assert run(model, tokenizer, prompts, out, max_prompt_tokens=60) == 0


def test_a_broken_answer_is_named_before_anything_is_drawn(whole, tmp_path):
    out = tmp_path / "answers.jsonl"
    lines = shard_files(whole)[0].read_text().splitlines(keepends=True)
    out.write_text(lines[0] + '{"id": "x"}\n' + lines[1])
    with pytest.raises(SpecBlockError, match="line 2 "), AnswerStore(out):
        pass
    with pytest.raises(SpecBlockError, match="line 2 "), AnswerStore(out):
        pass  # and not that the lock is still held


def test_two_runs_cannot_write_the_same_answers(tmp_path):
    with (
        AnswerStore(tmp_path / "a"),
        pytest.raises(SpecBlockError, match="Another run"),
        AnswerStore(tmp_path / "a"),
    ):
        pass
    with pytest.raises(SpecBlockError, match="appended"):
        AnswerStore(tmp_path / "a.jsonl.zst")


def test_a_full_disk_loses_nothing(whole, monkeypatch, tmp_path):
    """The write stops in the middle of a row; what stands before it is found again."""
    import errno
    import os

    rows, out, real = rows_of(whole)[:3], tmp_path / "answers.jsonl", os.write

    def full(handle, data):
        if os.fstat(handle).st_size:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data[: len(data) // 2])

    with AnswerStore(out) as store:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(SpecBlockError, match="disk is full"):
            store.append(rows)
        monkeypatch.undo()
    with AnswerStore(out) as store:
        assert store.finished == {(rows[0]["id"], 0)}
        store.append(rows[1:])
    assert rows_of(out) == rows


def test_progress_says_what_is_left():
    progress = Progress(of=10, answers=4, tokens=200, seconds=8.0)
    assert (progress.tokens_per_second, progress.seconds_left) == (25.0, 12.0)
    assert Progress(of=10).seconds_left == 0.0
