"""From answers to a drafter on disk: vocabulary, features, start, training, checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specblock.drafters.checkpoint import save_checkpoint
from specblock.drafters.config import StoredConfig
from specblock.drafters.fingerprint import check_fits, tokenizer_fingerprint
from specblock.drafters.registry import load_model, make_drafter, read_config
from specblock.drafters.starting.warm_start import warm_start
from specblock.errors import SpecBlockError
from specblock.target.architecture.structure import text_config
from specblock.training.data.answers import (
    Answer,
    check_answers,
    count_tokens,
    draft_vocabulary,
    read_answers,
    split_held_out,
)
from specblock.training.distributed.sharding import dissolve
from specblock.training.distributed.workers import Workers
from specblock.training.evaluate.evaluator import Evaluator
from specblock.training.evaluate.simulate import greedy_answers
from specblock.training.features.corpus import Corpus, Kept, Online, read_all, sizes_of
from specblock.training.features.reader import FeatureReader
from specblock.training.features.store import store_features
from specblock.training.kinds import drafter_config, new_drafter, training_kind
from specblock.training.loop.checkpoints import numbered
from specblock.training.loop.memory import available_memory, check_memory, estimate_memory
from specblock.training.loop.monitor import check_dashboards
from specblock.training.loop.state import check_origin, origin_of
from specblock.training.loop.trainer import OnSave, Trainer
from specblock.training.recipe import DrafterRecipe

Report = Callable[[str], None]


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
    on_save: OnSave | None = None,
) -> nn.Module:
    """Train a drafter for ``target`` on regenerated answers and save it to ``folder``.

    The trainer's state is kept in ``folder/training``; a run that was cut off goes on from there.
    ``max_seconds`` bounds the gradient steps; the learning rate then falls by the clock.
    ``on_save`` is shown the network, its steps and answer tokens after every save. Started
    by ``torchrun`` in several processes, each must call this and all share the work.

    Raises:
        SystemExit: with code 0, after SIGTERM ended the training and its state was saved.
        SpecBlockError: the answers, the folder or the memory do not do; says what will.
    """
    torch.manual_seed(recipe.train.seed)
    check_dashboards(tensorboard=recipe.train.tensorboard, wandb=recipe.train.wandb)
    workers = Workers(cpu=target.device.type == "cpu")
    report = report if workers.is_main else _silent
    target.to(workers.device)
    training, held_out = _answers(answers_path, target, recipe, report)
    counts = count_tokens(training, text_config(target).vocab_size)
    drafter = _drafter(target, tokenizer, recipe, counts, name, report)
    origin = origin_of(target, drafter.config, training)
    check_origin(folder / "training", origin, report)
    trainer = _trainer(
        drafter, target, training, held_out, recipe, folder, workers, report, origin, on_save
    )
    if trainer.resume():
        report(f"resumed at step {trainer.step} of {trainer.total_steps}")
    else:
        trainer.evaluate()
    if not trainer.run(max_seconds):
        report(f"stopped at step {trainer.step} of {trainer.total_steps}; run again to go on")
        raise SystemExit(0)
    found = trainer.evaluate()
    figures = {} if found is None else found.row()
    dissolve(drafter)
    if workers.is_main:
        extra = {"answer_tokens": trainer.answer_tokens, "steps": trainer.step, "held_out": figures}
        save_checkpoint(drafter, folder, extra=extra)
    workers.wait()
    return drafter


def _answers(
    path: Path, target, recipe: DrafterRecipe, report: Report
) -> tuple[list[Answer], list[Answer]]:
    """The target's answers to train on, and those held out."""
    answers = read_answers(path, limit=recipe.limit)
    check_answers(answers, target, path)
    unsaid = sum(answer.target is None for answer in answers)
    if unsaid:
        report(f"{unsaid} of {len(answers)} answers do not say which target gave them")
    training, held_out = split_held_out(answers, recipe.held_out)
    if not training:
        raise SpecBlockError(
            f"{path} holds {len(answers)} answers and all are held out; regenerate more."
        )
    return training, held_out


def _trainer(
    drafter: nn.Module,
    target,
    training: list[Answer],
    held_out: list[Answer],
    recipe: DrafterRecipe,
    folder: Path,
    workers: Workers,
    report: Report,
    origin: dict[str, Any],
    on_save: OnSave | None,
) -> Trainer:
    """Features, start and loop; what ``folder`` holds of an earlier run is not read yet."""
    layers, state = drafter.config.feature_layers, folder / "training"
    _check_memory(drafter, recipe, training, workers, report)
    reader = FeatureReader(target, layers, drafter.t2d)
    held = read_all(reader, held_out)
    corpus = _corpus(reader, training, recipe, layers, workers, report)
    fresh = not numbered(state)
    if fresh and not recipe.from_scratch and recipe.init is None:
        _start_in_closed_form(drafter, target, recipe, corpus, report)
    return Trainer(
        drafter.to(workers.device),
        training_kind(recipe.kind).objective(recipe, drafter.config),
        corpus,
        recipe.train,
        state,
        evaluator=_evaluator(held, drafter, recipe, report),
        workers=workers,
        report=report,
        origin=origin,
        on_save=on_save,
    )


