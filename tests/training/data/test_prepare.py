"""Rows of every shape to normalised prompts, counted, without duplicates."""

import json
import sys
import types
from dataclasses import replace

import pytest
import zstandard

from specblock.errors import SpecBlockError
from specblock.training.data.conversation import clean, conversation
from specblock.training.data.prepare import Counts, prepare_prompts, source_rows
from specblock.training.data.prompts import user_turns
from specblock.training.data.rows import BrokenRows


def write(path, rows):
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows))
    return path


def prepared(source, out, *, skip=False, limit=None, say=lambda sentence: None):
    broken = BrokenRows(skip, say)
    counts = prepare_prompts(source_rows(str(source), broken), out, broken, limit=limit)
    raw = out.read_bytes()
    if out.suffix == ".zst":
        raw = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
    return counts, [json.loads(line) for line in raw.splitlines()]


def user(text):
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user("a"), {"role": "assistant", "content": "x"}, user("b")]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "x"},
                           {"from": "human", "value": "b"}, {"from": "gpt", "value": "y"}]},
        {"conversation": [user(" a\r\n"), user("b")]},
        {"turns": ["a", "b"]},
        {"prompt": [user("a"), user("b")]},
        {"messages": [user([{"type": "text", "text": "a"}]), user("b")]},
        {"conversations": [{"from": "gpt", "value": "hi"}, {"from": "human", "value": "a"},
                           {"from": "human", "value": "b"}]},
    ],
)  # fmt: skip
def test_every_shape_becomes_the_same_user_turns(row, tmp_path):
    counts, (kept,) = prepared(write(tmp_path / "in.jsonl", [{"id": 7, **row}]), tmp_path / "o")
    assert kept == {"id": "7", "messages": [user("a"), user("b")]}
    assert counts == Counts(read=1, kept=1, turns=2)


def test_system_messages_stay_and_a_prompt_is_one_turn(tmp_path):
    rows = [{"messages": [{"role": "system", "content": "be"}, user("a")]}, {"prompt": "a"}]
    _, kept = prepared(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl.zst")
    assert [row["messages"] for row in kept] == [
        [{"role": "system", "content": "be"}, user("a")],
        [user("a")],
    ]
    assert len({row["id"] for row in kept}) == 2


def test_text_is_cleaned_but_not_rewritten():
    assert clean("  e\u0301\x00 a\r\nb\rc\ud800\t ") == "\u00e9 a\nb\nc"
    assert user_turns(conversation({"prompt": "ﬁ  x"})) == [[user("ﬁ  x")]]


def test_duplicates_empties_and_clashing_ids_are_counted(tmp_path):
    rows = [
        {"id": "a", "prompt": "the  file\n"},
        {"id": "b", "prompt": "the ﬁle"},  # the same in compatibility form
        {"id": "c", "turns": []},
        {"id": "d", "messages": [{"role": "system", "content": "be"}]},
        {"id": "a", "prompt": "another"},
        {"id": "e", "prompt": "The file"},
    ]
    counts, kept = prepared(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")
    assert counts == Counts(read=6, kept=3, duplicates=1, empty=2, turns=3)
    assert [row["messages"][0]["content"] for row in kept] == ["the  file", "another", "The file"]
    assert kept[0]["id"] == "a"
    assert kept[1]["id"].startswith("a-")
    again = prepared(tmp_path / "out.jsonl", tmp_path / "again.jsonl")[1]
    assert again == kept, "preparing what is prepared changes nothing"


BROKEN = ["{half", "[1, 2]", {"text": "x"}, {"messages": [{"role": "tool", "content": "x"}]},
          {"messages": [7]}, "[" * 100_000]  # fmt: skip


@pytest.mark.parametrize("line", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_line_is_named_and_refused_or_skipped(line, tmp_path):
    source = write(tmp_path / "in.jsonl", [{"prompt": "a"}, "", line, {"prompt": "b"}])
    out = tmp_path / "out.jsonl"
    with pytest.raises(SpecBlockError, match="line 3 "):
        prepared(source, out)
    assert list(tmp_path.iterdir()) == [source], "no part of an output is left behind"
    said = []
    counts, kept = prepared(source, out, skip=True, say=said.append)
    assert replace(counts, reasons={}) == Counts(read=3, kept=2, broken=1, turns=2)
    assert sum(counts.reasons.values()) == 1
    assert [row["messages"] for row in kept] == [[user("a")], [user("b")]]
    assert len(said) == 1
    assert "line 3 " in said[0]


def test_bytes_that_are_not_text_are_a_broken_line(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff\xfe"}\n')
    with pytest.raises(SpecBlockError, match="line 2 .*UTF-8"):
        prepared(source, tmp_path / "out.jsonl")


def test_nothing_usable_is_a_sentence_and_no_file(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"messages": []}, {"turns": []}])
    with pytest.raises(SpecBlockError, match="no usable user turn.*2 empty"):
        prepared(source, tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == [source]


def test_the_limit_counts_what_is_kept(tmp_path):
    rows = [{"prompt": text} for text in ("a", "a", "b", "c")]
    counts, kept = prepared(write(tmp_path / "in.jsonl", rows), tmp_path / "o.jsonl", limit=2)
    assert (counts.kept, counts.duplicates) == (2, 1)
    assert [row["messages"][0]["content"] for row in kept] == ["a", "b"]


def test_compressed_sources_and_damaged_ones(tmp_path):
    plain = b"".join(b'{"prompt": "%d"}\n' % i for i in range(500))
    source = tmp_path / "in.jsonl.zst"
    source.write_bytes(zstandard.compress(plain))
    assert prepared(source, tmp_path / "out.jsonl")[0].kept == 500
    source.write_bytes(b"no zstd at all")
    with pytest.raises(SpecBlockError, match="damaged"):
        prepared(source, tmp_path / "again.jsonl")
    with pytest.raises(SpecBlockError, match="no prompt file"):
        prepared(tmp_path / "none.jsonl", tmp_path / "again.jsonl")


def test_data_sets_come_through_the_datasets_package(monkeypatch, tmp_path):
    asked = []

    def load_dataset(name, subset, *, split, streaming):
        asked.append((name, subset, split, streaming))
        if name == "no/network":
            raise ConnectionError("Couldn't reach the hub.\nlong story")
        return iter([{"messages": [user("a")]}, {"messages": [user("a")]}])

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *given, **options: None)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    broken = BrokenRows()
    rows = source_rows("some/set", broken, split="train_sft", subset="en")
    counts = prepare_prompts(rows, tmp_path / "out.jsonl", broken)
    assert counts == Counts(read=2, kept=1, duplicates=1, turns=1)
    assert asked == [("some/set", "en", "train_sft", True)]
    with pytest.raises(SpecBlockError, match=r"no/network .*Couldn't reach the hub\): check"):
        prepare_prompts(source_rows("no/network", broken), tmp_path / "out.jsonl", broken)
    monkeypatch.setitem(sys.modules, "datasets", None)  # not installed
    with pytest.raises(SpecBlockError, match=r"specblock\[train\]"):
        prepare_prompts(source_rows("some/set", broken), tmp_path / "out.jsonl", broken)
