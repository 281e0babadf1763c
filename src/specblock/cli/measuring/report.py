"""``specblock report``: benchmark results as Markdown, as a page, and inside documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from specblock.cli.support import verb
from specblock.errors import ConfigError


@verb
def report(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Reports of `bench`, `bench-adapt` or `evaluate` with --json.", show_default=False
        ),
    ] = None,
    markdown_out: Annotated[
        Path | None, typer.Option("--markdown", help="Write the tables to this file.")
    ] = None,
    html_out: Annotated[
        Path | None, typer.Option("--html", help="Write a page with plots, in one file.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Draw the report of `bench-adapt`, or the learning curves of `evaluate`."
        ),
    ] = None,
    documents: Annotated[
        list[Path] | None,
        typer.Option("--update", help="Make the generated tables of this document anew."),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the figures as one JSON object."),
    ] = False,
) -> None:
    """Tables and plots of benchmark results; without options the tables are printed."""
    from specblock.bench.report.document import figures_of, markdown, read_report, update
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
        typer.echo(json.dumps({title: figures_of(found) for title, found in reports.items()}))
    many = len(reports) > 1
    text = "\n".join(
        (f"## {title}\n\n" if many else "") + markdown(found) for title, found in reports.items()
    )
    if markdown_out is not None:
        write_atomically(markdown_out, text)
    _draw(reports, plot, html_out)
    if reports and not (markdown_out or html_out or plot or as_json):
        typer.echo(text, nl=False)


def _draw(reports: dict[str, dict[str, Any]], plot: Path | None, html_out: Path | None) -> None:
    """The curves of a replayed stream or of trainings, and the page of all others."""
    from specblock.bench.playback.report import is_playback
    from specblock.bench.report.evaluations import draw_curves, is_evaluation
    from specblock.bench.report.streams import is_stream

    found = list(reports.values())
    streams, judged = list(filter(is_stream, found)), list(filter(is_evaluation, found))
    if plot is not None:
        from specblock.adaptation.replay.report import draw

        if judged and len(judged) == len(found):
            draw_curves(judged, plot)
        elif len(streams) == 1 and not judged:
            draw(streams[0], plot)
        else:
            raise ConfigError("--plot takes one report of `bench-adapt`, or some of `evaluate`.")
    if html_out is not None:
        from specblock.bench.report.page import page
        from specblock.storage import write_atomically

        if streams or judged or any(map(is_playback, found)):
            raise ConfigError("Pages are of reports of `specblock bench`; see --plot for others.")
        write_atomically(html_out, page(reports))
