"""The published checkpoint layout: converted, loaded, and held against an independent network.

The reference computes one (position, slot) entry at a time in float64; it shares no code with us.
"""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.drafters.specblock.published_layout import (
    DRAFT,
    HIDDEN,
    PUBLISHED,
    SLOTS,
    VOCAB,
    Reference,
    close,
    published_mapping,
    write_published,
)

from specblock.drafters.specblock.checkpoint import load_checkpoint, read_extra
from specblock.drafters.specblock.config import SpecBlockConfig
from specblock.drafters.specblock.convert import convert_published, target_layer_count
from specblock.drafters.specblock.forward import run_block, run_trunk
from specblock.errors import CheckpointError, SpecBlockError


@pytest.mark.parametrize(
    ("changes", "drop", "theta"),
    [
        ({}, (), 10000.0),
        (
            {
                "architectures": ["LlamaForCausalLMSpecBlockShift"],
                "rope_theta": 1e6,
                "rms_norm_eps": 1e-6,
                "target_hidden_size": HIDDEN,
                "head_dim": 64,  # not read by the authors' network
                "num_hidden_layers": 3,
            },
            (),
            1e6,
        ),
        ({"rms_norm_eps": 1e-5, "num_key_value_heads": 4}, ("rms_norm_eps",), 10000.0),
    ],
)
def test_converted_network_equals_the_reference(tmp_path, changes, drop, theta):
    weights = write_published(tmp_path / "theirs", changes, drop=drop)
    published = {**PUBLISHED, **changes}
    convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)
    generator = torch.Generator().manual_seed(2)
    embeddings = torch.randn(VOCAB, HIDDEN, generator=generator)
    features = torch.randn(1, 5, 3 * HIDDEN, generator=generator)
    tokens = torch.randint(VOCAB, (1, 5), generator=generator)
    model = load_checkpoint(tmp_path / "ours", embeddings=embeddings)
    reference = Reference(weights, published, embeddings, theta)
    first = reference.first_blocks(features[0], tokens[0])
    trunk = run_trunk(model, features, tokens)
    for i, (hidden, _) in enumerate(first):
        for k in range(SLOTS):
            check_entry(model, reference, trunk.hidden[0, i, k], hidden[k])

    # leaves of every slot, at the first and the last pair, with tokens other than the drafted
    places = [(0, 0), (0, 3), (4, 0), (4, 1), (4, 2), (4, 3)]
    chosen = torch.tensor([[base for base, _ in places]])
    slots = torch.tensor([slot for _, slot in places])
    leaf_tokens = torch.randint(VOCAB, (1, len(places)), generator=generator)
    rows = trunk.condition[:, chosen[0]]
    block = run_block(model, trunk, rows, tokens[:, chosen[0]], chosen)
    condition = block.hidden[0, torch.arange(len(places)), slots][None]
    parents = [(block, slots[None] + 1)]
    second = run_block(model, trunk, condition, leaf_tokens, chosen, parents)
    for index, (base, slot) in enumerate(places):
        hidden = reference.second_block(first, base, slot, int(leaf_tokens[0, index]))
        for k in range(SLOTS):
            check_entry(model, reference, second.hidden[0, index, k], hidden[k])


def check_entry(model, reference, ours, theirs):
    close(ours, theirs)
    logits, normed = model.logits(ours)
    expected, expected_rank = reference.outputs(theirs)
    close(logits, expected)
    close(model.rank_logits(normed, logits), expected_rank)


def test_config_and_weights_of_a_conversion(tmp_path):
    weights = write_published(tmp_path / "theirs", dtype=torch.bfloat16)
    config = convert_published(
        tmp_path / "theirs",
        tmp_path / "ours",
        target_layers=36,
        tokenizer_fingerprint="f" * 16,
        target_name="some/target",
    )
    assert config == SpecBlockConfig.load(tmp_path / "ours")
    assert config == SpecBlockConfig(
        hidden_size=HIDDEN,
        vocab_size=VOCAB,
        target_layers=36,
        feature_layers=(1, 17, 32),
        intermediate_size=40,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_hidden_layers=2,
        block_size=SLOTS,
        draft_vocab_size=DRAFT,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tokenizer_fingerprint="f" * 16,
        target_name="some/target",
        cached_slots=0,
        feature_norm=False,
        slot_rank=0,
        sink=False,
        target_lm_head=False,
    )
    stored = load_file(tmp_path / "ours" / "model.safetensors")
    assert stored.keys() == weights.keys()
    assert all(torch.equal(stored[name], weights[name]) for name in weights)
    assert stored["norm.weight"].dtype == torch.bfloat16
    assert read_extra(tmp_path / "ours")["converted_from"] == "published"


