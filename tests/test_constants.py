"""Every tuned number says what it counts, and docs/constants.md is what the source says."""

import pytest

from tests.tool import ROOT
from tests.tool import tool as load


@pytest.fixture(scope="module")
def tool():
    return load("constants")


def test_every_constant_says_what_it_is(tool):
    folders = [folder for paths in tool.PATHS.values() for folder in paths]
    found = [each for folder in folders for each in tool.constants(tool.SOURCE / folder)]
    assert len(found) > 50
    assert [f"{each.module} {each.name}" for each in found if not each.comment] == []


def test_the_page_is_the_sources(tool):
    told = (ROOT / "docs" / "constants.md").read_text(encoding="utf-8")
    assert told == tool.page(), "run: python tools/constants.py"


def test_numbers_and_their_comments_are_read(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "SOURCE", tmp_path)
    (tmp_path / "a.py").write_text(
        '# of a day (docs/experiments.md, 12)\n_HOURS = 24\nNAME = "no number"\n'
        "WAYS, _TURNS = 2, -3  # each\nsmall = 4\n_HERE = len([1])\nBARE = 5 * 2**20\n"
    )
    hours, ways, bare = tool.constants(tmp_path)
    assert (hours.name, hours.value, hours.entry) == ("_HOURS", "24", "12")
    assert (ways.name, ways.comment) == ("WAYS, _TURNS", "each")
    assert (bare.name, bare.comment) == ("BARE", "")
