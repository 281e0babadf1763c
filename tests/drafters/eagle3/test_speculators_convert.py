"""EAGLE-3 drafters as most are published: speculators' layout and the options of either layout.

Held against the float64 reference of ``published_eagle3``, which shares no code with the package.
"""

import json

import pytest
import torch
from tests.drafters.eagle3.published_eagle3 import (
    DRAFT,
    HIDDEN,
    LLAMA3,
    VOCAB,
    Reference,
    embeddings,
    published_tensors,
    write_published,
)
from tests.drafters.eagle3.published_speculators import speculators_tensors, write_speculators

from specblock.drafters.eagle3.convert import convert_eagle3, is_eagle3
from specblock.drafters.eagle3.propose import Eagle3Drafter
from specblock.drafters.proposing.together import alone
from specblock.drafters.registry import load_model, read_config
from specblock.errors import CheckpointError

PAIRS = 9


def convert(folder, **options):
    out = folder.parent / "out"
    return convert_eagle3(folder, out, target_layers=8, **options), out


def load(out):
    return load_model(out, embeddings=embeddings())


@torch.no_grad()
def assert_drafts_like(model, reference, tensors):
    """Three levels of a chain: all logits and the order of all drafts."""
    drafter = Eagle3Drafter(model, depth=3, top_k=DRAFT)
    generator = torch.Generator().manual_seed(7)
    features = torch.randn(PAIRS, 3 * HIDDEN, generator=generator) * 3
    tokens = torch.randint(0, VOCAB, (PAIRS,), generator=generator)
    drafter.reset(20)
    drafter.prefill(features, tokens)
    level, seen = alone(drafter.first_level()), []
    for i in range(PAIRS):
        y, entry = reference.step(reference.first(features[i]), tokens[i], i, seen)
        seen.append(entry)
    for depth in range(1, 4):
        logits = model.logits(level.found.hidden)[0][0].double()
        log_probs = reference.log_probs(y)
        torch.testing.assert_close(logits.log_softmax(0), log_probs, atol=1e-5, rtol=1e-5)
        ids, found = level.found.tokens, level.found.log_probs
        best = log_probs.topk(ids.shape[1])
        assert ids[0].tolist() == (best.indices + tensors["d2t"][best.indices]).tolist()
        torch.testing.assert_close(found[0].double(), best.values, atol=1e-5, rtol=1e-5)
        token = int(ids[0, depth])
        level = alone(drafter.next_level(level, torch.tensor([0]), torch.tensor([token])))
        y, entry = reference.step(reference.next(y), token, PAIRS - 1 + depth, seen)
        seen.append(entry)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ((), {}),
        (("norm_before_residual",), {}),
        (("norm_before_residual", "norm_before_fc"), {}),
        (("norm_before_residual", "norm_before_fc", "norm_output"), {"head_norms": True}),
        (("fc_norm", "norm_output"), {}),
        (("norm_before_residual",), {"own_embeddings": True}),
    ],
)
def test_a_speculators_drafter_equals_the_reference(tmp_path, flags, options, dtype):
    tensors = speculators_tensors(flags, dtype=dtype, **options)
    every = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
    layer = {"rope_parameters": {"rope_theta": 300.0, **LLAMA3}}
    fields = {name: name in flags for name in every}
    write_speculators(tmp_path / "in", tensors, layer=layer, **fields)
    _, out = convert(tmp_path / "in")
    reference = Reference(tensors, 300.0, LLAMA3, flags)
    assert_drafts_like(load(out), reference, tensors)


@pytest.mark.parametrize("nested", [False, True])
def test_the_authors_layout_takes_the_options_too(tmp_path, nested):
    flags = ("norm_before_residual", "norm_before_fc")
    fields = dict.fromkeys(flags, True) | {"eagle_aux_hidden_state_layer_ids": [2, 5, 7]}
    tensors = speculators_tensors(flags)
    write_published(
        tmp_path / "in",
        edit=lambda written: written.update(tensors),
        **({"eagle_config": fields} if nested else fields),
    )
    config, out = convert(tmp_path / "in")
    assert config.feature_layers == (1, 4, 6)
    assert_drafts_like(load(out), Reference(tensors, flags=flags), tensors)


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("shards", [0, 3])
def test_files_in_parts_are_one(tmp_path, shards, prefix):
    flags = ("norm_before_residual",)
    tensors = speculators_tensors(flags)
    write_speculators(tmp_path / "in", tensors, shards=shards, prefix=prefix)
    _, out = convert(tmp_path / "in")
    assert_drafts_like(load(out), Reference(tensors, flags=flags), tensors)