def _silent(_line: str) -> None:
    """What the other processes report."""


def _drafter(
    target, tokenizer, recipe: DrafterRecipe, counts: Tensor, name: str, report: Report
) -> nn.Module:
    """The network before training, with its vocabulary map: that of ``init``, or of the answers."""
    total = max(1, int(counts.sum()))
    if recipe.init is None:
        d2t, t2d, coverage = draft_vocabulary(counts, recipe.draft_vocab_size)
        report(f"{total} tokens; the draft vocabulary of {len(d2t)} covers {coverage:.2%} of them")
        config = drafter_config(target, recipe, tokenizer, name)
        return new_drafter(target, config, d2t, t2d)
    _check_init(read_config(recipe.init), target, tokenizer, recipe)
    drafter = load_model(
        recipe.init,
        embeddings=target.get_input_embeddings().weight,
        target_head=target.get_output_embeddings().weight,
    )
    coverage = counts[drafter.t2d].sum().item() / total
    report(
        f"going on from {recipe.init}: its draft vocabulary of {len(drafter.d2t)} is kept and "
        f"covers {coverage:.2%} of {total} tokens"
    )
    return drafter


def _check_init(config: StoredConfig, target, tokenizer, recipe: DrafterRecipe) -> None:
    if config.drafter_type != recipe.kind:
        raise SpecBlockError(
            f"The drafter in {recipe.init} is of kind {config.drafter_type}; "
            f"set kind: {config.drafter_type}."
        )
    own = text_config(target)
    check_fits(
        config,
        hidden_size=own.hidden_size,
        vocab_size=own.vocab_size,
        target_layers=own.num_hidden_layers,
        fingerprint=tokenizer_fingerprint(tokenizer),
        target_name=getattr(target, "name_or_path", ""),
    )


def _corpus(
    reader: FeatureReader,
    answers: list[Answer],
    recipe: DrafterRecipe,
    layers: tuple[int, ...],
    workers: Workers,
    report: Report,
) -> Corpus:
    if recipe.features_file is None:
        return Online(reader, answers) if recipe.online else Kept(read_all(reader, answers, report))
    width = len(layers) * text_config(reader.model).hidden_size
    corpus = store_features(
        reader,
        answers,
        recipe.features_file,
        layers=layers,
        feature_width=width,
        report=report,
        part=(workers.rank, workers.count),
    )
    workers.wait()  # until the others' shards are there too
    return corpus


def _check_memory(
    drafter: nn.Module,
    recipe: DrafterRecipe,
    answers: list[Answer],
    workers: Workers,
    report: Report,
) -> None:
    """Before anything is computed; raises :class:`SpecBlockError` if a step will not fit."""
    sizes = [pairs for pairs, _ in sizes_of(answers)]
    kind, batch = training_kind(recipe.kind), recipe.train.batch_sequences
    work = kind.workload(recipe, drafter.config, batch, max(sizes))
    width = len(drafter.config.feature_layers) * drafter.config.hidden_size
    kept = recipe.features_file is None and not recipe.online
    # a batch's features are bf16 here and fp32 behind their norms; 64 candidates come with a row
    features = 6 * batch * max(sizes) * width
    main = sum(sizes) * (2 * width + 8 * 64) if kept else 0
    estimate = estimate_memory(
        drafter, work, features + (main if workers.device.type == "cpu" else 0),
        mixed_precision=recipe.train.mixed_precision,
        shares=workers.count if recipe.train.sharded else 1,
    )  # fmt: skip
    free = available_memory(workers.device)
    report(f"training takes about {estimate}; {free / 2**30:.1f} GiB are free")
    check_memory(estimate, free, kept=kept)


def _start_in_closed_form(
    drafter: nn.Module, target, recipe: DrafterRecipe, corpus: Corpus, report: Report
) -> None:
    count = min(recipe.warm_start_answers, len(corpus.sizes))
    numbers = [range(i, min(i + 8, count)) for i in range(0, count, 8)]
    sequences = [s for some in numbers for s in corpus.read(some)]
    warm_start(drafter, target, sequences, report)
    report(f"started in closed form from {count} answers")


def _evaluator(
    held: list, drafter: nn.Module, recipe: DrafterRecipe, report: Report
) -> Evaluator | None:
    if not held:
        return None
    greedy = greedy_answers(held, drafter.d2t, recipe.simulated)
    if recipe.simulated and not greedy:
        report("no held-out answer is the target's at temperature 0: no τ will be simulated")
    return Evaluator(
        held,
        greedy,
        make_drafter,
        batch_sequences=recipe.train.batch_sequences,
        seed=recipe.train.seed,
    )
