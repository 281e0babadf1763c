"""``specblock fit``: a drafter for a model, without data."""

from __future__ import annotations

import typer

from specblock.cli.configured import configured
from specblock.cli.tables import console, methods_table
from specblock.fitting.settings import FitSettings


@configured(FitSettings)
def fit(settings: FitSettings) -> None:
    """Make a drafter for a model: write prompts, answer them, train, and measure what it brings.

    A run that was cut off goes on.
    """
    from specblock.engine.machine.governor import begin_with
    from specblock.fitting.fit import fit_drafter
    from specblock.target.loading.zoo import load_model

    begin_with(settings.threads, settings.device)
    network, tokenizer = load_model(settings.model, dtype=settings.dtype, device=settings.device)
    report = fit_drafter(network, tokenizer, settings, typer.echo)
    if report["methods"]:
        console().print(methods_table(report["methods"]))
    typer.echo(f"The drafter in {settings.folder} {report['sentence']}.")
    typer.echo(f"Use it with --model {settings.model} --drafter {settings.folder}")
