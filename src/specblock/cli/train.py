"""``specblock regenerate`` and ``specblock train``: from prompts to a drafter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from specblock.cli import options
from specblock.cli.support import verb

Minutes = Annotated[
    float | None, typer.Option(min=0, help="Stop after so many minutes.", show_default="no limit")
]


@verb
def regenerate(
    prompts: Annotated[Path, typer.Option(help="JSONL (.zst) of rows with id and messages.")],
    out: Annotated[Path, typer.Option(help="Answer file; answers in it are not asked for again.")],
    model: options.Model = options.DEFAULT_MODEL,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts.")] = None,
    max_prompt_tokens: Annotated[int, typer.Option(min=1, help="Skip longer prompts.")] = 256,
    max_new_tokens: options.MaxNewTokens = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences decoded together.")] = 64,
    window: Annotated[int, typer.Option(min=1, help="Prompts sorted by length at a time.")] = 1024,
    seed: options.Seed = 0,
    dtype: options.Dtype = "bfloat16",
    device: options.Device = "cpu",
    threads: options.Threads = None,
    minutes: Minutes = None,
) -> None:
    """Let the target answer training prompts. Can be stopped and started again at any time."""
    import torch

    from specblock.target.zoo import load_model
    from specblock.training.prompts import read_prompts
    from specblock.training.regenerate import RegenerateConfig, prepare_target
    from specblock.training.regenerate import regenerate as run

    if threads is not None:
        torch.set_num_threads(threads)
    network, tokenizer = load_model(model, dtype=dtype, device=device)
    ends = prepare_target(network, tokenizer)
    rows = read_prompts(prompts, tokenizer, limit=limit, max_tokens=max_prompt_tokens)
    config = RegenerateConfig(
        max_new_tokens=max_new_tokens, batch_size=batch_size, window=window, seed=seed
    )

    def show(progress: dict) -> None:
        speed = progress["tokens"] / progress["seconds"]
        left = (progress["of"] - progress["answers"]) * progress["seconds"] / progress["answers"]
        typer.echo(
            f"{progress['answers']} of {progress['of']} answers, {progress['tokens']} tokens, "
            f"{speed:.0f} tokens/s, {left / 60:.0f} min left"
        )

    run(network, rows, out, ends, config, show, None if minutes is None else 60 * minutes)


@verb
def train(
    answers: Annotated[Path, typer.Option(help="Answer file of `specblock regenerate`.")],
    out: Annotated[Path, typer.Option(help="Folder of the drafter; a cut-off run goes on there.")],
    model: options.Model = options.DEFAULT_MODEL,
    epochs: Annotated[int, typer.Option(min=1)] = 5,
    batch_sequences: Annotated[int, typer.Option(min=1, help="Sequences per step.")] = 8,
    lr: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 2e-4,
    draft_vocab_size: Annotated[int, typer.Option(min=1)] = 12288,
    from_scratch: Annotated[
        bool, typer.Option(help="Random layers instead of the target's last ones.")
    ] = False,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    minutes: Minutes = None,
) -> None:
    """Train a SpecBlock drafter for the target on its own answers."""
    import torch

    from specblock.target.zoo import load_model
    from specblock.training.pipeline import DrafterRecipe, train_drafter
    from specblock.training.trainer import TrainConfig

    if threads is not None:
        torch.set_num_threads(threads)
    network, tokenizer = load_model(model, dtype="bfloat16")
    recipe = DrafterRecipe(
        draft_vocab_size=draft_vocab_size,
        from_scratch=from_scratch,
        train=TrainConfig(epochs=epochs, batch_sequences=batch_sequences, lr=lr, seed=seed),
    )
    limit = None if minutes is None else 60 * minutes
    train_drafter(
        network, tokenizer, answers, out, recipe, name=model, max_seconds=limit, report=typer.echo
    )
    typer.echo(f"Wrote {out}: use it with --drafter {out}")
