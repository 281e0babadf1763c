"""Reports for people: Markdown, the page, and documents that agree with committed results."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fake_speculator import FakeSpeculator
from specblock.bench import BenchPrompt, run
from specblock.bench.report.document import markdown, read_report, regenerate, update
from specblock.budget.costs import CostTable
from specblock.config import GenerationConfig
from specblock.errors import SpecBlockError

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "docs/results/own-prompts-float32.json"
DOCUMENTS = [ROOT / name for name in ("docs/benchmarks.md", "docs/adaptation.md")]
STREAM = ROOT / "docs/results/adaptation-poisoned-full-float32.json"
MARK = "<!-- specblock report"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_agree_with_their_results(path):
    text = path.read_text(encoding="utf-8")
    assert MARK in text, "the results have to be somewhere"
    assert regenerate(text, path.parent) == text, f"run `specblock report --update {path}`"


@pytest.fixture
def saved(tmp_path):
    prompts = [BenchPrompt(f"p{i}", "ab"[i % 2], (), (f"text {i}",)) for i in range(4)]
    path = tmp_path / "report.json"
    run(
        FakeSpeculator(alter=lambda ids, finish: ([*ids[:3], 0], finish)),
        prompts,
        config=GenerationConfig(max_new_tokens=20),
        out=path,
        costs={"": CostTable({1: 1.0, 8: 2.0})},
    )
    return path


def test_the_tables_of_a_report(saved):
    text = markdown(read_report(saved))
    line = next(line for line in text.splitlines() if line.startswith("| specblock |"))
    assert "2.00 (2.00 – 2.00)" in line
    assert "0 of 4" in line
    assert "| a | 2.00 (2.00 – 2.00); 2.50 |" in text
    assert "4 for other reasons" in text
    assert "temperature 0, at most 20 new tokens" in text


def test_the_tables_of_a_stream(tmp_path):
    text = markdown(read_report(STREAM))
    assert "| always-full | 28.3 | 2.44 | 5 | 0 | 0 | 25.8 | -26.6 |" in text
    assert "| code_python | 38.6 | 31.7 (-18.0%) |" in text
    assert "| always-full | 2.381 | 2.389 | 2.507 |" in text
    assert "requests 8 to 25" in text
    assert text.endswith("No answer differs from the first policy's.\n")
    lacking = tmp_path / "lacking.json"
    lacking.write_text(json.dumps({"policies": {}, "settings": {}}))
    with pytest.raises(SpecBlockError, match="bench adapt"):
        read_report(lacking)


def test_the_tables_of_a_playback_say_so_and_when_requests_were_answered():
    text = markdown(read_report(COMMITTED.with_name("playback-360-day0-float32.json")))
    assert "A playback: seconds of decoding are the cost table's" in text
    assert "new tokens" not in text
    stored = json.loads(COMMITTED.with_name("playback-360-day0-float32.json").read_text())
    day0 = stored["loads"]["0.4"]["day0 at 0.4"]
    assert f"| 0.4 | day0 at 0.4 | {day0['mean']:.2f} | {day0['p95']:.2f} |" in text


def test_the_committed_figures_follow_from_their_rows():
    report = read_report(COMMITTED)
    stored = json.loads(COMMITTED.read_text())
    for name, figures in stored["methods"].items():
        for field in ("tokens_per_second", "accepted_length", "draft_seconds", "new_tokens"):
            assert report["methods"][name][field] == pytest.approx(figures[field])
        assert report["methods"][name]["speedup"]["median"] == pytest.approx(
            figures["speedup"]["median"]
        )


def test_a_document_is_updated_once(saved):
    document = saved.with_name("doc.md")
    document.write_text(
        f"before\n{MARK} report.json -->\nold\n<!-- end of specblock report -->\nz\n"
    )
    assert update(document)
    text = document.read_text()
    assert "old" not in text
    assert text.startswith("before\n<!--")
    assert text.endswith("-->\nz\n")
    assert "| specblock |" in text
    assert not update(document)
    document.write_text("no marks")
    with pytest.raises(SpecBlockError, match="nothing to update"):
        update(document)
    with pytest.raises(SpecBlockError, match="cannot be read"):
        update(saved.with_name("none.md"))


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"rows": 3}'])
def test_what_is_no_report_is_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(SpecBlockError, match="is no report"):
        read_report(path)


class Tags(HTMLParser):
    """The tags, and whether every one is closed."""

    VOID = frozenset({"meta", "br", "link"})

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.links = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("which", ["new", "committed"])
def test_the_page_needs_nothing_else(saved, which):
    pytest.importorskip("matplotlib")
    from specblock.bench.report.page import page

    report = read_report(saved if which == "new" else COMMITTED)
    text = page({"one <run>": report})
    tags = Tags(text)
    assert tags.open == []
    assert not [link for link in tags.links if not link.startswith("#")]
    assert tags.seen.count("svg") == (4 if which == "new" else 5)  # the cost curve has points
    assert "one &lt;run&gt;" in text
    assert "Where the time of a round goes" in text
    assert page({"one <run>": report}) == text, "the same figures give the same page"


def test_without_matplotlib_it_is_one_sentence(saved, monkeypatch):
    import sys

    from specblock.bench.report.page import page

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SpecBlockError, match=r"specblock\[viz\]"):
        page({"x": read_report(saved)})
