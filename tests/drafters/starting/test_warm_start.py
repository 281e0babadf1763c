"""The layers that a drafter takes from the target compute what they compute there."""

import pytest
import torch
from tests.engine.test_speculator import make_tokenizer
from tests.families import make as make_family
from tests.tiny import SIZES, VOCABULARY, make_target
from torch.nn import functional as F
from transformers import GraniteConfig, GraniteForCausalLM

from specblock.drafters.specblock.network import SpecBlockModel, vocabulary_map
from specblock.drafters.starting.lending import layers_can_be_lent
from specblock.drafters.starting.warm_start import start_layers
from specblock.target.architecture.tap import FeatureTap
from specblock.training.kinds import drafter_config, new_drafter
from specblock.training.recipe import DrafterRecipe

LENGTH = 9


def drafter_of(target, **settings):
    recipe = DrafterRecipe(**{"draft_vocab_size": VOCABULARY, "slot_rank": 8, **settings})
    config = drafter_config(target, recipe, make_tokenizer(), "tiny")
    return new_drafter(target, config, *vocabulary_map(torch.arange(VOCABULARY), VOCABULARY))


def causal(_layer, q, k, v):
    heads = [part.transpose(0, 1)[None] for part in (q, k, v)]
    out = F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
    return out[0].transpose(0, 1).flatten(1)


def jolted(target):
    """With norms and biases that are not what they start as."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in target.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return target


LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 16}  # fmt: skip
LENDING = {
    "llama": {},
    "llama with scaled positions": {"rope_parameters": LLAMA3},
    "qwen2": {},
    "qwen3": {},
    "mistral": {},
    "phi3": {},
    "granite": {"attention_multiplier": 0.5, "residual_multiplier": 0.3, "logits_scaling": 4.0},
}


def lender(case, **more):
    """A target whose layers can be copied, in a setting that makes that hard."""
    if case == "granite":
        config = GraniteConfig(**SIZES, **LENDING[case], **more)
        return jolted(GraniteForCausalLM._from_config(config, attn_implementation="sdpa").eval())
    return jolted(make_target(case.split()[0], **LENDING[case], **more))


@pytest.mark.parametrize("case", LENDING)
@pytest.mark.parametrize("kind", ["specblock", "parallel"])
def test_copied_layers_are_the_targets_last(case, kind):
    """From their input the drafter says what the target says."""
    target = lender(case)
    drafter, said = drafter_of(target, kind=kind), []
    assert start_layers(drafter, target, said.append)
    assert said == ["the drafter starts with copies of the target's last 2 layers"]
    assert drafter.config.feature_layers[-1] == SIZES["num_hidden_layers"] - 3
    ids, positions = torch.arange(3, 3 + LENGTH)[None], torch.arange(LENGTH)
    tap = FeatureTap(target, drafter.config.feature_layers[-1:])
    with torch.no_grad(), tap:
        expected = target(input_ids=ids).logits[0]
        found = tap.take()[0]
        for own in drafter.layers:
            found = own.finish(found, causal(0, *own.project(found, *drafter.rotary(positions))))
        logits, _ = drafter.logits(found)
    torch.testing.assert_close(logits, expected, atol=2e-3, rtol=2e-3)


def test_half_precision_is_told_from_another_computation():
    target = lender("phi3").bfloat16()
    assert layers_can_be_lent(target)
    target.config.rope_parameters["rope_theta"] *= 2
    assert not layers_can_be_lent(target), "the same weights with other positions"


def identity_logits(drafter, top):
    """What a drafter says whose layers read the target's last states ``[S, H]``."""
    entries = torch.randn(LENGTH, drafter.config.hidden_size), torch.arange(LENGTH)
    states = top.clone()
    for own in drafter.layers:
        attended = causal(0, *own.project(states, *drafter.rotary(entries[1])))
        states = own.finish(states, attended)
    assert torch.equal(states, top)
    return drafter.logits(states)[0]


@pytest.mark.parametrize("name", ["gemma3", "olmo2", "gemma2", "cohere2", "gpt_neox"])
def test_other_layers_start_as_the_identity_between_the_targets_states_and_its_head(name):
    """Gemma's norms are one more than their weights; GPT-NeoX has layer norms."""
    target = jolted(make_target(name) if name == "gemma3" else make_family(name))
    drafter, said = drafter_of(target), []
    assert not start_layers(drafter, target, said.append)
    assert "the drafter's start as the identity" in said[0]
    assert drafter.config.feature_layers[-1] == target.config.num_hidden_layers - 1
    tap = FeatureTap(target, drafter.config.feature_layers[-1:])
    with torch.no_grad(), tap:
        expected = target(input_ids=torch.arange(3, 3 + LENGTH)[None]).logits[0]
        logits = identity_logits(drafter, tap.take()[0])
    if name in ("cohere2", "gpt_neox"):  # the mean is subtracted there
        same = (logits.argmax(-1) == expected.argmax(-1)).float().mean()
        assert same > 0.7
    elif name == "gemma2":  # caps its logits
        assert torch.equal(logits.argmax(-1), expected.argmax(-1))
    else:
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)


def test_a_drafter_of_another_shape_starts_as_the_identity():
    target, said = make_target("llama"), []
    drafter = drafter_of(target)
    other = SpecBlockModel(type(drafter.config)(**{**vars(drafter.config), "intermediate_size": 8}))
    assert not start_layers(other, target, said.append)
    assert "of another shape in mlp.gate_proj.weight" in said[0]


def test_a_shallow_target_lends_nothing():
    target = make_target("llama", num_hidden_layers=2)
    assert layers_can_be_lent(target, 1)
    assert not layers_can_be_lent(target)
    assert drafter_of(target).config.feature_layers == (0, 0, 1)


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
