"""The ``specblock`` program: the list of its verbs. Heavy imports wait until a verb runs."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from specblock.cli.decoding.chat import chat
from specblock.cli.decoding.demo import demo
from specblock.cli.decoding.generate import generate
from specblock.cli.measuring.bench import bench
from specblock.cli.measuring.bench_adapt import bench_adapt
from specblock.cli.measuring.bench_cost import bench_cost
from specblock.cli.measuring.bench_training import bench_training
from specblock.cli.measuring.calibrate import calibrate
from specblock.cli.measuring.doctor import doctor
from specblock.cli.measuring.profile import profile
from specblock.cli.measuring.report import report
from specblock.cli.serving.serve import serve
from specblock.cli.training.adapt import app as adapt
from specblock.cli.training.convert import convert
from specblock.cli.training.evaluate import evaluate
from specblock.cli.training.export import export, push
from specblock.cli.training.fit import fit
from specblock.cli.training.prepare_data import prepare_data
from specblock.cli.training.regenerate import regenerate
from specblock.cli.training.train import train

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
    serve,
    calibrate,
    doctor,
    convert,
    export,
    push,
    bench,
    fit,
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
