"""Drafting from pages equals drafting from a cache of its own, however the text came there."""

import pytest
import torch

from specblock.budget.survival import SurvivalModel
from specblock.errors import CheckpointError, SpecBlockError
from specblock.integrations.vllm.pages import Pages
from specblock.integrations.vllm.texts import Step, Texts, chain, drafter_for_chains
from tests.tiny import SIZES, VOCABULARY, make_drafter

PAGE, LENGTH, MOST = 4, 23, 8


def make_texts(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, LENGTH, 3 * SIZES["hidden_size"], generator=generator)
    return features, torch.randint(0, VOCABULARY, (count, LENGTH), generator=generator)


@pytest.fixture(params=[False, True], ids=["plain", "sink"])
def drafter(request):
    return drafter_for_chains(make_drafter(cached_slots=1, sink=request.param).model)


def pages_for(drafter, pages=64):
    config = drafter.model.config
    shape = (pages, config.num_key_value_heads, PAGE, 2 * config.head_dim)
    layers = [torch.full(shape, torch.nan) for _ in range(config.num_hidden_layers)]
    return Pages(layers, config.num_key_value_heads, config.head_dim)


def reference(drafter, features, tokens, length):
    survival = SurvivalModel.fresh()
    return chain(drafter.another(), survival, features[:length], tokens[:length], MOST)


def step(table, features, tokens, start, stop, drafts=True):
    return Step(table, start, features[start:stop], tokens[start:stop], drafts)


@torch.inference_mode()
@pytest.mark.parametrize("cuts", [(LENGTH,), (7, 15, LENGTH), (1, 2, 3, 4, 5, LENGTH)])
def test_in_pieces_in_company_and_in_scattered_pages(drafter, cuts):
    features, tokens = make_texts(5)
    texts = Texts(drafter, SurvivalModel.fresh(), pages_for(drafter))
    tables = torch.randperm(60, generator=torch.Generator().manual_seed(1)).view(5, 12)
    start = 0
    for stop in cuts:
        steps = [step(tables[r], features[r], tokens[r], start, stop) for r in range(5)]
        found = texts.draft(steps, MOST)
        assert found == [reference(drafter, features[r], tokens[r], stop) for r in range(5)]
        assert any(found)
        start = stop


@torch.inference_mode()
def test_a_rejection_overwrites_what_was_rejected(drafter):
    features, tokens = make_texts(2)
    texts = Texts(drafter, SurvivalModel.fresh(), pages_for(drafter))
    table = torch.arange(12)
    texts.draft([step(table, features[0], tokens[0], 0, 9)], MOST)
    # another text from position 6 on: entries 6 to 8 are of tokens that were not taken
    mixed = (
        torch.cat((features[0, :6], features[1, 6:])),
        torch.cat((tokens[0, :6], tokens[1, 6:])),
    )
    (found,) = texts.draft([step(table, *mixed, 6, 12)], MOST)
    assert found == reference(drafter, *mixed, 12)


@torch.inference_mode()
def test_pages_are_shared_by_texts_with_the_same_beginning(drafter):
    features, tokens = make_texts(1)
    texts = Texts(drafter, SurvivalModel.fresh(), pages_for(drafter))
    first, second = torch.arange(12), torch.cat((torch.arange(2), torch.arange(20, 30)))
    texts.draft([step(first, features[0], tokens[0], 0, LENGTH)], MOST)
    (found,) = texts.draft([step(second, features[0], tokens[0], 2 * PAGE, LENGTH)], MOST)
    assert found == reference(drafter, features[0], tokens[0], LENGTH)


@torch.inference_mode()
def test_the_middle_of_a_prompt_is_read_and_not_drafted_from(drafter):
    features, tokens = make_texts(2)
    texts = Texts(drafter, SurvivalModel.fresh(), pages_for(drafter))
    tables = torch.arange(24).view(2, 12)
    steps = [step(tables[r], features[r], tokens[r], 0, 8, drafts=r == 1) for r in range(2)]
    assert texts.draft(steps, MOST)[0] == []
    (found,) = texts.draft([step(tables[0], features[0], tokens[0], 8, LENGTH)], MOST)
    assert found == reference(drafter, features[0], tokens[0], LENGTH)


def test_other_pages_and_other_networks_are_refused(drafter):
    with pytest.raises(SpecBlockError, match="CPU back-end"):
        Pages([torch.zeros(2, 8, PAGE, 2, 4)], 2, 4)
    with pytest.raises(CheckpointError, match="--cached-slots 1"):
        drafter_for_chains(make_drafter(cached_slots=0).model)