def test_parts_that_are_missing_or_lie_are_named(tmp_path):
    folder = tmp_path / "in"
    write_speculators(folder, speculators_tensors(), shards=3)
    index = folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    for places, match in (
        ({**listed["weight_map"], "more.weight": "model-00001-of-00003.safetensors"}, "more.weigh"),
        ({**listed["weight_map"], "more.weight": "../elsewhere.safetensors"}, "does not say"),
        (None, "does not say"),
    ):
        index.write_text(json.dumps({"weight_map": places}))
        with pytest.raises(CheckpointError, match=match):
            convert(folder)
    index.write_text(json.dumps(listed))
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00003.safetensors is missing"):
        convert(folder)


@pytest.mark.parametrize(
    ("ids", "layout", "expected"),
    [
        (None, "speculators", (1, 3, 4)),
        ([2, 5, 7], "speculators", (1, 4, 6)),
        ([7, 2, 5], "speculators", (6, 1, 4)),  # the order is that of fc's columns
        ([2, 4, 5, 8], "speculators", (1, 3, 4)),
        ([2, 4, 8], "speculators", (1, 3, 7)),
        ([1, 3, 4], "speculators", (0, 2, 3)),
        ([1, 3, 4], "authors", (1, 3, 4)),  # as SGLang counts: the paper's own
        ([2, 4, 5], "authors", (1, 3, 4)),
        ([1, 3, 5], "authors", (0, 2, 4)),
    ],
)
def test_layers_are_counted_from_their_outputs(tmp_path, ids, layout, expected):
    field = {"eagle_aux_hidden_state_layer_ids": ids}
    if layout == "speculators":
        write_speculators(tmp_path / "in", speculators_tensors(), **field)
    else:
        write_published(tmp_path / "in", **field)
    assert convert(tmp_path / "in")[0].feature_layers == expected


