import json

import pytest
import zstandard

from specblock.bench.suites.prompts import load_prompts
from specblock.errors import SpecBlockError

ROWS = [
    {"id": "a", "task": "qa", "messages": [{"role": "user", "content": "one"}]},
    {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "two"}]},
    {"id": "c", "messages": [{"role": "user", "content": "t1"}], "turns": ["t1", "t2"]},
    {"id": "d", "turns": ["only turns"]},
]


def write(path, rows=ROWS):
    text = "\n".join(json.dumps(row) for row in rows) + "\n\n"
    data = text.encode()
    path.write_bytes(zstandard.compress(data) if path.suffix == ".zst" else data)
    return path


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.zst"])
def test_reads_both_kinds_of_rows(tmp_path, name):
    one, two, three, four = load_prompts(write(tmp_path / name))
    assert (one.id, one.task, one.lead, one.turns) == ("a", "qa", (), ("one",))
    assert two.id == f"{name}:2"
    assert (two.lead, two.turns) == (({"role": "system", "content": "S"},), ("two",))
    assert (three.lead, three.turns) == ((), ("t1", "t2"))
    assert four.turns == ("only turns",)


def test_limit(tmp_path):
    path = write(tmp_path / "p.jsonl")
    assert [prompt.id for prompt in load_prompts(path, 1)] == ["a"]
    assert len(load_prompts(path, 99)) == 4


@pytest.mark.parametrize(
    "row",
    [
        [],
        {},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "user"}]},
        {"turns": [" "]},
    ],
)
def test_a_broken_row_is_named(tmp_path, row):
    with pytest.raises(
        SpecBlockError,
        match=r"p.jsonl, line 2 cannot be used: (it|message 1) .*\.$",
    ):
        load_prompts(write(tmp_path / "p.jsonl", [ROWS[0], row]))


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("p.jsonl", b"{", "line 1 cannot be used: it is not a JSON object"),
        ("p.jsonl", b"\xff\xfe", "line 1 cannot be used: it is not UTF-8"),
        ("p.jsonl.zst", b"not zstd", "not a whole zstd"),
        ("p.jsonl", b"\n", "holds no prompts"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path, name, data, said):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(SpecBlockError, match=said) as caught:
        load_prompts(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_zst_is_refused_or_shorter(tmp_path):
    path = write(tmp_path / "p.jsonl.zst", ROWS * 500)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(SpecBlockError):
        load_prompts(path)
