"""Positions whose embedding depends on a forward's longest one, and positions that have an end."""

from inspect import getsource

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM, Phi3ForCausalLM

from specblock import custom_generate
from specblock.drafters.lookup.propose import LookupDrafter
from specblock.errors import ContextError
from specblock.target.model import Target
from specblock.target.positions import Positions
from specblock.tree.draft_tree import DraftTree
from specblock.tree.sampling import SamplingParams
from tests.engine.reference import generate
from tests.engine.test_lossless import assert_same, prompt, run
from tests.tiny import SIZES, OracleDrafter, make_target

SWITCH, READ_AGAIN = 24, "longrope, read again"
FACTORS = {"short_factor": [1.0, 1.2, 1.4, 1.6], "long_factor": [5.0, 6.0, 7.0, 8.0]}
BEFORE = {"original_max_position_embeddings": SWITCH}
NESTED = {
    "full_attention": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
LONGROPE = {"rope_type": "longrope", **FACTORS}
# name: architecture, rope_parameters, further settings
ROPES = {
    "default": ("llama", {"rope_type": "default"}, {}),
    "linear": ("llama", {"rope_type": "linear", "factor": 4.0}, {}),
    "dynamic": ("llama", {"rope_type": "dynamic", "factor": 4.0}, {}),
    "yarn": ("llama", {"rope_type": "yarn", "factor": 4.0, **BEFORE}, {}),
    "longrope": ("llama", {**LONGROPE, "factor": 4.0, **BEFORE}, {}),
    "llama3": (
        "llama",
        {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            **BEFORE,
        },
        {},
    ),
    READ_AGAIN: ("phi3", LONGROPE, {**BEFORE, "max_position_embeddings": 96}),
    "dynamic, in some layers": ("gemma3", NESTED, {}),
}


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


GREEDY, SEEDED = SamplingParams(), SamplingParams(temperature=1.0, seed=7)
LENGTH = 24


def make(name: str):
    if name == READ_AGAIN and "next_sequence_length" not in getsource(
        Phi3ForCausalLM.prepare_inputs_for_generation
    ):
        pytest.skip("this transformers forgets the whole text where it should read it again")
    architecture, rope, settings = ROPES[name]
    settings = {"max_position_embeddings": SWITCH, **settings}
    parameters = {key: dict(v) if isinstance(v, dict) else v for key, v in rope.items()}
    if "rope_theta" not in str(rope):
        parameters["rope_theta"] = 1e4
    return make_target(architecture, rope_parameters=parameters, **settings)


def decoded(target, drafter, params, tokens):
    ours, stats = run(target, drafter, params, tokens, length=LENGTH)
    assert len(ours) == LENGTH
    return ours, stats


# the switch is crossed in the middle of decoding, by its first token and by the prompt
@pytest.mark.parametrize("count", [11, SWITCH, 40])
@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("name", ROPES)
def test_every_kind_of_rotary_embedding_decodes_as_transformers_does(name, params, count):
    tokens = prompt(count)
    plain = generate(make(name), tokens, params, LENGTH)
    target = Target(make(name), (0, 2, 4), prefill_chunk=5)
    target.positions.allow_any_length()
    for drafter in (None, OracleDrafter(plain, count)):
        ours, stats = decoded(target, drafter, params, tokens)
        assert_same(target, ours, plain, tokens, params)
    assert stats.accepted_length > 1.5
    # a longer text before must leave no trace, neither for us nor for transformers
    decoded(target, LookupDrafter(), params, prompt(60))
    ours, _ = decoded(target, OracleDrafter(plain, count), params, tokens)
    assert_same(target, ours, plain, tokens, params)
    assert generate(target.model, tokens, params, LENGTH) == plain


def test_a_switch_changes_what_is_said():
    """Otherwise the tests above would see nothing."""
    for name in ("longrope", "dynamic", READ_AGAIN):
        model = make(name)
        early, late = (model(prompt_ids(count)).logits[0, 10] for count in (SWITCH, SWITCH + 8))
        assert (early - late).abs().max() > 0.01, name


def prompt_ids(count):
    return torch.tensor([prompt(40)[:count]])


def test_the_models_that_read_again_are_known_by_their_own_word():
    assert Positions(make(READ_AGAIN)).restart == SWITCH
    for name in ("longrope", "dynamic", "default"):
        assert Positions(make(name)).restart is None
    assert Positions(make_target("phi3")).restart is None  # it has no long factors


def opt(**settings):
    torch.manual_seed(0)
    sizes = {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64}
    config = OPTConfig(**{**SIZES, **sizes, **settings})
    return OPTForCausalLM._from_config(config, attn_implementation="sdpa").eval()


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_table_of_positions_is_read_to_its_end_and_no_further(params):
    tokens = prompt(50)
    plain = generate(opt(), tokens, params, 15)  # the last position gives one more token
    with pytest.raises(IndexError):
        generate(opt(), tokens, params, 16)
    target = Target(opt(), (0, 2, 4))
    ours, _ = run(target, OracleDrafter(plain, 50), params, tokens, length=30)
    assert ours == plain[:14]  # what the model was made for
    target.positions.allow_any_length()
    for drafter in (None, OracleDrafter(plain, 50), LookupDrafter()):
        ours, _ = run(target, drafter, params, tokens, length=30)
        assert ours == plain
    with pytest.raises(ContextError, match="65 tokens"):
        run(target, None, params, prompt(65), length=30)


def test_the_doorway_goes_on_as_transformers_does(own_cache):
    """Beyond what the model was made for, and with a table of positions to its end."""
    ids = torch.tensor([prompt(20)])
    settings = {"max_new_tokens": LENGTH, "do_sample": False, "eos_token_id": None}
    for name in ("default", "dynamic", READ_AGAIN):
        plain = make(name).generate(ids, **settings)
        ours = make(name).generate(
            ids, **settings, custom_generate=custom_generate, drafter="lookup"
        )
        assert ours.tolist() == plain.tolist(), name


def test_the_doorway_says_where_a_table_of_positions_ends(own_cache, caplog):
    ids, made = torch.tensor([prompt(250)]), {"max_position_embeddings": 256}
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    plain = opt(**made).generate(ids, max_new_tokens=7, **settings)
    ours = opt(**made).generate(
        ids, max_new_tokens=20, **settings, custom_generate=custom_generate, drafter="lookup"
    )
    assert ours.tolist() == plain.tolist()
    assert "table of 256 positions: the text ends with it, 13 tokens early" in caplog.text


def test_trees_end_where_positions_do():
    target = Target(opt(), (0,))
    target.reset(80)
    target.prefill(torch.tensor(prompt(60)))
    assert target.positions.depth_left(target.length) == 3
    assert Target(make_target("llama")).positions.depth_left(0) > 1000


def test_a_model_that_names_no_length_has_no_end():
    model = make_target("llama")
    vars(model.config)["max_position_embeddings"] = None
    target = Target(model)
    plain, _ = run(target, None, GREEDY, prompt(), length=12)
    ours, _ = run(target, OracleDrafter(plain, 11), GREEDY, prompt(), length=12)
    assert ours == plain


def test_a_tree_is_cut_with_its_order_kept():
    integers = [torch.tensor(x) for x in ([9, 1, 2, 3, 4], [-1, 0, 1, 0, 3], [0, 1, 2, 1, 2])]
    zeros = torch.zeros(5)
    tree = DraftTree(*integers, zeros, zeros, torch.arange(5))
    assert tree.up_to(4) is tree
    assert tree.up_to(2) is tree
    cut = tree.up_to(1)
    assert (cut.tokens.tolist(), cut.parents.tolist()) == ([9, 1, 3], [-1, 0, 0])
    assert (cut.depths.tolist(), cut.buckets.tolist()) == ([0, 1, 1], [0, 1, 3])
    assert len(tree.up_to(0)) == 1
