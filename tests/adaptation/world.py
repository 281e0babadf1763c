"""A tiny target with a drafter that adapts, and feedback to go with it."""

from __future__ import annotations

import torch
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import make_drafter, make_target
from tests.training.toy import make_sequence

from specblock.adaptation.config import AdaptationConfig
from specblock.adaptation.doorway import adapt as start_adapting
from specblock.adaptation.feedback.buffer import Record
from specblock.drafters.base import FixedBudget
from specblock.engine.speculator import Speculator
from specblock.target.model import Target

QUICK = {
    "min_requests": 2,
    "sequences": 3,
    "steps": 2,
    "positions": 6,
    "judge_records": 4,
    "judge_positions": 8,
    "held_out_share": 0.4,
    "rank": 4,
    "mixed_precision": False,
    "watch_rounds": 24,
    "save_every_seconds": 0.0,
    "collect_share": 0.0,
}


def config(**settings) -> AdaptationConfig:
    return AdaptationConfig(**{**QUICK, **settings})


def make_speculator(
    adapt: AdaptationConfig | None = None, seed: int = 0, target_seed: int = 0, **drafter
) -> Speculator:
    target = Target(make_target("llama", target_seed), (0, 2, 4))
    shape = {"cached_slots": 1, "slot_rank": 4, "sink": True, **drafter}
    budget, drafter = FixedBudget(12, 4), make_drafter(seed, **shape)
    speculator = Speculator(target, make_tokenizer(), drafter, budget)
    return speculator if adapt is None else start_adapting(speculator, adapt)


def prompt(number: int, length: int = 6) -> list[int]:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(3, 97, (length,), generator=generator).tolist()


def make_record(number: int, stratum: int | None = None, answer: int = 9) -> Record:
    sequence = make_sequence(number, 4, answer)
    missed = torch.zeros(len(sequence.tokens), dtype=torch.bool)
    return Record(sequence, missed, number if stratum is None else stratum)
