"""Every family in docs/models.md decodes trees to transformers' own output; others say why not."""

import pytest
import torch
import transformers

from specblock.drafters.lookup.propose import LookupDrafter
from specblock.errors import ModelError
from specblock.target.architecture.families import FAMILIES
from specblock.target.architecture.verifiable import distance_from_plain
from specblock.target.model import Target
from specblock.tree.sampling import SamplingParams
from tests import families
from tests.engine.reference import generate
from tests.engine.test_lossless import assert_same, prompt, run
from tests.tiny import OracleDrafter

LENGTH = 24  # with the prompt of 11 beyond every window
GREEDY, SEEDED = SamplingParams(), SamplingParams(temperature=1.0, seed=7)


@pytest.mark.parametrize("case", families.CASES)
def test_trees_decode_as_transformers_does(case):
    model, tokens = families.make(case), prompt()
    if model is None:
        pytest.skip(f"this transformers has no {case}")
    expected = {params: generate(model, tokens, params, LENGTH) for params in (GREEDY, SEEDED)}
    target = Target(families.make(case), (0, 1, 2), prefill_chunk=4)
    assert distance_from_plain(target) < 1e-4
    for params, plain in expected.items():
        ours, stats = run(target, OracleDrafter(plain, len(tokens)), params, tokens, length=LENGTH)
        assert stats.accepted_length > 1.5, "the oracle's trees should be accepted"
        assert_same(target, ours, plain, tokens, params)
    ours, _ = run(target, LookupDrafter(), GREEDY, tokens, length=LENGTH)
    assert_same(target, ours, expected[GREEDY], tokens, GREEDY)
    page = families.PAGE.read_text()
    if f"with transformers {transformers.__version__};" in page:  # others attend in other ways
        assert families.row(case, target) in page, "run python -m tests.families"
    assert FAMILIES[families.model_type(case)] == type(target.model).__name__


def test_the_page_lists_what_is_tested_and_nothing_else():
    text = families.PAGE.read_text()
    table = text[text.index(families.HEADER) + len(families.HEADER) :].split("\n\n")[0]
    assert [line.split(" | ")[0][2:] for line in table.split("\n")[1:]] == list(families.CASES)
    assert list(FAMILIES) == list(dict.fromkeys(map(families.model_type, families.CASES)))


REFUSED = {
    "JambaForCausalLM": ({"num_hidden_layers": 6}, r"linear_attention in layers 0-3, 5 of 6"),
    "Qwen3NextForCausalLM": ({"num_hidden_layers": 4}, "linear_attention in layers 0-2 of 4"),
    "Qwen3_5ForCausalLM": ({"num_hidden_layers": 4}, "linear_attention in layers 0-2 of 4"),
    "Lfm2ForCausalLM": ({"num_hidden_layers": 3, "full_attn_idxs": [1]}, "conv in layers 0, 2"),
    "Llama4ForCausalLM": ({"num_hidden_layers": 4}, "chunked_attention in layers 0-2 of 4"),
    "MiniMaxForCausalLM": ({"num_hidden_layers": 4}, "linear_attention in layers 1, 3 of 4"),
    "RecurrentGemmaForCausalLM": ({"num_hidden_layers": 3}, "layers 0-1 of 3"),
    "FalconH1ForCausalLM": ({"num_hidden_layers": 2}, "hybrid in layers 0-1 of 2"),
    "MambaForCausalLM": ({"num_hidden_layers": 2}, "layers 0-1 of 2"),
    "RwkvForCausalLM": ({"num_hidden_layers": 2}, "state from token to token"),
    "GPTNeoForCausalLM": (
        {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
        "local in layers 1 of 2",
    ),
    "BloomForCausalLM": ({"n_layer": 2}, "positions, or a bias for them"),
    "MptForCausalLM": ({"n_layers": 2}, "positions, or a bias for them"),
    "FalconForCausalLM": ({"num_hidden_layers": 2, "alibi": True}, "a bias for them"),
    "RoFormerForCausalLM": ({"num_hidden_layers": 2, "is_decoder": True}, "positions"),
    "BltForCausalLM": ({}, "no list of its decoder layers"),
    "OpenAIGPTLMHeadModel": ({"n_layer": 2}, "no cache of keys and values"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_verify_a_tree_is_refused_with_the_reason(name):
    settings, reason = REFUSED[name]
    model_class = getattr(transformers, name)
    with torch.device("meta"):  # of real size: nothing but the configuration is read
        model = model_class(model_class.config_class(**settings))
    with pytest.raises(ModelError, match=reason) as refusal:
        Target(model)
    assert "docs/models.md" in str(refusal.value)


def test_an_unknown_family_is_tried_before_it_is_trusted():
    class Unknown(transformers.LlamaForCausalLM):
        """As good as one that is known."""

    class Deaf(transformers.LlamaForCausalLM):
        """Does not listen to what a tree's positions are."""

        def forward(self, input_ids, position_ids=None, past_key_values=None, **kwargs):
            return super().forward(input_ids, past_key_values=past_key_values, **kwargs)

    class Broken(transformers.LlamaForCausalLM):
        def forward(self, position_ids=None, past_key_values=None, **kwargs):
            raise ValueError("a mask of another shape")

    config = families.make("llama").config
    assert Target(Unknown(config).eval()).length == 0
    with pytest.raises(ModelError, match="Deaf gives other predictions in a draft tree"):
        Target(Deaf(config).eval())
    with pytest.raises(ModelError, match=r"Broken fails over a draft tree \(ValueError\)"):
        Target(Broken(config).eval())
