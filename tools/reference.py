"""The API reference as HTML, made from the docstrings by pdoc: ``make docs``.

A warning of pdoc is an error, and so is a link that leads nowhere.
"""

import re
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pdoc
import pdoc.docstrings
import pdoc.render

# What a program, or a drafter of its own, needs; everything else may change between versions.
PUBLIC = (
    "specblock.api",
    "specblock.config",
    "specblock.errors",
    "specblock.engine.speculator",
    "specblock.engine.answer",
    "specblock.engine.engine",
    "specblock.engine.loading",
    "specblock.engine.statistics",
    "specblock.adaptation.config",
    "specblock.adaptation.doorway",
    "specblock.drafters.base",
    "specblock.drafters.config",
    "specblock.drafters.kind",
    "specblock.drafters.registry",
    "specblock.drafters.proposing.levels",
    "specblock.drafters.proposing.pairs",
    "specblock.drafters.proposing.together",
    "specblock.training.pipeline",
    "specblock.training.recipe",
    "specblock.training.settings",
    "specblock.tree.draft_tree",
    "specblock.tree.accept",
    "specblock.tree.sampling",
    "specblock.serving.settings",
)
ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):`~?([^`]+)`")


def build(out: Path) -> None:
    """Write the reference to the folder ``out``."""
    # our docstrings have sections as Google's, and roles as Sphinx' for what they name
    google = pdoc.docstrings.google
    pdoc.docstrings.google = lambda text: google(ROLE.sub(r"`\1`", text))
    pdoc.render.configure(docformat="google")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="pdoc")
        pdoc.pdoc(*PUBLIC, output_directory=out)


class Links(HTMLParser):
    """Where a page leads, and what it can be led to."""

    def __init__(self, text: str):
        super().__init__()
        self.links: set[str] = set()
        self.names: set[str] = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.names.add(found.get("id") or "")
        if tag == "a" and found.get("href"):
            self.links.add(found["href"] or "")


def dead_links(folder: Path) -> list[str]:
    """``page: link`` for every link inside the folder that leads nowhere."""
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}
    dead = []
    for path, page in pages.items():
        for link in sorted(page.links):
            if "://" in link or link.startswith(("data:", "mailto:")):
                continue
            place, _, name = link.partition("#")
            there = (path.parent / place).resolve() if place else path.resolve()
            known = {other.resolve(): links.names for other, links in pages.items()}
            if there not in known or (name and name not in known[there]):
                dead.append(f"{path.relative_to(folder)}: {link}")
    return dead


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/reference")
    build(folder)
    dead = dead_links(folder)
    print(*dead, sep="\n", file=sys.stderr)
    print(f"{folder}/index.html")
    return bool(dead)


if __name__ == "__main__":
    sys.exit(main())
