"""Stage 3: both kinds of drafter, on answers that were carried along, while the clock allows."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from specblock.bench.gpu.record import Record
from specblock.bench.gpu.scale import Scale
from specblock.bench.gpu.subject import Subject, random_answers, subject
from specblock.drafters.checkpoint import save_checkpoint
from specblock.training.loop.trainer import TrainConfig
from specblock.training.pipeline import train_drafter
from specblock.training.recipe import DrafterRecipe

__all__ = ["train"]

KINDS = ("specblock", "eagle3")
_SHARE = 0.4  # of the stage's seconds that each kind trains; reading features takes of the rest


def train(scale: Scale, record: Record, work: Path, answers: Path | None) -> None:
    """Train; a bfloat16 copy of the weights comes home with every state that is saved."""
    own = subject(scale, work, torch.float32)
    if answers is None:
        answers = random_answers(own, work)
    for kind in KINDS:
        record.item(kind, partial(train_kind, kind, own, answers, scale, record, work))


def train_kind(
    kind: str, own: Subject, answers: Path, scale: Scale, record: Record, work: Path
) -> dict[str, Any]:
    """Figures of a training: rates, losses, accepted lengths before and after."""
    home, lines = record.folder / "weights" / kind, []
    began = time.perf_counter()

    def bring_home(drafter: nn.Module, step: int, answer_tokens: int) -> None:
        save_checkpoint(drafter, home, extra={"steps": step, "answer_tokens": answer_tokens})
        seen.update(steps=step, answer_tokens=answer_tokens)

    seen: dict[str, int] = {}
    seconds = _SHARE * scale.limits["train"] if not scale.steps else None
    train_drafter(
        own.network, own.tokenizer, answers, work / "training" / kind, recipe_of(kind, scale),
        max_seconds=seconds, report=lines.append, on_save=bring_home,
    )  # fmt: skip
    taken = time.perf_counter() - began
    return {
        **seen,
        "seconds": taken,
        "answer_tokens_per_second": seen["answer_tokens"] / taken,
        "said": lines,
    }


def recipe_of(kind: str, scale: Scale) -> DrafterRecipe:
    """The shipped drafters' recipe, in larger steps where there is a GPU to fill."""
    config = TrainConfig(
        epochs=1000, batch_sequences=32, save_every_seconds=scale.save_seconds, log_every=50,
        eval_every_seconds=1e9, keep_checkpoints=1,
    )  # fmt: skip
    if not scale.steps:
        return DrafterRecipe(kind=kind, train=config)
    few = replace(config, epochs=scale.steps, batch_sequences=4, log_every=1)
    return DrafterRecipe(
        kind=kind, draft_vocab_size=64, slot_rank=8, held_out=2, simulated=1, ttt_steps=2,
        train=few,
    )  # fmt: skip
