"""``specblock prepare-data``: a file or data set to normalised prompts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from specblock.cli.configured import configured
from specblock.training.settings import PrepareDataSettings


@configured(PrepareDataSettings)
def prepare_data(settings: PrepareDataSettings) -> None:
    """Turn JSONL rows or a Hugging Face data set into prompts for `specblock regenerate`."""
    from specblock.target.loading.zoo import load_tokenizer, locate_model
    from specblock.training.data.prepare import prepare_prompts, source_rows
    from specblock.training.data.rows import BrokenRows
    from specblock.training.provenance import recorded

    broken = BrokenRows(
        settings.on_error == "skip",
        say=lambda sentence: typer.echo(sentence, err=True),
        advice="repair it, or use --on-error skip",
    )
    model = settings.model
    tokenizer = None if model is None else load_tokenizer(locate_model(model), model)
    rows = source_rows(settings.source, broken, split=settings.split, subset=settings.subset)
    inputs = [Path(settings.source)]
    with recorded(settings.out, "prepare-data", settings.to_dict(), inputs) as record:
        counts = prepare_prompts(
            rows, settings.out, broken, limit=settings.limit, tokenizer=tokenizer
        )
        record["counts"] = asdict(counts)
    typer.echo(f"{counts}\nWrote {settings.out}: use it with regenerate --prompts {settings.out}")
