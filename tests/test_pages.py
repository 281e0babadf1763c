"""The pages: links lead somewhere, commands exist, figures are the tables', examples run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from specblock.cli.main import app
from specblock.target.loading.zoo import locate_model

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FORMER = ("experiments.md", "CHANGELOG.md")  # tell what a command was once
EXAMPLES = ROOT / "examples"
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\]\(([^()\s]+)\)|<img[^>]* src=\"([^\"]+)\"")
END = {"|", ";", "&&", "then", "and"}  # of a command in a line of words


def name_of(page):
    return str(page.relative_to(ROOT))


def anchors(page):
    """What GitHub lets a heading of the page be called."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def dead_links(page):
    text = SPAN.sub("", FENCED.sub("", page.read_text(encoding="utf-8")))
    for link in (first or second for first, second in LINK.findall(text)):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    assert not list(dead_links(page))


def test_a_dead_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text('# One\n[a](#one) [b](#two) [c](gone.md) [d](page.md#one) <img src="no.svg">')
    assert list(dead_links(page)) == ["#two", "gone.md", "no.svg"]


def commands(text):
    """Every ``specblock VERB ...`` of the blocks and spans of code, as a list of words.

    Upper-case verbs are placeholders. In a span the program's name may be missing before a flag.
    """
    fenced = "\n".join(FENCED.findall(text)).replace("\\\n", " ").splitlines()
    spans = [" ".join(span.split()) for span in SPAN.findall(FENCED.sub("", text))]
    verbs = "|".join(typer.main.get_command(app).commands)
    spans = [re.sub(rf"^(?=(?:{verbs}) --)", "specblock ", span) for span in spans]
    for line in fenced + spans:
        for found in re.finditer(r"(?:^|[\s;`'])specblock (?=[a-z])([^#`]+)", line):
            words = found[1].split("; ")[0].split()
            ends = [at for at, word in enumerate(words) if word in END]
            yield words[: min(ends, default=len(words))]


def unknown(words):
    """What of a command neither exists nor is a value or a placeholder."""
    command = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        if command.invoke_without_command and words[0].startswith("-"):
            break  # `bench` measures by itself, too
        verb, *words = words
        if verb not in command.commands:
            return [verb]
        command = command.commands[verb]
    options = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
    flags = [re.match(r"-[-\w]+", word) for word in words]
    return [flag[0] for flag in flags if flag and flag[0] not in options]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in FORMER], ids=name_of)
def test_commands_are_those_of_the_program(page):
    wrong = [
        (" ".join(words), found)
        for words in commands(page.read_text(encoding="utf-8"))
        if (found := unknown(list(words)))
    ]
    assert not wrong


def test_an_unknown_command_is_found():
    text = (
        "`specblock train --answers A --layerz 2`\n```sh\nspecblock sing # x\nspecblock chat\n```"
    )
    found = [unknown(words) for words in commands(text)]
    assert found == [["sing"], [], ["--layerz"]]


def rows(text):
    """The tables of a page: a dictionary by column for every row."""
    names = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            names = None
        elif names is None:
            names = cells
        elif set(line) - set("|-: "):
            yield dict(zip(names, cells, strict=True))


def test_the_readme_is_short_and_its_figures_are_the_tables():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    mark = "results/spec-bench-bfloat16-greedy.json -->"
    whole = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8").split(mark)[1]
    of = {row["method"]: row for row in rows(whole.split("\n\nSpeed-up")[0]) if "method" in row}
    small = [row for row in rows(text) if "speed-up of decoding" in row]
    assert len(small) >= 2
    for row in small:
        name = row.pop("method").strip("`")
        assert row.items() <= of[name].items()


def test_the_index_names_every_page():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(([\w-]+\.md)\)", index))
    assert named == {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}


def test_the_citation_is_whole():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "version"} <= cited.keys()
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{cited["version"]}"' in project


def example(name, *arguments):
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model_of_ones_own():
    folder = locate_model("smollm2-135m-instruct")
    said = example("own_model.py", folder, "--max-new-tokens", 12)
    assert said.endswith("identical: True\n")
    assert "with lookup: " in said


def test_streaming():
    said = example("streaming.py", "Hi", "Hello", "--max-new-tokens", 6)
    assert re.findall(r"^(\d) ended: \w+, \d tokens$", said, re.MULTILINE) in (
        ["0", "1"],
        ["1", "0"],
    )


@pytest.mark.slow
def test_the_client_of_openai():
    from tests.serving.conftest import Process  # needs what is optional

    server = Process()
    try:
        said = example(
            "openai_client.py", "Hi", "--base-url", f"{server.address}/v1", "--max-tokens", 6
        )
    finally:
        server.stop()
    assert re.search(r"\w.*\n\d tokens\n$", said)


def test_every_example_is_tested():
    tests = (Path(__file__), ROOT / "tests/drafters/test_own_kind.py")
    own = "".join(path.read_text(encoding="utf-8") for path in tests)
    assert all(path.name in own for path in EXAMPLES.glob("*.py"))
