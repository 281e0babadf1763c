"""Decoding and training are one function: cached incremental logits equal the training forward."""

import pytest
import torch
from tests.tiny import make_drafter as tiny_drafter

from specblock.drafters.base import FixedBudget
from specblock.drafters.proposing.together import alone
from specblock.drafters.specblock.config import SpecBlockConfig
from specblock.drafters.specblock.forward import run_block, run_trunk
from specblock.drafters.specblock.network import SpecBlockModel
from specblock.drafters.specblock.propose import SpecBlockDrafter
from specblock.tree.growth import branching_factors, extend, first_pool, starters

VARIANTS = {
    "paper": {},
    "slot 0 cached": {"cached_slots": 1},
    "two slots cached": {"cached_slots": 2},
    "all departures": {"cached_slots": 1, "feature_norm": True, "slot_rank": 4, "sink": True},
    "one layer": {"num_hidden_layers": 1},
    "three layers": {"num_hidden_layers": 3, "cached_slots": 1},
}
LENGTH = 23


def make_model(**overrides) -> SpecBlockModel:
    torch.manual_seed(3)
    settings = {
        "hidden_size": 32,
        "vocab_size": 50,
        "target_layers": 8,
        "feature_layers": (1, 3, 5),
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "draft_vocab_size": 40,
        **overrides,
    }
    model = SpecBlockModel(SpecBlockConfig(**settings))
    for parameter in model.parameters():  # nothing may be zero, or a missing term would not show
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    return model.eval()


def sequence(model):
    generator = torch.Generator().manual_seed(5)
    config = model.config
    width = len(config.feature_layers) * config.hidden_size
    features = torch.randn(LENGTH, width, generator=generator)
    tokens = torch.randint(0, config.vocab_size, (LENGTH,), generator=generator)
    return features, tokens


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def model(request):
    return make_model(**request.param)


@torch.no_grad()
def train_block(model, features, tokens, position):
    trunk = run_trunk(model, features[None], tokens[None])
    at = torch.tensor([[position]])
    condition = trunk.condition[:, position : position + 1]
    return trunk, run_block(model, trunk, condition, tokens[None, position : position + 1], at)


@pytest.mark.parametrize("steps", [(23,), (1,) * 23, (7, 1, 3, 2, 5, 1, 4)])
def test_block_1_equals_the_training_forward_at_every_position(model, steps):
    features, tokens = sequence(model)
    drafter = SpecBlockDrafter(model)
    drafter.reset(LENGTH)
    end = 0
    for count in steps:
        drafter.observe(features[end : end + count], tokens[end : end + count])
        end += count
        cached = alone(drafter.first_block()).hidden[0]
        _, block = train_block(model, features, tokens, end - 1)
        torch.testing.assert_close(cached, block.hidden[0, 0], atol=2e-4, rtol=2e-4)


def test_the_trunk_is_block_1s_first_slots(model):
    features, tokens = sequence(model)
    trunk, block = train_block(model, features, tokens, 11)
    kept = model.config.slots_kept
    torch.testing.assert_close(trunk.hidden[0, 11], block.hidden[0, 0, :kept], atol=2e-4, rtol=2e-4)


@torch.no_grad()
def test_later_blocks_equal_the_training_forward(model):
    features, tokens = sequence(model)
    drafter = SpecBlockDrafter(model, blocks=3, max_leaves=9)
    drafter.reset(LENGTH)
    drafter.observe(features[:9], tokens[:9])
    alone(drafter.first_block())
    drafter.observe(features[9:12], tokens[9:12])
    first = alone(drafter.first_block())
    factors = branching_factors(first.candidates, drafter.policy, first_block=True)
    pool = first_pool(first.candidates, drafter.policy, factors)
    leaves, valid = starters(pool, factors, 9)
    second = alone(drafter.next_blocks(pool, leaves, [first]))
    slots_1 = pool.slots[leaves]
    pool = extend(pool, leaves, valid, second.candidates, drafter.policy)
    newest = pool.newest + torch.arange(0, len(pool) - pool.newest, 29)[:9]
    third = alone(drafter.next_blocks(pool, newest, [first, second]))

    at = torch.tensor([[11]])
    trunk, block_1 = train_block(model, features, tokens, 11)
    for row, leaf in enumerate(leaves):
        used = slots_1[row] + 1
        block_2 = run_block(
            model,
            trunk,
            block_1.hidden[:, :, used - 1],
            pool.tokens[leaf].view(1, 1),
            at,
            [(block_1, used.view(1, 1))],
        )
        expected = block_2.hidden[0, 0]
        torch.testing.assert_close(second.hidden[row], expected, atol=3e-4, rtol=3e-4)
        for column, deep in enumerate(newest):
            if int(pool.blocks[deep]) != row + 1:
                continue
            used_2 = pool.slots[deep] + 1
            block_3 = run_block(
                model,
                trunk,
                block_2.hidden[:, :, used_2 - 1],
                pool.tokens[deep].view(1, 1),
                at,
                [(block_1, used.view(1, 1)), (block_2, used_2.view(1, 1))],
            )
            expected = block_3.hidden[0, 0]
            torch.testing.assert_close(third.hidden[column], expected, atol=3e-4, rtol=3e-4)


def test_drafting_leaves_no_trace_in_the_cache(model):
    """What block 2 wrote behind the committed entries must not reach the next refresh."""
    features, tokens = sequence(model)
    drafted, undisturbed = SpecBlockDrafter(model), SpecBlockDrafter(model)
    for drafter in (drafted, undisturbed):
        drafter.reset(LENGTH)
        drafter.observe(features[:10], tokens[:10])
    drafted.propose(int(tokens[9]), FixedBudget()).validate()
    for drafter in (drafted, undisturbed):
        drafter.observe(features[10:13], tokens[10:13])
    torch.testing.assert_close(
        alone(drafted.first_block()).hidden,
        alone(undisturbed.first_block()).hidden,
        atol=2e-4,
        rtol=2e-4,
    )


def test_a_proposal_needs_a_new_pair():
    drafter = SpecBlockDrafter(make_model())
    drafter.reset(LENGTH)
    with pytest.raises(ValueError, match="newest pair"):
        drafter.propose(1, FixedBudget())


def test_of_a_long_prompt_the_last_pairs_are_read():
    drafter = tiny_drafter()
    count = drafter.prompt_pairs + 40
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(count, 96, generator=generator)
    tokens = torch.randint(0, 97, (count,), generator=generator)
    last = slice(count - drafter.prompt_pairs, count)
    trees = []
    for part in (slice(0, count), last):
        drafter.reset(count + 8)
        drafter.prefill(features[part], tokens[part])
        trees.append(drafter.propose(int(tokens[-1]), FixedBudget(12)))
    assert trees[0].tokens.tolist() == trees[1].tokens.tolist()
    torch.testing.assert_close(trees[0].log_probs, trees[1].log_probs)
