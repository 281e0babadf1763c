"""The ``specblock`` program: the list of its verbs. Heavy imports wait until a verb runs."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from specblock.cli.bench.adapt import adapt as bench_adapt
from specblock.cli.bench.cost import cost
from specblock.cli.bench.methods import app as bench
from specblock.cli.bench.profile import profile
from specblock.cli.bench.training import training
from specblock.cli.decoding.chat import chat
from specblock.cli.decoding.demo import demo
from specblock.cli.decoding.generate import generate
from specblock.cli.measuring.calibrate import calibrate
from specblock.cli.measuring.doctor import doctor
from specblock.cli.measuring.report import report
from specblock.cli.serving.serve import serve
from specblock.cli.support import USER_ERROR
from specblock.cli.training.adapt import app as adapt
from specblock.cli.training.convert import convert
from specblock.cli.training.evaluate import evaluate
from specblock.cli.training.export import export, push
from specblock.cli.training.fit import fit
from specblock.cli.training.prepare_data import prepare_data
from specblock.cli.training.regenerate import regenerate
from specblock.cli.training.train import train

USE, SERVE, TRAIN, MEASURE, LOOK_AFTER = "Use", "Serve", "Train", "Measure", "Look after"
VERBS = {
    USE: (generate, chat, demo),
    SERVE: (serve,),
    TRAIN: (fit, prepare_data, regenerate, train, evaluate, convert, export, push),
    MEASURE: (report,),
    LOOK_AFTER: (calibrate, doctor),
}
UNDER_BENCH = {"adapt": bench_adapt, "cost": cost, "training": training, "profile": profile}
FORMER = {"bench-adapt": "adapt", "bench-cost": "cost", "bench-training": "training",
          "profile": "profile"}  # fmt: skip

app = typer.Typer(
    name="specblock",
    help="Block-wise speculative decoding: the same tokens as plain decoding, faster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for panel, commands in VERBS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
for name, command in UNDER_BENCH.items():
    bench.command(name)(command)
app.add_typer(bench, name="bench", rich_help_panel=MEASURE)
app.add_typer(adapt, name="adapt", rich_help_panel=LOOK_AFTER)


def _moved(former: str, now: str) -> None:
    @app.command(
        former,
        hidden=True,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )
    def say() -> None:
        typer.echo(f"specblock: `{former}` is now `specblock bench {now}`.", err=True)
        raise typer.Exit(USER_ERROR)


for former, now in FORMER.items():
    _moved(former, now)


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
