"""Answers read back from files, old and new, and kept apart."""

import json

import pytest
import torch
from tests.engine.test_speculator import make_tokenizer

from specblock.errors import SpecBlockError
from specblock.training.data.answers import Answer, draft_vocabulary, read_answers, split_held_out
from specblock.training.data.prompts import read_prompts


def row(name, *, turn=None, tokens=9, finish="stop"):
    made = {"id": name, "prompt_ids": [1], "answer_ids": [5] * tokens, "finish_reason": finish}
    return made if turn is None else {**made, "turn": turn}


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_files_and_folders_old_rows_and_new(tmp_path):
    first = [row("a"), row("b", turn=0, finish="length"), row("c", turn=0, tokens=3)]
    second = [row("b", turn=1)]
    folder = tmp_path / "answers"
    write(folder / "answers-00000.jsonl", first)
    write(folder / "answers-00001.jsonl", second)
    (folder / "provenance.json").write_text("{}")
    answers = read_answers(folder)
    assert [(a.id, a.turn, a.stopped) for a in answers] == [
        ("a", 0, True), ("b", 0, False), ("b", 1, True)
    ]  # fmt: skip
    assert answers[0].ids == [1] + [5] * 9
    assert read_answers(write(tmp_path / "one.jsonl", first + second)) == answers
    assert len(read_answers(folder, min_tokens=1)) == 4
    assert read_answers(folder, limit=2) == answers[:2]


def test_a_broken_line_is_named_and_an_unfinished_one_left(tmp_path):
    path = write(tmp_path / "a.jsonl", [row("a"), row("b")])
    path.write_text(path.read_text() + '{"id": "c", "prompt')
    assert len(read_answers(path)) == 2
    for broken in ('{"id": "c", "prompt\n', '{"id": "c"}\n', "[]\n"):
        write(path, [row("a")])
        path.write_text(path.read_text() + broken + json.dumps(row("d")) + "\n")
        with pytest.raises(SpecBlockError, match="a.jsonl, line 2 "):
            read_answers(path)


def test_no_answers_is_a_sentence(tmp_path):
    with pytest.raises(SpecBlockError, match="no answers at"):
        read_answers(tmp_path / "none")
    with pytest.raises(SpecBlockError, match="no answer of 8"):
        read_answers(write(tmp_path / "a.jsonl", [row("a", tokens=7)]))


def test_a_conversation_is_held_out_whole():
    answers = [Answer(f"c{i // 3}", [1], [2], True, i % 3) for i in range(60)]
    training, held = split_held_out(answers, 5)
    assert len(held) == 5
    assert not {a.id for a in training} & {a.id for a in held}


def test_broken_prompt_files_name_the_line(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": 1, "messages": [{"role": "user", "content": "w5"}]}\n{broken\n')
    with pytest.raises(SpecBlockError, match="line 2"):
        read_prompts(path, make_tokenizer(), limit=None, max_tokens=9)
    with pytest.raises(SpecBlockError, match="no prompt file"):
        read_prompts(tmp_path / "none", make_tokenizer(), limit=None, max_tokens=9)
    path.write_text(
        '{"id": 1, "messages": [{"role": "system", "content": "w5"}]}\n'
        '{"id": 2, "messages": [{"role": "user", "content": "w5"}]}\n'
        '{"id": 3, "messages": [{"role": "user", "content": "w5 w5 w5 w5 w5 w5 w5 w5"}]}\n'
    )
    kept = read_prompts(path, make_tokenizer(), limit=None, max_tokens=9)
    assert [prompt.id for prompt in kept] == ["2"]


def test_the_draft_vocabulary_is_the_most_frequent_tokens():
    counts = torch.tensor([0, 5, 0, 7, 5, 0])
    d2t, t2d, coverage = draft_vocabulary(counts, 3)
    assert (torch.arange(3) + d2t).tolist() == [1, 3, 4] == t2d.nonzero().flatten().tolist()
    assert coverage == 1.0
    d2t, t2d, coverage = draft_vocabulary(counts, 2)
    assert t2d.nonzero().flatten().tolist() == [1, 3]  # a tie goes to the lower id
    assert coverage == pytest.approx(12 / 17)
