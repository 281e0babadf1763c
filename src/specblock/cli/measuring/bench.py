"""``specblock bench``: methods against each other on the same prompts, one report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specblock.cli import options
from specblock.cli.progress import duration
from specblock.cli.support import say_step, verb
from specblock.cli.tables import console, figure, methods_table
from specblock.config import GenerationConfig
from specblock.errors import ConfigError, SpecBlockError

if TYPE_CHECKING:
    from specblock.bench.measure.field import Field
    from specblock.bench.suites.prompts import BenchPrompt


Prompts = Annotated[
    str | None,
    typer.Option(
        help="JSONL file (.zst too) with messages or turns, or a public set: spec-bench, "
        "mt-bench, humaneval, gsm8k, math-500, alpaca.",
        show_default="our own",
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Take the first N prompts.")]
PerTask = Annotated[
    int | None, typer.Option(min=1, help="Draw N prompts of every task with the seed.")
]
Methods = Annotated[
    str,
    typer.Option(
        help="Comma-separated: plain, plain-compiled, lookup, parallel, eagle3, eagle3-chain, "
        "eagle3-cost, eagle3-full, specblock-paper, specblock-cost, specblock."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what --json's journal has.")]
Drafters = Annotated[
    list[str] | None,
    typer.Option(
        help="KIND=FOLDER or FOLDER, once a kind; 'none' leaves out what ships.",
        show_default="what ships",
    ),
]
Budget = Annotated[
    str,
    typer.Option(
        help="measured: by this machine's costs where a method does; fixed: 60 nodes for all."
    ),
]
Concurrency = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated numbers of clients that ask at the same time; methods are then "
        "plain, specblock and transformers (its continuous batching).",
    ),
]

Costs = Annotated[
    list[str] | None,
    typer.Option(
        help="Cost sheet of another machine, by name or file; several: a playback, no clock is "
        "read. What ships: paper-a100-llama-3.1-8b, h100-llama-3.1-8b, h100-qwen3-8b.",
    ),
]


@verb
def bench(
    prompts: Prompts = None,
    limit: Limit = None,
    per_task: PerTask = None,
    methods: Methods = "plain,specblock",
    max_new_tokens: options.MaxNewTokens = 128,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    seed: options.Seed = 0,
    json_out: options.JsonOut = None,
    resume: Resume = False,
    model: options.Model = options.DEFAULT_MODEL,
    drafter: Drafters = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "cpu",
    threads: options.Threads = None,
    exact: options.Exact = None,
    budget: Budget = "measured",
    concurrency: Concurrency = None,
    costs: Costs = None,
) -> None:
    """Measure methods against each other, interleaved prompt by prompt.

    With --concurrency: many clients at once, by the engine and by transformers.
    With --costs: the same rounds in the seconds of other machines.
    """
    from specblock.bench import load_suite
    from specblock.bench.suites.prompts import check_templates

    if resume and json_out is None:
        raise ConfigError("--resume goes on with an earlier report: name it with --json.")
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    config = GenerationConfig(max_new_tokens=max_new_tokens, seed=seed, **sampling)
    chosen = load_suite(prompts, limit=limit, per_task=per_task, seed=seed)
    if concurrency is not None or costs:
        _another_kind(
            concurrency, costs, methods, chosen, prompts or "own", config, json_out, resume, exact,
            model=model, drafter=drafter, dtype=dtype, device=device, threads=threads,
        )  # fmt: skip
        return
    earlier, placement = json_out if resume else None, (dtype, device, threads)
    field = open_field(model, methods, drafter or [], placement, exact, budget, earlier)
    check_templates(field.judge.tokenizer, chosen)
    about = {"suite": prompts or "own", "budget": budget}
    report = _measure(field, chosen, config, json_out, resume, about)
    _say_result(report)
    if not report["rows"]:
        raise SpecBlockError("No prompt could be answered: see above what is wrong with each.")


def _another_kind(
    concurrency: str | None,
    costs: list[str] | None,
    methods: str,
    chosen: list[BenchPrompt],
    suite: str,
    config: GenerationConfig,
    out: Path | None,
    resume: bool,
    exact: bool | None,
    **placement: Any,
) -> None:
    """Many clients at once, or a playback."""
    if concurrency is not None:
        from specblock.cli.measuring.load import bench_load

        bench_load(concurrency, methods, chosen, suite, config, out, exact=exact, **placement)
        return
    from specblock.cli.measuring.playback import bench_playback

    if not config.sampling().greedy:
        raise ConfigError("With --costs answers are greedy: leave --temperature at 0.")
    bench_playback(costs or [], methods, chosen, suite, config, out, resume, **placement)


def _measure(
    field: Field,
    chosen: list[BenchPrompt],
    config: GenerationConfig,
    out: Path | None,
    resume: bool,
    about: dict[str, Any],
) -> dict[str, Any]:
    from specblock.bench import run

    return run(
        field.judge,
        chosen,
        methods=field.contenders,
        config=config,
        seed=config.seed,
        out=out,
        resume=resume,
        costs=field.measured.costs,
        about={"contenders": field.about, **about, "exact": field.judge.target.exact},
        kept={"measured": field.measured.to_dict()},
        progress=_Progress(),
    )


def open_field(
    model: str,
    methods: str,
    drafters: list[str],
    placement: tuple[str, str, int | None],
    exact: bool | None,
    budget: str,
    earlier: Path | None,
) -> Field:
    """Load the target and the drafters; what cannot be is said before anything heavy starts."""
    import torch

    from specblock.bench.measure.field import Measured, assemble_field
    from specblock.bench.measure.journal import kept_by
    from specblock.bench.measure.methods import resolve
    from specblock.bench.measure.weights import find_weights
    from specblock.target.loading.zoo import load_model

    names = list(resolve([name.strip() for name in methods.split(",") if name.strip()]))
    folders = find_weights(model, drafters)
    dtype, device, threads = placement
    if threads is not None:
        torch.set_num_threads(threads)
    say_step("loading the model")
    network, tokenizer = load_model(model, dtype=dtype, device=device)
    kept = {} if earlier is None else kept_by(earlier)
    measured = Measured.from_dict(kept["measured"]) if "measured" in kept else None
    return assemble_field(
        network,
        tokenizer,
        names,
        folders,
        budget=budget,
        exact=exact,
        measured=measured,
        on_step=say_step,
    )


class _Progress:
    """One line to stderr after every prompt; a terminal overwrites it."""

    def __init__(self) -> None:
        self._started, self._before = time.monotonic(), None

    def __call__(self, done: int, of: int, report: dict[str, Any]) -> None:
        if self._before is None:
            self._before = done - 1  # done by an earlier run
        each = (time.monotonic() - self._started) / (done - self._before)
        parts = [
            f"{name} {figure(row['tokens_per_second'])}" for name, row in report["methods"].items()
        ]
        at_terminal = console(stderr=True).is_terminal
        left = duration(each * (of - done))
        typer.echo(
            f"{chr(13) if at_terminal else ''}{done}/{of}, {left} left, tokens/s: "
            f"{'  '.join(parts)}  ",
            err=True,
            nl=not at_terminal or done == of,
        )


def _say_result(report: dict[str, Any]) -> None:
    out = console()
    out.print(methods_table(report["methods"]))
    for item in report["divergences"]:
        margin = "no margin" if item["margin"] is None else f"margin {item['margin']:.2g}"
        out.print(
            f"{item['id']}: {item['method']} differs from plain at token {item['position']} "
            f"({item['kind']}, {margin})",
            highlight=False,
        )
    for item in report["skipped"]:
        out.print(f"{item['id']}: skipped: {item['reason']}", highlight=False, markup=False)
