"""The public EAGLE-3 layout: converted, loaded, and held against an independent network.

The reference computes one entry at a time in float64, straight from the published tensors; it
shares no code with the package.
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from tests.drafters.eagle3.published_eagle3 import (
    DIM,
    HIDDEN,
    LLAMA3,
    PUBLISHED,
    VOCAB,
    Reference,
    embeddings,
    write_published,
)

from specblock.drafters.eagle3.convert import convert_eagle3, is_eagle3
from specblock.drafters.eagle3.propose import Eagle3Drafter
from specblock.drafters.layers import Rotary
from specblock.drafters.proposing.together import alone
from specblock.drafters.registry import load_model, read_config
from specblock.errors import CheckpointError


def convert(tmp_path, **options):
    out = tmp_path / "out"
    config = convert_eagle3(tmp_path / "in", out, target_layers=8, **options)
    return config, out


@pytest.mark.parametrize(
    ("changes", "theta", "scaling"),
    [
        ({}, 10000.0, None),
        ({"rope_theta": 500.0, "rope_scaling": LLAMA3}, 500.0, LLAMA3),
        ({"rope_parameters": {"rope_theta": 300.0, **LLAMA3}}, 300.0, LLAMA3),
        ({"rope_parameters": {"rope_theta": 300.0, "rope_type": "default"}}, 300.0, None),
    ],
)
def test_a_chain_of_levels_equals_the_reference(tmp_path, changes, theta, scaling):
    tensors = write_published(tmp_path / "in", **changes)
    _, out = convert(tmp_path)
    model = load_model(out, embeddings=embeddings())
    drafter = Eagle3Drafter(model, depth=3)
    generator = torch.Generator().manual_seed(7)
    features = torch.randn(9, 3 * HIDDEN, generator=generator)
    tokens = torch.randint(0, VOCAB, (9,), generator=generator)
    drafter.reset(20)
    drafter.prefill(features, tokens)
    level = alone(drafter.first_level())

    reference = Reference(tensors, theta, scaling)
    seen = []
    for i in range(9):
        y, entry = reference.step(reference.first(features[i]), tokens[i], i, seen)
        seen.append(entry)
    for depth in range(1, 4):
        expected = reference.log_probs(y)
        ids, log_probs = level.found.tokens, level.found.log_probs
        best = expected.topk(10)
        target_ids = best.indices + tensors["d2t"][best.indices]
        assert ids[0].tolist() == target_ids.tolist()
        torch.testing.assert_close(log_probs[0].double(), best.values, atol=1e-4, rtol=1e-4)
        token = int(target_ids[depth])
        level = alone(drafter.next_level(level, torch.tensor([0]), torch.tensor([token])))
        y, entry = reference.step(y, token, 8 + depth, seen)
        seen.append(entry)


def test_llama3_scaling_is_transformers_own():
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=1,
        head_dim=64,
        rope_theta=5e5,
        max_position_embeddings=2048,
        rope_scaling={**LLAMA3, "original_max_position_embeddings": 256},
    )
    positions = torch.tensor([0, 1, 7, 300, 1900])
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    scaling = {**LLAMA3, "original_max_position_embeddings": 256}
    own = Rotary(64, 5e5, scaling)(positions)
    torch.testing.assert_close(own[0][:, 0], cos[0], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(own[1][:, 0], sin[0], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("pickled", [False, True])
def test_both_file_kinds_round_trip(tmp_path, pickled):
    def edit(tensors):
        tensors["embed_tokens.weight"] = embeddings()
        tensors["d2t"] = tensors["d2t"].int()

    tensors = write_published(tmp_path / "in", pickled=pickled, edit=edit)
    config, out = convert(tmp_path, tokenizer_fingerprint="ab", target_name="toy")
    assert read_config(out) == config
    assert (config.feature_layers, config.head_dim, config.target_name) == ((1, 3, 4), DIM, "toy")
    stored = load_file(out / "model.safetensors")
    assert stored.keys() == tensors.keys()
    assert stored["d2t"].dtype == torch.int64
    for name, value in stored.items():
        assert torch.equal(value, tensors[name].to(value.dtype)), name


def test_without_a_draft_vocabulary_of_its_own_the_map_is_the_identity(tmp_path):
    def edit(tensors):
        tensors["d2t"].zero_()
        tensors["t2d"].zero_()

    write_published(tmp_path / "in", draft_vocab_size=VOCAB, edit=edit)
    model = load_model(convert(tmp_path)[1], embeddings=embeddings())
    assert model.to_target_ids(torch.arange(VOCAB)).tolist() == list(range(VOCAB))


def test_names_and_shapes_that_differ_are_all_listed(tmp_path):
    def edit(tensors):
        del tensors["norm.weight"]
        tensors["layers.0.extra"] = torch.zeros(1)
        tensors["fc.weight"] = torch.zeros(HIDDEN, 2 * HIDDEN)

    write_published(tmp_path / "in", edit=edit)
    with pytest.raises(CheckpointError) as error:
        convert(tmp_path)
    for text in ("missing: norm.weight", "extra: layers.0.extra", "fc.weight is [24, 48]"):
        assert text in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"target_hidden_size": 48}, "target_hidden_size 48"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"num_hidden_layers": 2}, "num_hidden_layers 2"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "low_freq_factor"),
        ({"vocab_size": "absent"}, "lacks vocab_size"),
        ({"num_attention_heads": -1}, "num_attention_heads -1"),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path, changes, match):
    write_published(tmp_path / "in", **changes)
    with pytest.raises(CheckpointError, match=match):
        convert(tmp_path)


def test_layers_have_to_be_known_and_files_whole(tmp_path):
    write_published(tmp_path / "in", pickled=True)
    with pytest.raises(CheckpointError, match="--target-layers"):
        convert_eagle3(tmp_path / "in", tmp_path / "out", target_layers=None)
    with pytest.raises(CheckpointError, match="in place"):
        convert_eagle3(tmp_path / "in", tmp_path / "in", target_layers=8)
    (tmp_path / "in" / "pytorch_model.bin").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="damaged"):
        convert(tmp_path)
    (tmp_path / "in" / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors is missing"):
        convert(tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"architectures": ["LlamaForCausalLM"]}, True),
        ({"architectures": ["LlamaForCausalLM"], "draft_vocab_size": "absent"}, False),
        ({"architectures": ["LlamaForCausalLMSpecBlock"]}, False),
        ({"drafter_type": "eagle3"}, False),
    ],
)
def test_which_checkpoints_are_eagle3(tmp_path, changes, expected):
    folder = tmp_path / "in"
    folder.mkdir()
    assert not is_eagle3(folder)
    config = {key: value for key, value in {**PUBLISHED, **changes}.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(config))
    assert is_eagle3(folder) is expected


def test_the_command_takes_both_layouts(tmp_path):
    from typer.testing import CliRunner

    from specblock.cli.main import app

    write_published(tmp_path / "in")
    arguments = ["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--target-layers", "8"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert read_config(tmp_path / "out").drafter_type == "eagle3"
