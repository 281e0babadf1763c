"""The ``specblock`` program: the list of its verbs. Heavy imports wait until a verb runs."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from specblock.cli.adapt import app as adapt
from specblock.cli.bench import bench
from specblock.cli.bench_adapt import bench_adapt
from specblock.cli.bench_cost import bench_cost
from specblock.cli.bench_training import bench_training
from specblock.cli.calibrate import calibrate
from specblock.cli.chat import chat
from specblock.cli.check import check
from specblock.cli.convert import convert
from specblock.cli.demo import demo
from specblock.cli.evaluate import evaluate
from specblock.cli.generate import generate
from specblock.cli.prepare_data import prepare_data
from specblock.cli.profile import profile
from specblock.cli.regenerate import regenerate
from specblock.cli.report import report
from specblock.cli.train import train

app = typer.Typer(
    name="specblock",
    help="Block-wise speculative decoding: the same tokens as plain decoding, faster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    generate,
    chat,
    demo,
    calibrate,
    check,
    convert,
    bench,
    prepare_data,
    regenerate,
    train,
    evaluate,
    bench_cost,
    report,
    bench_training,
    bench_adapt,
    profile,
):
    app.command()(command)
app.add_typer(adapt, name="adapt")


def _version(wanted: bool) -> None:
    if wanted:
        from specblock import __version__

        typer.echo(f"specblock {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Block-wise speculative decoding: the same tokens as plain decoding, faster."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("specblock").setLevel(logging.INFO)


def main() -> None:
    """Entry point of the ``specblock`` script."""
    app()