@pytest.mark.parametrize("maps", ["both", "inside", "file"])
def test_the_map_is_found_in_either_place(tmp_path, maps):
    write_published(tmp_path / "theirs", maps=maps)
    convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)
    model = load_checkpoint(tmp_path / "ours", embeddings=torch.zeros(VOCAB, HIDDEN))
    mapping = published_mapping(VOCAB, DRAFT)
    assert torch.equal(model.d2t, mapping["d2t"])
    assert torch.equal(model.to_target_ids(torch.arange(DRAFT)), mapping["t2d"].nonzero()[:, 0])


def test_the_placeholder_inside_gives_way_to_the_file(tmp_path):
    weights = write_published(tmp_path / "theirs")
    weights["d2t"] = torch.zeros(DRAFT, dtype=torch.int64)
    weights["t2d"] = torch.ones(VOCAB, dtype=torch.bool)
    save_file(weights, tmp_path / "theirs" / "model.safetensors")
    convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)
    stored = load_file(tmp_path / "ours" / "model.safetensors")
    assert torch.equal(stored["t2d"], published_mapping(VOCAB, DRAFT)["t2d"])
    os.remove(tmp_path / "theirs" / "vocab_mapping.pt")
    with pytest.raises(CheckpointError, match="vocab_mapping.pt is missing"):
        convert_published(tmp_path / "theirs", tmp_path / "other", target_layers=32)


def test_a_whole_vocabulary_needs_no_map(tmp_path):
    write_published(tmp_path / "theirs", {"draft_vocab_size": VOCAB}, maps="none")
    convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)
    model = load_checkpoint(tmp_path / "ours", embeddings=torch.zeros(VOCAB, HIDDEN))
    assert model.to_target_ids(torch.arange(VOCAB)).tolist() == list(range(VOCAB))
    assert bool(model.t2d.all())


def test_two_different_maps_are_refused(tmp_path):
    write_published(tmp_path / "theirs")
    other = published_mapping(VOCAB, DRAFT, seed=6)
    torch.save(other, tmp_path / "theirs" / "vocab_mapping.pt")
    with pytest.raises(CheckpointError, match="different drafters"):
        convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    write_published(tmp_path / "theirs", maps="inside")
    trap = {"d2t": Malicious(str(tmp_path / "executed"))}
    torch.save(trap, tmp_path / "theirs" / "vocab_mapping.pt")
    with pytest.raises(CheckpointError, match="holds more than tensors") as caught:
        convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)
    assert not (tmp_path / "executed").exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"<html></html>" * 9, b"PK\x03\x04" * 50, b"\x80\x02."])
def test_a_damaged_map_is_refused(tmp_path, content):
    write_published(tmp_path / "theirs")
    (tmp_path / "theirs" / "vocab_mapping.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="vocab_mapping.pt"):
        convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)


@pytest.mark.parametrize("value", [[1, 2], {"d2t": torch.zeros(3)}, {"d2t": 1, "t2d": 2}])
def test_a_map_without_its_tensors_is_refused(tmp_path, value):
    write_published(tmp_path / "theirs")
    torch.save(value, tmp_path / "theirs" / "vocab_mapping.pt")
    with pytest.raises(CheckpointError, match="does not hold the tensors d2t and t2d"):
        convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)


def test_a_map_of_another_size_or_order_is_refused(tmp_path):
    write_published(tmp_path / "theirs", maps="file")
    mapping = published_mapping(VOCAB, DRAFT - 1)
    torch.save(mapping, tmp_path / "theirs" / "vocab_mapping.pt")
    with pytest.raises(CheckpointError, match=r"d2t is \[27\] instead of \[28\]"):
        convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)
    mapping = published_mapping(VOCAB, DRAFT)
    mapping["d2t"] = mapping["d2t"] + torch.arange(DRAFT)  # ids instead of offsets
    torch.save(mapping, tmp_path / "theirs" / "vocab_mapping.pt")
    with pytest.raises(CheckpointError, match="contradict each other"):
        convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)


