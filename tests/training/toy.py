"""A trainer's worth of random sequences and a network to go with them, small enough for seconds."""

from __future__ import annotations

import csv
import json

import torch
from tests.tiny import VOCABULARY, make_drafter, seeded

from specblock.drafters.objectives.sequence import Sequence
from specblock.drafters.specblock.objective import ObjectiveConfig, SpecBlockObjective
from specblock.training.evaluate.evaluator import Evaluator
from specblock.training.features.corpus import Kept
from specblock.training.loop.trainer import TrainConfig, Trainer

WIDTH, TOP = 3 * 32, 8


def make_sequence(seed: int, prompt: int = 4, answer: int = 9) -> Sequence:
    generator = seeded(seed)
    pairs = prompt + answer - 1
    start = torch.arange(pairs) >= prompt - 1
    scores = torch.randn(pairs, 60, generator=generator).softmax(-1)
    probabilities, ids = scores.topk(TOP, dim=-1)
    usable = start & (torch.rand(pairs, generator=generator) < 0.9)
    return Sequence(
        torch.randn(pairs, WIDTH, generator=generator),
        torch.randint(VOCABULARY, (pairs,), generator=generator),
        start,
        torch.where(start[:, None], ids, 0).int(),
        torch.where(start[:, None], probabilities, 0.0),
        usable,
    )


def make_sequences(count: int, seed: int = 0) -> list[Sequence]:
    return [make_sequence(1000 * seed + i, 3 + i % 3, 6 + i % 5) for i in range(count)]


def make_model(seed: int = 0):
    return make_drafter(seed, cached_slots=1, slot_rank=4, sink=True).model


def make_trainer(
    folder, model=None, *, sequences=10, judged=False, workers=None, report=None, **settings
) -> Trainer:
    config = TrainConfig(
        **{
            "epochs": 2,
            "batch_sequences": 4,
            "warmup_steps": 2,
            "log_every": 1,
            "lr": 1e-3,
            "mixed_precision": False,
            **settings,
        }
    )
    return Trainer(
        model or make_model(),
        SpecBlockObjective(ObjectiveConfig(positions=6), 4),
        Kept(make_sequences(sequences)),
        config,
        folder,
        evaluator=Evaluator(make_sequences(3, seed=9)) if judged else None,
        workers=workers,
        report=report or (lambda line: None),
    )


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_answers(path, count: int = 8, length: int = 12) -> None:
    """Random answers to random prompts, as `specblock regenerate` writes them."""
    generator = seeded(0)
    with path.open("w") as file:
        for index in range(count):
            ids = torch.randint(3, VOCABULARY, (4 + index % 3 + length,), generator=generator)
            row = {
                "id": f"p{index}",
                "turn": 0,
                "prompt_ids": ids[:-length].tolist(),
                "answer_ids": ids[-length:].tolist(),
                "temperature": 0.0,
                "finish_reason": "length",
            }
            file.write(json.dumps(row) + "\n")
