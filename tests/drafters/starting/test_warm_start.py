"""The layers that a drafter takes from the target compute what they compute there."""

import pytest
import torch
from tests.engine.test_speculator import make_tokenizer
from torch.nn import functional as F

from specblock.drafters.specblock.network import SpecBlockModel, vocabulary_map
from specblock.drafters.specblock.start import copy_target_layers
from specblock.errors import CheckpointError
from specblock.target.architecture.structure import decoder_layers
from specblock.training.kinds import drafter_config, new_drafter
from specblock.training.recipe import DrafterRecipe
from tiny import VOCABULARY, make_target

LENGTH = 9


def drafter_of(target, **settings):
    recipe = DrafterRecipe(**{"draft_vocab_size": VOCABULARY, "slot_rank": 8, **settings})
    config = drafter_config(target, recipe, make_tokenizer(), "tiny")
    return new_drafter(target, config, *vocabulary_map(torch.arange(VOCABULARY), VOCABULARY))


def causal(_layer, q, k, v):
    heads = [part.transpose(0, 1)[None] for part in (q, k, v)]
    out = F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
    return out[0].transpose(0, 1).flatten(1)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("kind", ["specblock", "parallel"])
def test_copied_layers_are_the_targets_last(name, kind):
    target = make_target(name)
    with torch.no_grad():  # norms and biases that are not what they start as
        for parameter in target.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    drafter = drafter_of(target, kind=kind)
    copy_target_layers(drafter, target)
    x, positions = torch.randn(LENGTH, drafter.config.hidden_size), torch.arange(LENGTH)
    angles = target.get_decoder().rotary_emb(x[None], positions[None])
    mask = torch.full((LENGTH, LENGTH), torch.finfo(x.dtype).min).triu(1)[None, None]
    expected, found = x[None], x
    with torch.no_grad():
        for lent, own in zip(decoder_layers(target)[-2:], drafter.layers, strict=True):
            expected = lent(expected, attention_mask=mask, position_embeddings=angles)
            found = own.finish(found, causal(0, *own.project(found, *drafter.rotary(positions))))
    torch.testing.assert_close(found, expected[0], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", ["gemma3", "phi3"])
def test_layers_of_another_form_are_refused_before_anything_is_changed(name):
    target = make_target(name)
    drafter = drafter_of(target)
    before = {key: value.clone() for key, value in drafter.state_dict().items()}
    with pytest.raises(CheckpointError, match="cannot be copied"):
        copy_target_layers(drafter, target)
    assert all(torch.equal(before[key], value) for key, value in drafter.state_dict().items())


@pytest.mark.parametrize("switch", ["layer_shift", "prefix_broadcast"])
def test_the_ablations_leave_slot_0_alone_and_change_the_others(switch):
    torch.manual_seed(0)
    target = make_target("llama")
    plain = drafter_of(target, **({} if switch == "layer_shift" else {"slot_rank": 0}))
    without = SpecBlockModel(type(plain.config)(**{**vars(plain.config), switch: False}))
    without.load_state_dict(plain.state_dict(), strict=False)
    condition, tokens = torch.randn(3, plain.config.hidden_size), torch.tensor([4, 5, 6])
    if switch == "prefix_broadcast":
        one = plain.input_layer(condition, tokens, 4)
        other = without.input_layer(condition, tokens, 4)
        assert torch.equal(one[:, 0], other[:, 0])
        assert torch.equal(other[0, 1:], other[1, 1:])  # nothing but the query
        assert not torch.equal(one[0, 1:], one[1, 1:])
    else:
        assert len(without.shift_proj) == 0
        assert not any(name.startswith("shift") for name in without.state_dict())
