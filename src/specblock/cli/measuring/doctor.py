"""``specblock doctor``: what makes a drafter useless without a word."""

from __future__ import annotations

import json
import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from specblock.cli import options
from specblock.cli.support import say_step, verb
from specblock.cli.tables import console
from specblock.errors import ConfigError
from specblock.storage import write_atomically

if TYPE_CHECKING:
    from specblock.doctor.finding import Finding

SICK = 1  # exit code
_STYLES = {"ok": "green", "skipped": "dim", "warning": "yellow", "wrong": "bold red"}


@verb
def doctor(
    *,
    drafter: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the drafter, in our layout or as EAGLE-3's or SpecBlock's authors or "
            "speculators publish it.",
            show_default="the one that ships",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSONL of prompts.", show_default="our own"),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Prompts to answer.")] = 4,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of one answer.")] = 48,
    place: options.Target,
    json_out: options.JsonOut = None,
) -> None:
    """Examine a drafter, its target and this machine; say what is wrong and what to do.

    Ends with 1 if anything is wrong, with 0 if there are warnings alone.
    """
    from specblock.bench.environment import describe_environment
    from specblock.doctor.examine import examine
    from specblock.doctor.finding import WRONG
    from specblock.doctor.patient import Request
    from specblock.engine.named_drafter import shipped_drafter
    from specblock.target.loading.zoo import check_placement, load_model, locate_model

    place.use_threads()
    model, dtype, device = place.model, place.dtype, place.device
    folder = _existing(drafter or shipped_drafter(model), model, prompts, json_out)
    check_placement(dtype, device)
    locate_model(model)
    load = partial(load_model, model, dtype=dtype, device=device)
    request = Request(folder, model, load, prompts, limit, max_new_tokens, on_step=say_step)
    findings = examine(request)
    console().print(findings_table(findings))
    if json_out is not None:
        asked = {"model": model, "drafter": str(folder), "dtype": dtype, "device": device}
        asked |= {"limit": limit, "max_new_tokens": max_new_tokens}
        report = {**asked, "environment": describe_environment(), **report_of(findings)}
        write_atomically(json_out, json.dumps(report, indent=1, allow_nan=False) + "\n")
    typer.echo(conclusion(findings))
    if any(finding.verdict == WRONG for finding in findings):
        raise typer.Exit(SICK)


def _existing(folder: Path | None, model: str, prompts: Path | None, report: Path | None) -> Path:
    """The drafter's folder; raises ConfigError where it or the prompts are not there, or where the
    report cannot be written."""
    if folder is None:
        raise ConfigError(f"No drafter ships for {model}: name one with --drafter.")
    for path in (folder, prompts):
        if path is not None and not path.exists():
            raise ConfigError(f"There is no {path}: check the path.")
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file: give the drafter's folder.")
    if report is not None:
        _check_writable(report)
    return folder


def _check_writable(report: Path) -> None:
    """Raises ConfigError now rather than after a minute of work."""
    if report.is_dir():
        raise ConfigError(f"{report} is a folder: name a file with --json.")
    if not report.parent.is_dir():
        raise ConfigError(f"There is no folder {report.parent}: make it first, for --json.")
    if not os.access(report.parent, os.W_OK):
        raise ConfigError(f"{report.parent} cannot be written: name another place with --json.")


def report_of(findings: list[Finding]) -> dict[str, Any]:
    """The worst verdict, seconds and findings as JSON values."""
    from specblock.doctor.finding import VERDICTS

    return {
        "verdict": max((finding.verdict for finding in findings), key=VERDICTS.index),
        "seconds": sum(finding.seconds for finding in findings),
        "findings": [finding.to_dict() for finding in findings],
    }


def findings_table(findings: list[Finding]) -> Table:
    """A row each, the worst last: verdict, check, what was found and what to do."""
    from specblock.doctor.finding import VERDICTS

    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in sorted(findings, key=lambda finding: VERDICTS.index(finding.verdict)):
        said = Text(finding.found)
        if finding.advice:
            said.append(f"\n→ {finding.advice}", style="bold")
        table.add_row(Text(finding.verdict, style=_STYLES[finding.verdict]), finding.name, said)
    return table


def conclusion(findings: list[Finding]) -> str:
    """How many findings there are of each verdict, in a sentence."""
    counts = Counter(finding.verdict for finding in findings)
    seconds = sum(finding.seconds for finding in findings)
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return f"{len(findings)} checks in {seconds:.0f} seconds: {said}."
