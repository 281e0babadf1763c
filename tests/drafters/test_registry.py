"""Every kind of drafter is stored, found again and loaded through one door."""

import json

import pytest
import torch
from tests.tiny import make_target

from specblock.drafters.checkpoint import save_checkpoint
from specblock.drafters.eagle3.config import Eagle3Config
from specblock.drafters.parallel.config import ParallelConfig
from specblock.drafters.registry import KINDS, load_model, make_drafter, read_config
from specblock.drafters.specblock.config import SpecBlockConfig
from specblock.drafters.specblock.network import vocabulary_map
from specblock.engine.loading import load_drafter
from specblock.errors import CheckpointError, ConfigError

SHAPE = {
    "hidden_size": 32,
    "vocab_size": 97,
    "target_layers": 6,
    "feature_layers": (0, 2, 4),
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "draft_vocab_size": 60,
}
DEPARTURES = {"feature_norm": True, "sink": True}
CONFIGS = {
    "specblock": SpecBlockConfig(**SHAPE),
    "eagle3": Eagle3Config(**SHAPE, rope_scaling={"rope_type": "linear", "factor": 2.0}),
    "eagle3 departures": Eagle3Config(**SHAPE, **DEPARTURES),
    "eagle3 target head": Eagle3Config(**SHAPE, target_lm_head=True),
    "parallel": ParallelConfig(**SHAPE),
    "parallel departures": ParallelConfig(**SHAPE, **DEPARTURES, target_lm_head=True, positions=2),
}


def network(config):
    torch.manual_seed(0)
    model = KINDS[config.drafter_type].network(config)
    d2t, t2d = vocabulary_map(torch.randperm(97)[:60], 97)
    model.d2t.copy_(d2t)
    model.t2d.copy_(t2d)
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_what_is_saved_is_loaded(config, tmp_path):
    model = network(config)
    save_checkpoint(model, tmp_path, dtype=torch.float32)
    assert read_config(tmp_path) == config
    table = next(p for name, p in model.named_parameters() if name.endswith("embed_tokens.weight"))
    head = torch.randn(97, 32)
    loaded = load_model(tmp_path, embeddings=table, target_head=head)
    assert type(loaded) is type(model)
    expected = model.state_dict()
    if config.target_lm_head:
        expected["lm_head.weight"] = head[model.t2d]
        assert not loaded.lm_head.weight.requires_grad
    assert loaded.state_dict().keys() == expected.keys()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("name", ["specblock", "eagle3", "parallel"])
def test_the_engine_loads_every_kind(name, tmp_path):
    save_checkpoint(network(CONFIGS[name]), tmp_path)
    drafter = load_drafter(tmp_path, make_target("llama"), None, blocks=1, max_nodes=7)
    assert type(drafter) is KINDS[name].drafter
    assert drafter.max_nodes == 7
    assert drafter.feature_layers == (0, 2, 4)
    assert drafter.shape_name().startswith(name)


def test_weights_of_one_kind_are_not_another(tmp_path):
    save_checkpoint(network(CONFIGS["eagle3"]), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["parallel"].to_dict()))
    with pytest.raises(CheckpointError, match="missing: .*extra: .*midlayer"):
        load_model(tmp_path, embeddings=torch.zeros(97, 32))


@pytest.mark.parametrize("kind", ["medusa", None, ["eagle3"]])
def test_an_unknown_type_is_refused_with_the_known_ones(kind, tmp_path):
    config = {**CONFIGS["eagle3"].to_dict(), "drafter_type": kind}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="'specblock', 'eagle3', 'parallel'"):
        read_config(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", "\udcff"])
def test_no_config_is_no_drafter(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(tmp_path)


def test_a_setting_of_another_kind_is_refused():
    with pytest.raises(ConfigError, match=r"no setting blocks; it has depth, top_k"):
        make_drafter(network(CONFIGS["eagle3"]), blocks=2)
    assert make_drafter(network(CONFIGS["eagle3"]), top_k=1).top_k == 1


def test_bad_values_are_refused():
    with pytest.raises(CheckpointError, match="positions is 0"):
        ParallelConfig(**SHAPE, positions=0)
    with pytest.raises(CheckpointError, match="'yarn'"):
        Eagle3Config(**SHAPE, rope_scaling={"rope_type": "yarn"})
    with pytest.raises(CheckpointError, match="convert the checkpoint"):
        Eagle3Config(**SHAPE, feature_convention="input_of_decoder_layer")
