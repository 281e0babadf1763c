"""What pyproject.toml allows, constraints.txt pins and docs/versions.md tells is one thing."""

import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ranges
from ranges import ROOT, constraints, lower_bounds


def pinned():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def test_what_is_pinned_lies_in_the_range():
    for name, lowest in lower_bounds().items():
        assert pinned()[name] in Requirement(f"{name}>={lowest}").specifier, name


def test_the_oldest_end_is_the_lower_bound_of_everything_but_what_is_given():
    lines = constraints("oldest", ["torch==2.13.0"])
    assert lines[0] == "torch==2.13.0"
    assert [line for line in lines if line.startswith("torch==")] == ["torch==2.13.0"]
    assert f"transformers=={lower_bounds()['transformers']}" in lines
    assert len(lines) == len(lower_bounds())
    assert constraints("newest", ["torch==2.13.0"]) == ["torch==2.13.0"]


@pytest.mark.parametrize("requirement", ["rich", "rich<16", "rich==15.0.0"])
def test_a_requirement_without_a_lower_bound_is_refused(monkeypatch, tmp_path, requirement):
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    changed = re.sub(r'"rich>=[0-9.]+"', f'"{requirement}"', text)
    assert changed != text
    (tmp_path / "pyproject.toml").write_text(changed, encoding="utf-8")
    monkeypatch.setattr(ranges, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="rich.*has no lower bound"):
        lower_bounds()


def test_the_page_tells_every_lower_bound():
    page = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| ([a-z-]+) \| ([0-9.]+) \|", page, flags=re.MULTILINE))
    assert told == lower_bounds()
