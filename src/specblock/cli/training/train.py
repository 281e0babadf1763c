"""``specblock train``: answers to a drafter."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from specblock.cli.configured import configured
from specblock.cli.tables import console
from specblock.training.settings import TrainSettings

if TYPE_CHECKING:
    pass

FROM_CONVERSATIONS = "conversations.answers.jsonl"


@configured(TrainSettings)
def train(settings: TrainSettings) -> None:
    """Train a drafter for the target on its own answers. A run that was cut off goes on."""
    import torch

    from specblock.engine.machine.governor import begin_with
    from specblock.target.loading.zoo import load_model
    from specblock.training.distributed.workers import Workers
    from specblock.training.kinds import training_kind
    from specblock.training.pipeline import train_drafter

    training_kind(settings.kind)  # before anything heavy
    begin_with(settings.threads, settings.device)
    # under torchrun every process comes here, and one speaks and writes for all
    workers = Workers(cpu=torch.device(settings.device).type == "cpu")
    with _record(settings) if workers.is_main else nullcontext():
        network, tokenizer = load_model(
            settings.model, dtype=settings.dtype, device=settings.device
        )
        if workers.is_main and settings.conversations is not None:
            write_answers(settings.conversations, settings.out, tokenizer)
        workers.wait()
        answers = settings.answers or settings.out / FROM_CONVERSATIONS
        if workers.is_main:
            show_sample(answers, tokenizer)
        train_drafter(
            network,
            tokenizer,
            answers,
            settings.out,
            settings.recipe(),
            name=settings.model,
            max_seconds=None if settings.minutes is None else 60 * settings.minutes,
            report=typer.echo,
        )
    if workers.is_main:
        typer.echo(f"Wrote {settings.out}: use it with --drafter {settings.out}")


def write_answers(conversations: Path, out: Path, tokenizer) -> None:
    """The answers of ready-made conversations, in the form of regenerated ones."""
    from specblock.storage import write_atomically
    from specblock.training.data.chat_mask import read_conversations
    from specblock.training.data.turns import Turn, answer_row

    found = read_conversations(conversations, tokenizer)
    rows = [
        answer_row(Turn(a.id, a.turn, [], a.prompt_ids), a.answer_ids, None, a.stopped)
        for a in found
    ]
    write_atomically(out / FROM_CONVERSATIONS, "".join(json.dumps(row) + "\n" for row in rows))
    typer.echo(f"{len(found)} answers of {conversations}")


def _record(settings: TrainSettings) -> AbstractContextManager[dict[str, Any]]:
    from specblock.training.provenance import recorded

    given = (settings.answers, settings.conversations, settings.init)
    inputs = [path for path in given if path is not None]
    return recorded(settings.out, "train", settings.to_dict(), inputs, folder=True)


def show_sample(answers: Path, tokenizer) -> None:
    """Print the first answer with what is trained on in colour."""
    from specblock.training.data.answers import read_answers
    from specblock.training.data.chat_mask import coloured_sample

    (first,) = read_answers(answers, limit=1)
    typer.echo("The first answer; the loss is on the coloured part:", err=True)
    console(stderr=True).print(coloured_sample(tokenizer, first))
