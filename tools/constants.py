"""Every number that the decoding and the adaptation path were tuned with, read from the source.

``python tools/constants.py`` writes docs/constants.md. The comment on a constant's line or above it
says what it counts, and with "docs/experiments.md, N" which entry of the lab book chose it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "specblock"
PATHS = {
    "Decoding": ("engine", "tree", "budget", "kernels", "target", "drafters"),
    "Adaptation": ("adaptation",),
}
_ABOUT = """# Constants

Every number that the source fixes by name on the way from a prompt to an answer, and from an answer
to a better drafter. Made by `python tools/constants.py`; a test holds this page to the source. What
a user may set is not here but in the help of each command. Where an entry of the [lab
book](experiments.md) chose a number, it is named. The others were set once, and never compared.
"""


class Constant(NamedTuple):
    """A number or a few, its comment, and the module that it stands in."""

    module: str
    name: str
    value: str
    comment: str

    @property
    def entry(self) -> str:
        """Of the lab book; empty where none is named."""
        found = re.search(r"experiments(?:\.md)?,? (\d+)", self.comment)
        return found.group(1) if found else ""


def constants(folder: Path) -> Iterator[Constant]:
    """Those of all modules under ``folder``, in order."""
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and _numbers(node.value):
                names = ast.unparse(node.targets[0])
                if names.replace(",", "").replace("_", "").replace(" ", "").isupper():
                    module = path.relative_to(SOURCE).as_posix()
                    comment = _comment(text.splitlines(), node)
                    yield Constant(module, names.strip("()"), ast.unparse(node.value), comment)


def _numbers(value: ast.expr) -> bool:
    """Whether it consists of numbers alone."""
    leaves = (ast.Constant, ast.Tuple, ast.List, ast.UnaryOp, ast.BinOp, ast.operator, ast.unaryop)
    parts = list(ast.walk(value))
    plain = all(isinstance(part, (*leaves, ast.Load)) for part in parts)
    told = [part.value for part in parts if isinstance(part, ast.Constant)]
    return plain and bool(told) and all(type(each) in (int, float) for each in told)


def _comment(lines: list[str], node: ast.Assign) -> str:
    """Behind the assignment, or the lines above that are nothing else."""
    inside = [line.partition("# ")[2] for line in lines[node.lineno - 1 : node.end_lineno]]
    above: list[str] = []
    for line in reversed(lines[: node.lineno - 1]):
        if not line.startswith("# "):
            break
        above.insert(0, line[2:])
    return " ".join(filter(None, (*above, *inside)))


def page() -> str:
    """docs/constants.md."""
    parts = [_ABOUT]
    for title, folders in PATHS.items():
        parts.append(
            f"\n## {title}\n\n| constant | value | what it is | entry |\n| --- | --- | --- | --- |"
        )
        for each in (each for folder in folders for each in constants(SOURCE / folder)):
            comment = each.comment.replace("|", "\\|")
            parts.append(
                f"| `{each.module}` `{each.name}` | {each.value} | {comment} | {each.entry} |"
            )
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "constants.md").write_text(page(), encoding="utf-8")
