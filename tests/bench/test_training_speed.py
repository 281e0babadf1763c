"""The parts of training are timed on the real path."""

import pytest
import torch
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import make_target

from specblock.bench.costs.training import measure_training
from specblock.drafters.specblock.objective import ObjectiveConfig
from specblock.training.data.answers import Answer
from specblock.training.loop.trainer import TrainConfig
from specblock.training.recipe import DrafterRecipe


@pytest.mark.parametrize("kind", ["specblock", "eagle3", "parallel"])
def test_every_part_has_a_figure(kind):
    generator = torch.Generator().manual_seed(0)
    lengths = range(12, 18)
    texts = [torch.randint(3, 90, (n,), generator=generator).tolist() for n in lengths]
    answers = [Answer(str(i), [1, 2, 3], text, False) for i, text in enumerate(texts)]
    recipe = DrafterRecipe(
        kind=kind,
        draft_vocab_size=64,
        objective=ObjectiveConfig(positions=4),
        train=TrainConfig(batch_sequences=2),
    )
    network = make_target("llama")
    found = measure_training(
        network, make_tokenizer(), answers, recipe, frozenset([2]), steps=2, new_tokens=5
    )
    assert min(found.regenerate_tokens_per_second, found.train_tokens_per_second) > 0
    assert found.feature_tokens_per_second > 0
    assert found.seconds_per_step > 0
    shares = found.shares
    assert shares["head"] > 0
    assert shares["optimiser"] > 0
    assert shares["head"] + shares["optimiser"] + shares["drafter"] == pytest.approx(1.0)
