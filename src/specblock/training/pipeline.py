"""From answers to a drafter on disk: vocabulary, features, warm start, training, checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from specblock.drafters.fingerprint import tokenizer_fingerprint
from specblock.drafters.specblock.checkpoint import save_checkpoint
from specblock.drafters.specblock.config import SpecBlockConfig
from specblock.drafters.specblock.model import SpecBlockModel
from specblock.target.model import text_config
from specblock.training.answers import (
    Answer,
    count_tokens,
    draft_vocabulary,
    read_answers,
    split_held_out,
)
from specblock.training.features import FeatureReader, Sequence
from specblock.training.trainer import TrainConfig, Trainer, summary
from specblock.training.warm_start import attach_target, warm_start

Report = Callable[[str], None]


@dataclass(frozen=True)
class DrafterRecipe:
    """The drafter to train; the defaults are those of the shipped one.

    ``from_scratch`` starts from random layers instead of the target's last ones.
    """

    layers: int = 2
    block_size: int = 4
    draft_vocab_size: int = 12288
    cached_slots: int = 1
    feature_norm: bool = True
    slot_rank: int = 192
    sink: bool = True
    target_lm_head: bool = True
    from_scratch: bool = False
    held_out: int = 48  # answers kept aside for evaluation
    warm_start_answers: int = 600
    train: TrainConfig = field(default_factory=TrainConfig)


def drafter_config(target, recipe: DrafterRecipe, tokenizer, name: str) -> SpecBlockConfig:
    """A drafter shaped like the target's own layers, reading the input of those it copies."""
    config = text_config(target)
    count = config.num_hidden_layers
    heads = config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    return SpecBlockConfig(
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        target_layers=count,
        feature_layers=(1, count // 2 - 1, count - recipe.layers - 1),
        intermediate_size=config.intermediate_size,
        num_attention_heads=heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        num_hidden_layers=recipe.layers,
        block_size=recipe.block_size,
        draft_vocab_size=recipe.draft_vocab_size,
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=float(rope.get("rope_theta", 10000.0)),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        target_name=name,
        cached_slots=recipe.cached_slots,
        feature_norm=recipe.feature_norm,
        slot_rank=recipe.slot_rank,
        sink=recipe.sink,
        target_lm_head=recipe.target_lm_head,
    )


def train_drafter(
    target,
    tokenizer,
    answers_path: Path,
    folder: Path,
    recipe: DrafterRecipe,
    *,
    name: str = "",
    max_seconds: float | None = None,
    report: Report = lambda line: None,
) -> SpecBlockModel:
    """Train a drafter for ``target`` on regenerated answers and save it to ``folder``.

    The trainer's state is kept in ``folder/training``; a run that was cut off goes on from there.
    ``max_seconds`` bounds the gradient steps; the learning rate then falls by the clock.
    """
    torch.manual_seed(recipe.train.seed)
    answers = read_answers(answers_path)
    training, held_out = split_held_out(answers, recipe.held_out)
    counts = count_tokens(training, text_config(target).vocab_size)
    d2t, t2d, coverage = draft_vocabulary(counts, recipe.draft_vocab_size)
    report(
        f"{len(training)} answers, {int(counts.sum())} tokens; "
        f"the draft vocabulary of {len(d2t)} covers {coverage:.2%} of them"
    )
    drafter = new_drafter(target, drafter_config(target, recipe, tokenizer, name), d2t, t2d)
    reader = FeatureReader(target, drafter.config.feature_layers, t2d)
    held = read_sequences(reader, held_out, report)
    sequences = read_sequences(reader, training, report)
    trainer = Trainer(
        drafter, sequences, held, recipe.train, folder / "training", lambda row: report(str(row))
    )
    if trainer.resume():
        report(f"resumed at step {trainer.step} of {trainer.total_steps}")
    elif not recipe.from_scratch:
        warm_start(drafter, target, sequences[: recipe.warm_start_answers])
        report(f"after the closed form: {summary(trainer.evaluate())}")
    trainer.run(max_seconds)
    figures = summary(trainer.evaluate())
    report(f"held out: {figures}")
    save_checkpoint(
        drafter,
        folder,
        extra={"answer_tokens": trainer.answer_tokens, "steps": trainer.step, "held_out": figures},
    )
    return drafter


def new_drafter(target, config: SpecBlockConfig, d2t: Tensor, t2d: Tensor) -> SpecBlockModel:
    """A drafter with its vocabulary map, the target's embeddings and, where configured, head."""
    drafter = SpecBlockModel(config)
    drafter.d2t.copy_(d2t)
    drafter.t2d.copy_(t2d)
    attach_target(drafter, target, head=config.target_lm_head)
    drafter.lm_head.weight.requires_grad_(not config.target_lm_head)
    return drafter


def read_sequences(
    reader: FeatureReader, answers: list[Answer], report: Report, batch: int = 8
) -> list[Sequence]:
    """Features of all answers, kept in main memory; says how much that is on the way."""
    order = sorted(range(len(answers)), key=lambda i: len(answers[i].ids))
    read: dict[int, Sequence] = {}
    size = 0
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        sequences = reader.read_batch([answers[i] for i in chosen])
        read.update(zip(chosen, sequences, strict=True))
        size += sum(sequence.nbytes() for sequence in sequences)
        if start // batch % 25 == 0 or len(read) == len(order):
            report(f"features of {len(read)} of {len(order)} answers, {size / 2**30:.1f} GiB")
    return [read[i] for i in range(len(answers))]
