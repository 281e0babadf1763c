"""``specblock bench profile``: where the time of a method's round goes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from specblock.cli import options
from specblock.cli.support import verb
from specblock.cli.tables import console, figure
from specblock.config import GenerationConfig
from specblock.storage import write_atomically

if TYPE_CHECKING:
    from specblock.bench.measure.profile import RoundProfile


@verb
def profile(
    *,
    methods: Annotated[str, typer.Option(help="Methods of `bench`, comma-separated.")] = (
        "plain,eagle3,specblock-paper,specblock"
    ),
    prompt: Annotated[str, typer.Option(help="What to answer.")] = (
        "Explain why the sky is blue, and why sunsets are red."
    ),
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of one answer.")] = 64,
    top: Annotated[int, typer.Option(min=1, help="Operators to show.")] = 12,
    place: options.ExactTarget,
    json_out: options.JsonOut = None,
) -> None:
    """Profile one answer of each method, operator by operator."""
    from specblock.bench.environment import describe_environment
    from specblock.bench.measure.profile import profile_rounds
    from specblock.cli.bench.methods import open_field

    field = open_field(place, methods, [], "measured", None)
    config = GenerationConfig(max_new_tokens=max_new_tokens, ignore_eos=True)
    ids = field.judge.encode(prompt)
    found = {}
    for name, contender in field.contenders.items():
        contender(ids, config)  # warms up
        found[name] = profile_rounds(contender, ids, config)
        _show(name, found[name], top)
    if json_out is not None:
        rows = {name: round_profile.to_dict() for name, round_profile in found.items()}
        document = {"methods": rows, "environment": describe_environment()}
        write_atomically(json_out, json.dumps(document, indent=1) + "\n")


def _show(name: str, found: RoundProfile, top: int) -> None:
    out = console()
    parts = ", ".join(
        f"{part} {found.milliseconds[part]:.1f} ms in {found.operators[part]:.0f} operators"
        for part in found.milliseconds
    )
    kernels = f", {found.kernels:.0f} kernels" if found.kernels else ""
    out.print(f"{name}, a round of {found.tokens:.2f} tokens: {parts}{kernels}", highlight=False)
    table = Table(box=box.SIMPLE)
    for title in ("part", "operator"):
        table.add_column(title, no_wrap=True)
    for title in ("ms", "calls"):
        table.add_column(title, justify="right")
    for row in found.by_operator[:top]:
        table.add_row(row.part, row.name, figure(row.milliseconds, 2), figure(row.calls, 0))
    out.print(table)
