"""Rows as public chat data sets have them: understood, or refused with a reason; never garbage."""

import json

import pytest

from specblock.errors import SpecBlockError
from specblock.training.data.conversation import RowError, conversation, row_name
from specblock.training.data.prepare import prepare_prompts, source_rows
from specblock.training.data.rows import BrokenRows, read_rows


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


TALK = [user("a"), assistant("b")]
SYSTEM = {"role": "system", "content": "be"}
NULLS = {"name": None, "tool_calls": None, "tool_call_id": None}

UNDERSTOOD = {
    # chat templates, UltraChat 200k, No Robots, SmolTalk, LMSYS-Chat-1M, WildChat
    "messages": ({"prompt": "a", "prompt_id": "7", "messages": TALK}, TALK),
    "conversation": ({"conversation_id": "7", "model": "m", "conversation": TALK}, TALK),
    "nulls of a table": ({"messages": [{**m, **NULLS} for m in TALK], "tools": None}, TALK),
    "null column beside": ({"messages": None, "conversations": TALK}, TALK),
    "null pair beside": ({"messages": [{**user("a"), "from": None, "value": None}]}, TALK[:1]),
    # ShareGPT, OpenHermes, SlimOrca, LLaMA-Factory
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        TALK,
    ),
    "sharegpt with a system text": (
        {"system": "be", "tools": "[]", "conversations": [{"from": "human", "value": "a"}]},
        [SYSTEM, user("a")],
    ),
    "its own system message counts": (
        {"system_prompt": "other", "messages": [SYSTEM, user("a")]},
        [SYSTEM, user("a")],
    ),
    # struct of lists, as tables keep sequences of objects
    "columns": (
        {"conversations": {"from": ["human", "gpt"], "value": ["a", "b"], "weight": [None, 1]}},
        TALK,
    ),
    "columns of messages": (
        {"messages": {"content": ["a", "b"], "role": ["user", "assistant"], "name": [None, None]}},
        TALK,
    ),
    "no rows in columns": ({"messages": {"role": [], "content": []}}, []),
    "one message": ({"messages": user("a")}, TALK[:1]),
    "one message under prompt": ({"prompt": user("a")}, TALK[:1]),
    "parts": (
        {"messages": [user([{"type": "text", "text": "a", "image_url": None}]),
                      assistant([{"type": "text", "text": "b"}])]},
        TALK,
    ),
    "several parts": ({"messages": [user([{"type": "text", "text": "a"}, {"text": "b"}])]},
                      [user("ab")]),
    # MT-bench, Spec-Bench, our own
    "turns": ({"turns": ["a", "b"], "question_id": 1}, [user("a"), user("b")]),
    "prompt of turns": ({"prompt": ["a", "b"]}, [user("a"), user("b")]),
    "messages and turns": ({"messages": [user("a")], "turns": ["a", "b"]}, [user("a"), user("b")]),
    # Alpaca, Dolly, OpenOrca, GSM8K, MetaMath, TRL
    "alpaca": ({"instruction": "a", "input": "", "output": "b", "text": "###"}, TALK),
    "alpaca with input": ({"instruction": "a", "input": "x", "output": "b"},
                          [user("a\n\nx"), assistant("b")]),
    "dolly": ({"instruction": "a", "context": "x", "response": "b", "category": "qa"},
              [user("a\n\nx"), assistant("b")]),
    "orca": ({"id": "1", "system_prompt": "be", "question": "a", "response": "b"},
             [SYSTEM, *TALK]),
    "question and answer": ({"question": "a", "answer": "b"}, TALK),
    "answers of another kind are none": ({"question": "a", "answer": 3}, TALK[:1]),
    "query": ({"query": "a", "response": "b"}, TALK),
    "prompt and completion": ({"prompt": [user("a")], "completion": "b"}, TALK),
    "nothing said": ({"messages": []}, []),
}  # fmt: skip


@pytest.mark.parametrize(("row", "messages"), UNDERSTOOD.values(), ids=UNDERSTOOD.keys())
def test_what_is_understood(row, messages):
    assert conversation(row) == messages