def test_wrong_names_and_shapes_are_listed(tmp_path):
    weights = write_published(tmp_path / "theirs")
    del weights["shift_proj.0.weight"]
    weights["input_layer.fuse.bias"] = torch.zeros(HIDDEN)
    weights["rank_head.0.weight"] = torch.zeros(256, HIDDEN + 11)
    weights["t2d"] = torch.ones(VOCAB - 1, dtype=torch.bool)
    save_file(weights, tmp_path / "theirs" / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)
    message = str(caught.value)
    assert "missing: shift_proj.0.weight" in message
    assert "extra: input_layer.fuse.bias" in message
    assert "rank_head.0.weight is [256, 43] instead of [256, 47]" in message
    assert "t2d is [59] instead of [60]" in message
    assert not (tmp_path / "ours").exists()


def test_embeddings_in_the_file_are_the_targets_and_left_out(tmp_path):
    weights = write_published(tmp_path / "theirs")
    weights["input_layer.embed_tokens.weight"] = torch.zeros(VOCAB, HIDDEN)
    save_file(weights, tmp_path / "theirs" / "model.safetensors")
    convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)
    assert not [n for n in load_file(tmp_path / "ours" / "model.safetensors") if "embed" in n]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_hidden_size": 64}, "hidden size 32 differs from its target's 64"),
        ({"architectures": ["LlamaForCausalLMEagle3"]}, "LlamaForCausalLMEagle3"),
        ({"architectures": None}, "not a published SpecBlock drafter"),
        ({"drafter_type": "specblock"}, "in our format already"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3"),
        ({"num_attention_heads": 5}, "do not divide evenly"),
        ({"intermediate_size": "40"}, "intermediate_size '40'"),
        ({"diffspec_draft_token_num": 3}, r"position_queries.weight is \[4, 32\]"),
        ({"diffspec_draft_token_num": None}, r"position_queries.weight is \[4, 32\]"),
        ({"draft_vocab_size": 27}, r"lm_head.weight is \[28, 32\] instead of \[27, 32\]"),
    ],
)
def test_what_cannot_be_converted_is_refused(tmp_path, changes, words):
    write_published(tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(CheckpointError, match=words):
        convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)


def test_the_number_of_target_layers_is_never_guessed(tmp_path):
    write_published(tmp_path / "theirs")
    with pytest.raises(CheckpointError, match="--target-layers"):
        convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=None)
    with pytest.raises(CheckpointError, match="too shallow"):
        convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=5)
    config = convert_published(
        tmp_path / "theirs", tmp_path / "ours", target_layers=5, feature_layers=(0, 2, 4)
    )
    assert config.feature_layers == (0, 2, 4)


def test_missing_files_and_places(tmp_path):
    with pytest.raises(CheckpointError, match="config.json is missing"):
        convert_published(tmp_path / "nowhere", tmp_path / "ours", target_layers=32)
    write_published(tmp_path / "theirs")
    with pytest.raises(CheckpointError, match="Converting in place"):
        convert_published(tmp_path / "theirs", tmp_path / "theirs", target_layers=32)
    with pytest.raises(SpecBlockError, match="cannot be written"):
        convert_published(
            tmp_path / "theirs", tmp_path / "theirs" / "config.json", target_layers=32
        )
    os.remove(tmp_path / "theirs" / "model.safetensors")
    with pytest.raises(CheckpointError, match="model.safetensors is missing"):
        convert_published(tmp_path / "theirs", tmp_path / "ours", target_layers=32)


def test_layers_of_a_target(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"num_hidden_layers": 36}))
    assert target_layer_count(path) == target_layer_count(tmp_path) == 36
    path.write_text(json.dumps({"text_config": {"num_hidden_layers": 26}}))
    assert target_layer_count(tmp_path) == 26
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        target_layer_count(tmp_path)
