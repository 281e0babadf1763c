"""``specblock export``: a drafter of ours in the format of another engine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from specblock.cli.support import verb


class Format(StrEnum):
    eagle3 = "eagle3"
    speculators = "speculators"
    transformers = "transformers"


@verb
def export(
    drafter: Annotated[Path, typer.Argument(help="Folder of the drafter.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="eagle3: all engines; speculators: vLLM without flags; transformers: a folder "
            "that from_pretrained and transformers serve decode with.",
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(help="Name, folder or hub id.", show_default="the one the drafter names"),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of the weights: float32, bfloat16 or float16.")
    ] = "bfloat16",
    copy: Annotated[
        bool, typer.Option("--copy", help="transformers: copy the target's files, do not link.")
    ] = False,
) -> None:
    """Write a drafter in a format that other engines load (docs/engines.md)."""
    if form is Format.transformers:
        from specblock.integrations.export.folder import export_folder

        notes = export_folder(drafter, out, target=target, copy=copy)
    else:
        from specblock.integrations.export.eagle3 import export_eagle3

        notes = export_eagle3(drafter, out, layout=form.value, target=target, dtype=dtype)
    for note in notes:
        typer.echo(f"Note: {note}", err=True)
    typer.echo(f"Wrote {out}")


@verb
def push(
    drafter: Annotated[Path, typer.Argument(help="Folder of the drafter.")],
    repo_id: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face hub.")],
    target: Annotated[
        str | None,
        typer.Option(help="Name, folder or hub id.", show_default="the one the drafter names"),
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Of the target.", show_default="looked for in its folder")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="For you alone.")] = False,
    show: Annotated[bool, typer.Option("--dry-run", help="Print the model card, only.")] = False,
) -> None:
    """Upload a drafter to the Hugging Face hub with a generated model card."""
    from specblock.integrations.hub.card import model_card
    from specblock.integrations.hub.push import push_to_hub

    if show:
        typer.echo(model_card(drafter, target, licence=licence), nl=False)
        return
    push_to_hub(drafter, repo_id, target=target, licence=licence, private=private)
    typer.echo(f"Wrote {repo_id}: use it with --drafter {repo_id}")