REFUSED = {
    "messages in a text": (
        {"messages": '[{"role": "user"}]'}, "another form", "messages that are a text"),
    "a transcript": ({"conversation": "Human: a"}, "another form", "conversation that are a text"),
    "parts beside an input": (
        {"instruction": ["a"], "input": "b"}, "no text", "a list beside an input"),
    "a column beside a text": (
        {"conversations": {"from": "human", "value": ["a"]}}, "uneven columns", "from 0, value 1"),
    "two that say different things": (
        {"messages": [{**user("a"), "from": "gpt", "value": "b"}]}, "another form", "and another"),
    "number": ({"prompt": 5}, "no text", "a prompt that is a number"),
    "boolean": ({"prompt": True}, "no text", "true or false"),
    "unknown form": ({"text": "### Human: a"}, "no conversation", "none of messages"),
    "null form": ({"prompt": None}, "no conversation", "none of"),
    "preference pair": ({"chosen": "a", "rejected": "b"}, "no conversation", "none of"),
    # OASST: one message of a tree; UltraChat's first form: who says what is not told
    "tree node": ({"message_id": "1", "parent_id": None, "text": "a", "role": "prompter"},
                  "no conversation", "none of"),
    "bare texts": ({"data": ["a", "b"]}, "no conversation", "none of"),
    "texts as messages": ({"conversation": ["a", "b"]}, "another form", "message 1 is a text"),
    "question and answer in one": ({"conversation": [{"input": "a", "output": "b"}]},
                                   "another form", "neither role and content nor"),
    "null role": ({"messages": [{"role": None, "content": "a", "from": "human", "value": None}]},
                  "no role", "message 1 has no role"),
    "nulls beside from": ({"messages": [{"role": None, "content": None, "from": "human",
                                         "value": "a"}]}, "no role", "message 1 has no role"),
    "null content": ({"messages": [user("a"), {"role": "user", "content": None, "value": "b"}]},
                     "no text", "message 2 has no text: its content is null"),
    "null value": ({"conversations": [{"from": "human", "value": None}]}, "no text", "null"),
    "null in columns": ({"conversations": {"from": ["human"], "value": [None]}}, "no text", "null"),
    "uneven columns": ({"messages": {"role": ["user"], "content": ["a", "b"]}}, "uneven columns",
                       "role 1, content 2"),
    "half a column": ({"messages": {"role": ["user"], "content": "a"}}, "uneven columns", "role"),
    "mixed names": ({"messages": [{"role": "user", "value": "a"}]}, "no content", "no content"),
    "unknown role": ({"messages": [{"role": "critic", "content": "a"}]}, "unknown role",
                     "the unknown role 'critic'"),
    "role of another type": ({"messages": [{"role": 1, "content": "a"}]}, "no role", "a number"),
    "object as text": ({"messages": [user({"text": "a"})]}, "no text", "an object"),
    "number as text": ({"messages": [user(5)]}, "no text", "a number"),
    "null part": ({"messages": [user([{"type": "text", "text": None}])]}, "no text",
                  "a part whose text is null"),
    "no parts": ({"messages": [user([])]}, "blank text", "message 1 is blank"),
    "blank": ({"messages": [user("a"), assistant(" ")]}, "blank text", "message 2 is blank"),
    "blank prompt": ({"prompt": " "}, "blank text", "is blank"),
    "image part": ({"messages": [user([{"type": "image_url", "image_url": {"url": "x"}}])]},
                   "parts of type image_url", "'image_url', which is no text"),
    "image": ({"image": "x.jpg", "conversations": [{"from": "human", "value": "<image>"}]},
              "images or sound", r"\(image\)"),
    "tools": ({"tools": [{"name": "f"}], "messages": [user("a")]}, "tool calls", r"\(tools\)"),
    "tool call": ({"messages": [user("a"), {"role": "assistant", "content": "",
                                            "tool_calls": [{"id": 1}]}]},
                  "tool calls", r"message 2 has tool calls"),
    "tool role": ({"conversations": [{"from": "observation", "value": "a"}]}, "tool calls",
                  "belongs to a tool call"),
    "choices": ({"question": "a", "choices": ["x", "y"], "answer": 1}, "choices", "choices"),
    "input of another type": ({"instruction": "a", "input": {"x": 1}}, "no text", "an object"),
    "system of another type": ({"system": 5, "prompt": "a"}, "no text", "a number"),
    "number as messages": ({"messages": 5}, "another form", "a number"),
    "number among turns": ({"turns": ["a", 5]}, "another form", "message 2 is a number"),
    "another first turn": ({"messages": [user("a")], "turns": ["b"]}, "another form",
                           "do not end in the first"),
    "broken turns": ({"messages": [user("a")], "turns": [5]}, "another form", "do not end"),
    "nested lists": ({"messages": [[user("a")]]}, "another form", "message 1 is a list"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "kind", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_has_a_reason(row, kind, words):
    with pytest.raises(RowError, match=words) as caught:
        conversation(row)
    assert caught.value.kind == kind
    assert "\n" not in str(caught.value)


def test_names_are_texts_or_numbers():
    assert row_name({"id": None, "prompt_id": 7}, "id", "prompt_id") == "7"
    assert row_name({"id": ""}, "id") is row_name({"id": [1]}, "id") is row_name({}, "id") is None
    assert row_name({"id": True}, "id") is None


def test_what_is_skipped_is_counted_by_reason(tmp_path):
    source = tmp_path / "in.jsonl"
    rows = [{"prompt": "a"}, {"prompt": 5}, {"messages": [user(" ")]}, {"prompt": 6}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows) + '"plain"\n{half\n')
    said = []
    broken = BrokenRows(skip=True, say=said.append)
    counts = prepare_prompts(source_rows(str(source), broken), tmp_path / "out.jsonl", broken)
    assert counts.reasons == {"no text": 2, "blank text": 1, "not JSON": 1}
    assert (counts.read, counts.kept, counts.broken) == (6, 2, 4)
    assert str(counts).endswith("4 broken (2 no text, 1 blank text, 1 not JSON)")
    assert said[0].endswith("in.jsonl, line 2 cannot be used: it has a prompt that is a number, "
                            "not text.")  # fmt: skip


def test_a_json_list_has_rows(tmp_path):
    path = tmp_path / "in.json"
    path.write_text(json.dumps([{"instruction": "a"}, 7], indent=1))
    broken = BrokenRows(skip=True)
    assert [(row.number, row.values) for row in read_rows(path, broken)] == [
        (1, {"instruction": "a"})
    ]
    with pytest.raises(SpecBlockError, match=r"in.json, row 2 cannot be used: it is a int"):
        list(read_rows(path))
    path.write_text("[{]")
    with pytest.raises(SpecBlockError, match="in.json cannot be used: it is not a JSON"):
        list(read_rows(path))
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')  # many are JSON Lines all the same
    assert [row.values["prompt"] for row in read_rows(path)] == ["a", "b"]


def test_tables_have_columns_of_turns(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "in.parquet"
    columns = {"from": ["human", "gpt"], "value": ["a", "b"]}
    odd = {"from": ["human"], "value": [None]}
    parquet.write_table(pa.table({"conversations": [columns, odd]}), path)
    broken = BrokenRows(skip=True)
    counts = prepare_prompts(source_rows(str(path), broken), tmp_path / "out.jsonl", broken)
    assert (counts.kept, counts.reasons) == (1, {"no text": 1})
    assert json.loads((tmp_path / "out.jsonl").read_text())["messages"] == [user("a")]
    with pytest.raises(SpecBlockError, match="in.parquet, row 2 cannot be used: message 1"):
        prepare_prompts(source_rows(str(path), BrokenRows()), tmp_path / "o", BrokenRows())
    path.write_bytes(b"no table")
    with pytest.raises(SpecBlockError, match="no whole Parquet file"):
        list(read_rows(path))


def test_a_table_without_its_package_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    path = tmp_path / "in.parquet"
    path.write_bytes(b"")
    with pytest.raises(SpecBlockError, match=r"specblock\[train\]"):
        list(read_rows(path))
