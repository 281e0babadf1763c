"""How fast answers are regenerated and drafters are trained, and what the time goes to."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn
from torch.profiler import ProfilerActivity, profile

from specblock.drafters.objectives.head_loss import PROFILE_LABEL
from specblock.target.architecture.structure import text_config
from specblock.training.data.answers import Answer, count_tokens, draft_vocabulary
from specblock.training.data.regenerate import RegenerateConfig
from specblock.training.data.regenerate import answers as answered
from specblock.training.data.turns import Turn
from specblock.training.features.corpus import Kept
from specblock.training.features.reader import FeatureReader
from specblock.training.kinds import drafter_config, new_drafter, training_kind, warm_start
from specblock.training.loop.plan import steps_from
from specblock.training.loop.trainer import Trainer
from specblock.training.recipe import DrafterRecipe

Report = Callable[[str], None]
_WARM_UP = 2  # steps before the clock starts
_LARGEST = 512  # answers whose features are read


@dataclass(frozen=True)
class TrainingSpeed:
    """Tokens are answer tokens; seconds wall-clock.

    ``feature_tokens_per_second`` counts prompts too: the target's forward over whole answers.
    ``shares``: of the time of a training step whose features are there already: ``head`` (output
    head and its loss), ``optimiser``, and ``drafter`` (the rest, forward and backward), plus
    ``target``, what the target's forward for the same step takes in addition where features are
    not kept, in the same unit. ``peak_memory_bytes`` of the process so far.
    """

    regenerate_tokens_per_second: float
    feature_tokens_per_second: float
    train_tokens_per_second: float
    seconds_per_step: float
    shares: dict[str, float]
    peak_memory_bytes: int


def measure_training(
    target: nn.Module,
    tokenizer,
    answers: list[Answer],
    recipe: DrafterRecipe,
    ends: frozenset[int],
    *,
    steps: int = 12,
    new_tokens: int = 64,
    regenerate: RegenerateConfig | None = None,
    report: Report = lambda line: None,
) -> TrainingSpeed:
    """Time each part on ``answers``, at least a batch of the recipe; nothing is kept on disk.

    Args:
        ends: the target's end-of-turn tokens.
        steps: optimiser steps under the clock, behind two that are not.
        new_tokens: most tokens of the one batch of answers that is drawn.
    """
    config = regenerate or RegenerateConfig(max_new_tokens=new_tokens, max_prompt_tokens=None)
    report("drawing answers")
    drawn = _time_answers(target, answers, ends, config)
    report("reading features")
    vocab = text_config(target).vocab_size
    d2t, t2d, _ = draft_vocabulary(count_tokens(answers, vocab), recipe.draft_vocab_size)
    drafter = new_drafter(target, drafter_config(target, recipe, tokenizer, ""), d2t, t2d)
    reader = FeatureReader(target, drafter.config.feature_layers, t2d)
    size = recipe.train.batch_sequences
    chosen = sorted(answers[:_LARGEST], key=lambda answer: len(answer.ids))
    batches = [chosen[i : i + size] for i in range(0, len(chosen) - size + 1, size)]
    middle = batches[len(batches) // 2]
    reader.read_batch(middle)  # warm-up
    began = time.perf_counter()
    sequences = [s for batch in batches for s in reader.read_batch(batch)]
    reading = time.perf_counter() - began
    report("training")
    warm_start(drafter, target, sequences)
    seconds, shares, tokens = _time_steps(drafter, recipe, sequences, steps)
    per_answer = reading / len(sequences)
    return TrainingSpeed(
        regenerate_tokens_per_second=drawn,
        feature_tokens_per_second=sum(len(a.ids) for b in batches for a in b) / reading,
        train_tokens_per_second=tokens / seconds,
        seconds_per_step=seconds / steps,
        shares={**shares, "target": per_answer * size / (seconds / steps)},
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _time_answers(
    target: nn.Module, answers: list[Answer], ends: frozenset[int], config: RegenerateConfig
) -> float:
    """Tokens a second at temperature 0.7, behind a short run that does not count."""
    chosen = sorted(answers, key=lambda answer: len(answer.prompt_ids))[: config.batch_size]
    asked = [Turn(answer.id, 0, [], list(answer.prompt_ids)) for answer in chosen]
    config = replace(config, temperatures=((0.7, 1.0),))
    list(answered(target, iter(asked), ends, replace(config, max_new_tokens=4)))
    began = time.perf_counter()
    drawn = [one for ended in answered(target, iter(asked), ends, config) for one in ended]
    return sum(len(one.answer) for one in drawn) / (time.perf_counter() - began)


def _time_steps(
    drafter: nn.Module, recipe: DrafterRecipe, sequences: list, steps: int
) -> tuple[float, dict[str, float], int]:
    """Seconds of ``steps`` steps, shares of the profiled ones among them, answer tokens."""
    objective = training_kind(recipe.kind).objective(recipe, drafter.config)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Kept(sequences)
        trainer = Trainer(drafter, objective, corpus, recipe.train, Path(folder))
        lengths = [length for length, _ in corpus.sizes]
        size = recipe.train.batch_sequences * recipe.train.accumulation
        plan = steps_from(0, lengths, size, 1_000_000, recipe.train.seed)
        for _ in range(_WARM_UP):
            trainer.train_step(next(plan), 0)
        before = trainer.answer_tokens
        began = time.perf_counter()
        for _ in range(steps):
            trainer.train_step(next(plan), 0)
        seconds = time.perf_counter() - began
        tokens = trainer.answer_tokens - before
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            began = time.perf_counter()
            trainer.train_step(next(plan), 0)
            watched = time.perf_counter() - began
    by_name = {row.key: row.cpu_time_total / 1e6 for row in profiled.key_averages()}
    head = by_name.get(PROFILE_LABEL, 0.0) / watched
    optimiser = by_name.get("Optimizer.step#AdamW.step", 0.0) / watched
    shares = {"head": head, "optimiser": optimiser, "drafter": 1.0 - head - optimiser}
    return seconds, shares, tokens
