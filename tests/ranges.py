"""The ranges of pyproject.toml, and the constraints with which pip installs one end of all of them.

``python tests/ranges.py oldest torch==2.13.0`` writes one line per package; what is named on the
command line takes the place of the range's end. Needs nothing installed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
_RANGE = re.compile(r"(?P<name>[a-z-]+)>=(?P<lowest>[0-9.]+)(,<[0-9.]+)?")


def lower_bounds() -> dict[str, str]:
    """Package -> lowest release, of every dependency and every extra.

    Raises :class:`ValueError` for a requirement without a lower bound, or with two.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: dict[str, str] = {}
    extras = project["optional-dependencies"].values()
    for requirement in [*project["dependencies"], *(line for extra in extras for line in extra)]:
        match = _RANGE.fullmatch(requirement)
        if match is None:
            raise ValueError(f"{requirement!r} has no lower bound")
        name, lowest = match["name"], match["lowest"]
        if found.setdefault(name, lowest) != lowest:
            raise ValueError(f"{name} has two lower bounds: {found[name]} and {lowest}")
    return found


def constraints(end: str, fixed: list[str]) -> list[str]:
    """Lines for ``pip install -c``: the newest are what pip takes by itself."""
    names = {line.partition("==")[0] for line in fixed}
    oldest = lower_bounds().items() if end == "oldest" else ()
    return fixed + [f"{name}=={lowest}" for name, lowest in oldest if name not in names]


if __name__ == "__main__":
    print(*constraints(sys.argv[1], sys.argv[2:]), sep="\n")
