"""``specblock bench-cost``: what a round of drafting costs at the size of a deployed model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from specblock.cli import options
from specblock.cli.support import say_step, verb
from specblock.cli.tables import console
from specblock.errors import ConfigError


@verb
def bench_cost(
    shape: Annotated[str, typer.Option(help="llama-3.1-8b, qwen3-8b or embedded.")] = "embedded",
    device: Annotated[
        str, typer.Option(help="A torch device; meta counts parameters only.")
    ] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    nodes: Annotated[str, typer.Option(help="Node budgets, comma-separated.")] = "60,90",
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds of each.")] = 20,
    context: Annotated[int, typer.Option(min=1, help="Positions before the first round.")] = 256,
    accepted: Annotated[int, typer.Option(min=1, help="Pairs that a round adds.")] = 4,
    threads: options.Threads = None,
    seed: options.Seed = 0,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Also measure a cost sheet for `bench --costs`.")
    ] = None,
) -> None:
    """Time drafting with random weights at a model's shape, at equal node budgets."""
    import torch

    from specblock.bench.costs.drafting import drafting_cost
    from specblock.bench.costs.shapes import find_shape
    from specblock.storage import write_atomically
    from specblock.target.loading.zoo import DTYPES

    found = find_shape(shape)
    _check(device, dtype, nodes)
    if threads is not None:
        torch.set_num_threads(threads)
    report = drafting_cost(
        found,
        device=device,
        dtype=DTYPES[dtype],
        nodes=[int(part) for part in nodes.split(",")],
        rounds=rounds,
        context=context,
        accepted=accepted,
        seed=seed,
        on_step=say_step,
    )
    report["shape"] = shape
    if json_out is not None:
        write_atomically(json_out, json.dumps(report, indent=1, allow_nan=False) + "\n")
    _say(report)
    if sheet is not None:
        _measure_sheet(sheet, shape, device, DTYPES[dtype], context)


def _check(device: str, dtype: str, nodes: str) -> None:
    import torch

    from specblock.target.loading.zoo import DTYPES

    if not isinstance(DTYPES.get(dtype), torch.dtype):
        raise ConfigError(f"dtype must be float32, bfloat16 or float16, not '{dtype}'.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("There is no CUDA device here; use --device cpu.")
    if not all(part.strip().isdecimal() for part in nodes.split(",")):
        raise ConfigError("--nodes is a list of numbers such as 60,90.")


def _measure_sheet(out: Path, name: str, device: str, dtype: Any, context: int) -> None:
    from specblock.bench.costs.shapes import find_shape
    from specblock.bench.costs.sheets import measured_sheet, random_target
    from specblock.storage import write_atomically

    if device == "meta":
        raise ConfigError("--sheet measures: name a --device that computes.")
    shape = find_shape(name)
    say_step("building the target")
    target = random_target(shape, device, dtype)
    found = measured_sheet(f"measured-{name}", shape, target, context=context, on_step=say_step)
    write_atomically(out, json.dumps(found.to_dict(), indent=1, allow_nan=False) + "\n")


def _say(report: dict[str, Any]) -> None:
    out = console()
    table = Table(box=box.SIMPLE, title=f"drafting at the shape of {report['shape']}")
    budgets = list(next(iter(report.get("drafting", {}).values()), {}))
    table.add_column("")
    table.add_column("parameters", justify="right")
    for budget in budgets:
        table.add_column(f"ms a round, {budget} nodes", justify="right")
        table.add_column("of eagle3", justify="right")
        table.add_column("calls", justify="right")
    for name, count in report["parameters"].items():
        cells = [f"{count / 1e6:.1f} M"]
        for budget in budgets if name in report.get("drafting", {}) else []:
            figures = report["drafting"][name][budget]
            share = report["ratio_to_eagle3"][name][budget]
            cells += [f"{1000 * figures['seconds']:.2f}", f"{share:.0%}", f"{figures['calls']:.1f}"]
        table.add_row(name, *cells)
    out.print(table)
    verification = report.get("verification")
    if verification:
        cells = ", ".join(f"{n}: {1000 * s:.2f}" for n, s in verification.items())
        out.print(f"verification, ms by rows: {cells}", highlight=False)
    elif report.get("verification_note"):
        out.print(f"verification {report['verification_note']}", highlight=False)