def test_layers_given_by_hand_win(tmp_path):
    field = {"eagle_aux_hidden_state_layer_ids": [0, 2, 3]}
    write_speculators(tmp_path / "in", speculators_tensors(), **field)
    assert convert(tmp_path / "in", feature_layers=(0, 2, 3))[0].feature_layers == (0, 2, 3)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"eagle_aux_hidden_state_layer_ids": [0, 2, 3]}, r"layers \[0, 2, 3\]"),
        ({"eagle_aux_hidden_state_layer_ids": [2, 3, 9]}, r"layers \[2, 3, 9\]"),
        ({"eagle_aux_hidden_state_layer_ids": [2, 3]}, "reads 3 layers"),
        ({"eagle_aux_hidden_state_layer_ids": "all"}, "'all', not a list"),
        ({"norm_before_residual": "absent"}, "lacks norm_before_residual"),
        ({"norm_before_residual": "yes"}, "norm_before_residual 'yes'"),
        ({"fc_norm": True, "norm_before_fc": True}, "both fc_norm and norm_before_fc"),
        ({"speculators_model_type": "peagle"}, "type 'peagle'"),
        ({"target_hidden_size": 48}, "target_hidden_size 48"),
        ({"transformer_layer_config": None}, "lacks transformer_layer_config"),
        ({"layer": {"num_hidden_layers": 2}}, "num_hidden_layers 2"),
        ({"layer": {"attention_bias": True}}, "attention_bias True"),
        ({"layer": {"mlp_bias": True}}, "mlp_bias True"),
        ({"layer": {"hidden_size": None}}, "lacks hidden_size"),
        ({"layer": {"sliding_window": 64, "layer_types": ["sliding_attention"]}}, "last 64"),
        ({"quantization_config": {"bits": 8}}, "quantization_config"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(tmp_path, changes, match):
    write_speculators(tmp_path / "in", speculators_tensors(), **changes)
    assert is_eagle3(tmp_path / "in")
    with pytest.raises(CheckpointError, match=match):
        convert(tmp_path / "in")
    assert not (tmp_path / "out").exists()


def test_weights_that_differ_go_by_the_files_own_names(tmp_path):
    tensors = speculators_tensors(("norm_before_fc",))
    del tensors["midlayer.hidden_norm.weight"], tensors["lm_head.weight"]
    tensors["midlayer.mlp.up_proj.bias"] = torch.zeros(40)
    write_speculators(tmp_path / "in", tensors)
    with pytest.raises(CheckpointError) as error:
        convert(tmp_path / "in")
    text = str(error.value)
    assert "missing: layers.0.hidden_norm.weight, lm_head.weight" in text
    assert "extra: input_norm.weight, layers.0.mlp.up_proj.bias" in text


def test_two_names_of_one_weight_are_refused(tmp_path):
    tensors = speculators_tensors()
    tensors["model.norm.weight"] = tensors["norm.weight"].clone()
    write_speculators(tmp_path / "in", tensors)
    with pytest.raises(CheckpointError, match="model.norm.weight and norm.weight"):
        convert(tmp_path / "in")


@pytest.mark.parametrize("absent", ["d2t", "t2d"])
def test_one_vocabulary_map_follows_from_the_other(tmp_path, absent):
    tensors = speculators_tensors()
    whole = published_tensors()
    del tensors[absent]
    write_speculators(tmp_path / "in", tensors)
    model = load(convert(tmp_path / "in")[1])
    assert torch.equal(model.d2t, whole["d2t"])
    assert torch.equal(model.t2d, whole["t2d"])


def test_a_reduced_vocabulary_needs_a_map(tmp_path):
    tensors = speculators_tensors()
    del tensors["d2t"], tensors["t2d"]
    write_speculators(tmp_path / "in", tensors)
    with pytest.raises(CheckpointError, match="missing: d2t, t2d"):
        convert(tmp_path / "in")


def test_a_full_vocabulary_needs_no_map_and_may_share_the_targets_head(tmp_path):
    tensors = speculators_tensors()
    for name in ("d2t", "t2d", "lm_head.weight"):
        del tensors[name]
    write_speculators(tmp_path / "in", tensors, draft_vocab_size=VOCAB)
    config, out = convert(tmp_path / "in")
    assert config.target_lm_head
    head = torch.randn(VOCAB, HIDDEN)
    model = load_model(out, embeddings=embeddings(), target_head=head)
    assert torch.equal(model.lm_head.weight, head)
    assert model.to_target_ids(torch.arange(VOCAB)).tolist() == list(range(VOCAB))


def test_embeddings_are_shared_where_they_are_the_targets(tmp_path):
    tensors = speculators_tensors(own_embeddings=True)
    write_speculators(tmp_path / "in", tensors)
    config, out = convert(tmp_path / "in")
    assert config.own_embeddings
    same = tensors["embed_tokens.weight"].clone()
    assert load_model(out, embeddings=same).embed_tokens.weight.data_ptr() == same.data_ptr()
    other = load(out).embed_tokens.weight
    assert torch.equal(other, tensors["embed_tokens.weight"])
    assert not other.requires_grad
    with pytest.raises(CheckpointError, match="input embeddings"):
        load_model(out, embeddings=torch.zeros(VOCAB + 1, HIDDEN))


def test_a_converted_drafter_survives_being_stored_again(tmp_path):
    from specblock.drafters.checkpoint import save_checkpoint

    flags = ("norm_before_residual", "norm_before_fc", "norm_output")
    tensors = speculators_tensors(flags, own_embeddings=True)
    write_speculators(tmp_path / "in", tensors, **dict.fromkeys(flags, True))
    model = load(convert(tmp_path / "in")[1])
    save_checkpoint(model, tmp_path / "again", dtype=torch.float32)
    assert_drafts_like(load(tmp_path / "again"), Reference(tensors, flags=flags), tensors)


@pytest.mark.parametrize("layout", ["speculators", "authors", "specblock"])
def test_a_published_folder_used_as_it_is_names_the_command(tmp_path, layout):
    folder = tmp_path / "in"
    if layout == "speculators":
        write_speculators(folder, speculators_tensors())
    else:
        specblock = {"architectures": ["LlamaForCausalLMSpecBlock"], "draft_vocab_size": DRAFT}
        write_published(folder, **(specblock if layout == "specblock" else {}))
    with pytest.raises(CheckpointError) as error:
        read_config(folder)
    assert f"specblock convert {folder} OUT --target" in str(error.value)
