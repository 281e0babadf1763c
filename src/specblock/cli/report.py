"""``specblock report``: benchmark results as Markdown, as a page, and inside documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from specblock.cli.support import verb
from specblock.errors import ConfigError


@verb
def report(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Reports of `bench --json`.", show_default=False)
    ] = None,
    markdown_out: Annotated[
        Path | None, typer.Option("--markdown", help="Write the tables to this file.")
    ] = None,
    html_out: Annotated[
        Path | None, typer.Option("--html", help="Write a page with plots, in one file.")
    ] = None,
    documents: Annotated[
        list[Path] | None,
        typer.Option("--update", help="Make the generated tables of this document anew."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the methods' figures as one JSON object.")
    ] = False,
) -> None:
    """Tables and plots of benchmark results; without options the tables are printed."""
    from specblock.bench.document import markdown, read_report, update
    from specblock.storage import write_atomically

    if not files and not documents:
        raise ConfigError("Name a report of `specblock bench --json`, or a document to --update.")
    reports = {path.stem: read_report(path) for path in files or []}
    if len(reports) < len(files or []):
        raise ConfigError("Two reports have the same file name; rename one.")
    for path in documents or []:
        changed = update(path)
        typer.echo(f"{path}: {'updated' if changed else 'unchanged'}", err=True)
    if as_json:
        typer.echo(json.dumps({title: found["methods"] for title, found in reports.items()}))
    many = len(reports) > 1
    text = "\n".join(
        (f"## {title}\n\n" if many else "") + markdown(found) for title, found in reports.items()
    )
    if markdown_out is not None:
        write_atomically(markdown_out, text)
    if html_out is not None:
        from specblock.bench.page import page

        write_atomically(html_out, page(reports))
    if reports and not (markdown_out or html_out or as_json):
        typer.echo(text, nl=False)
