"""The estimate against what autograd really keeps, and the sentence where it is too much."""

import dataclasses

import pytest
import torch
from tests.tiny import make_drafter
from tests.training.toy import make_sequence

from specblock.drafters.objectives.attention import MAX_SCORES
from specblock.drafters.specblock.objective import ObjectiveConfig
from specblock.errors import SpecBlockError
from specblock.training.evaluate.evaluator import make_batch
from specblock.training.kinds import training_kind
from specblock.training.loop.memory import (
    MemoryEstimate,
    Workload,
    available_memory,
    check_memory,
    estimate_memory,
)
from specblock.training.recipe import DrafterRecipe

BATCH, LENGTH = 6, 120


def kept_bytes(function) -> int:
    """Bytes of all different storages that a forward leaves for its backward."""
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)  # so that no address is used twice
        return tensor

    held: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(storages.values())


@pytest.mark.parametrize("positions", [8, 64])
def test_activations_are_estimated_within_a_factor_of_two(positions):
    model = make_drafter(cached_slots=1).model
    recipe = DrafterRecipe(objective=ObjectiveConfig(positions=positions))
    kind = training_kind("specblock")
    objective = kind.objective(recipe, model.config)
    sequences = [make_sequence(i, 10, LENGTH - 9) for i in range(BATCH)]
    batch = make_batch(sequences, list(range(BATCH)), objective.pad_rows)
    measured = kept_bytes(lambda: objective(model, batch, torch.Generator()))
    measured -= sum(p.numel() * 4 for p in model.parameters())
    work = kind.workload(recipe, model.config, BATCH, LENGTH)
    estimate = estimate_memory(model, work, 0, mixed_precision=False)
    guess = estimate.activations + estimate.attention
    assert measured / 2 < guess < 2 * measured


def test_more_work_takes_more():
    model = make_drafter().model
    kind = training_kind("specblock")

    def total(batch=2, length=50, **objective):
        recipe = DrafterRecipe(objective=ObjectiveConfig(**objective))
        work = kind.workload(recipe, model.config, batch, length)
        return estimate_memory(model, work, 0, mixed_precision=True).total

    assert total() < total(batch=4) < total(batch=4, length=100)
    assert total(blocks=2) < total(blocks=3)
    assert total(positions=8) < total(positions=16)


def test_attention_in_pieces_does_not_grow_with_the_length():
    model = make_drafter().model

    def attention(length):
        work = Workload(8 * length, 8 * length * 6, 6, length, 8 * length)
        return estimate_memory(model, work, 0, mixed_precision=True).attention

    assert attention(100) < attention(1000)
    assert attention(2000) == attention(100_000) == 4 * MAX_SCORES * 2


def test_divided_moments_take_less():
    model, work = make_drafter().model, Workload(10, 10, 1, 10, 10)
    one, two, eight = (
        estimate_memory(model, work, 0, mixed_precision=True, shares=n).optimiser for n in (1, 2, 8)
    )
    assert two == one, "the gradient is whole before it is divided, the weights beside their parts"
    assert eight == one // 2


def test_too_much_is_a_sentence_with_both_numbers():
    gib = 2**30
    estimate = MemoryEstimate(gib, gib, 5 * gib, gib, gib, gib)
    check_memory(estimate, 10 * gib, kept=True)
    with pytest.raises(SpecBlockError, match=r"10\.0 GiB and 9\.0 GiB are free; lower batch_seq"):
        check_memory(estimate, 9 * gib, kept=True)
    features = dataclasses.replace(estimate, features=40 * gib)
    with pytest.raises(SpecBlockError, match="features_file"):
        check_memory(features, 9 * gib, kept=True)


def test_the_machine_says_what_is_free():
    assert 2**20 < available_memory(torch.device("cpu")) < 2**50
