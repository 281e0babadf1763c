"""Exported EAGLE-3 drafters: published files come back to the byte, ours load as they were."""

import json

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from specblock.cli.main import app
from specblock.drafters.compress import store_in_eight_bits
from specblock.drafters.config import paper_feature_layers
from specblock.drafters.eagle3.convert import convert_eagle3
from specblock.drafters.registry import load_model
from specblock.errors import CheckpointError, ConfigError
from specblock.integrations.export.eagle3 import export_eagle3
from tests.drafters.eagle3.published_eagle3 import LLAMA3, embeddings, write_published
from tests.drafters.eagle3.published_speculators import speculators_tensors, write_speculators
from tests.integrations.export.world import eagle3_config, save_drafter, save_target
from tests.tiny import VOCABULARY

FILES = ("config.json", "model.safetensors")


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return save_target(tmp_path_factory.mktemp("target") / "tiny-qwen3")


def there_and_back(source, tmp_path, layout, **options):
    convert_eagle3(source, tmp_path / "ours", target_layers=8, **options)
    return export_eagle3(tmp_path / "ours", tmp_path / "back", layout=layout)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
@pytest.mark.parametrize("maps", [torch.int64, torch.int32])
@pytest.mark.parametrize("more", [{}, {"eagle_aux_hidden_state_layer_ids": [2, 5, 7]}])
def test_the_authors_layout_comes_back_to_the_byte(tmp_path, metadata, maps, more):
    from safetensors.torch import save_file

    def edit(tensors):
        tensors["d2t"] = tensors["d2t"].to(maps)
        tensors["embed_tokens.weight"] = embeddings()

    tensors = write_published(tmp_path / "in", edit=edit, rope_scaling=LLAMA3, **more)
    save_file(tensors, tmp_path / "in" / "model.safetensors", metadata=metadata)
    there_and_back(tmp_path / "in", tmp_path, "eagle3")
    for name in FILES:
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_speculators_come_back_to_the_byte_but_for_copies_of_the_target(tmp_path, dtype, prefix):
    flags = ("norm_before_residual", "norm_before_fc", "norm_output")
    tensors = speculators_tensors(flags, dtype=dtype, head_norms=True, own_embeddings=True)
    write_speculators(tmp_path / "in", tensors, prefix=prefix, **dict.fromkeys(flags, True))
    there_and_back(tmp_path / "in", tmp_path, "speculators")
    config = "config.json"
    assert (tmp_path / "back" / config).read_bytes() == (tmp_path / "in" / config).read_bytes()
    before, after = (load_file(tmp_path / at / "model.safetensors") for at in ("in", "back"))
    del before["verifier_norm.weight"]
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype
        assert torch.equal(value, after[name])


def test_layers_overridden_when_converting_are_not_lost(tmp_path, target):
    write_published(tmp_path / "in")
    convert_eagle3(tmp_path / "in", tmp_path / "ours", target_layers=8, feature_layers=(0, 2, 3))
    with pytest.raises((ConfigError, CheckpointError)):  # the old config would be a lie
        export_eagle3(tmp_path / "ours", tmp_path / "back", layout="eagle3")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layout", ["eagle3", "speculators"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_lm_head": True},
        {"norm_before_residual": True, "norm_before_fc": True},
        {"qk_norm": True, "own_embeddings": True, "norm_output": True},
        {"feature_layers": (0, 3, 5)},  # as inputs these are the paper's, counted as outputs
        {"feature_layers": (3, 6, 8), "rope_scaling": LLAMA3},
    ],
)
def test_what_is_exported_reads_back_as_it_was(tmp_path, target, options, layout, packed):
    from specblock.target.loading.zoo import load_model as load_target

    save_drafter(tmp_path / "first", target, **options)
    ours = tmp_path / "first"
    if packed:
        store_in_eight_bits(ours, ours := tmp_path / "packed")
    export_eagle3(ours, tmp_path / "out", layout=layout, dtype="float32")
    config = convert_eagle3(tmp_path / "out", tmp_path / "again", target_layers=10)
    wanted = eagle3_config(target, **{**options, "target_lm_head": False})
    names = ("tokenizer_fingerprint", "target_name")
    fields = {name: getattr(config, name) for name in vars(wanted) if name not in names}
    assert fields == {name: getattr(wanted, name) for name in fields}
    model = load_target(target)[0]
    given = {
        "embeddings": model.get_input_embeddings().weight,
        "target_head": model.get_output_embeddings().weight,
    }
    first = load_model(ours, **given).state_dict()
    for name, value in load_model(tmp_path / "again", **given).state_dict().items():
        assert torch.equal(value, first[name]), name


def test_both_counts_of_the_layers_and_the_length_of_the_target_are_written(tmp_path, target):
    save_drafter(tmp_path / "ours", target)
    export_eagle3(tmp_path / "ours", tmp_path / "out", layout="eagle3")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["eagle_aux_hidden_state_layer_ids"] == [2, 5, 7]  # vLLM: what enters a layer
    nested = config["eagle_config"]["eagle_aux_hidden_state_layer_ids"]
    assert nested == [1, 4, 6]  # SGLang: what leaves it
    assert config["max_position_embeddings"] == 256


@pytest.mark.parametrize(
    ("options", "layout", "said"),
    [
        ({"sink": True}, "eagle3", "sink"),
        ({"sink": True}, "speculators", "sink"),
        ({"feature_norm": True}, "eagle3", "feature_norm"),
        ({"feature_norm": True, "sink": True}, "eagle3", "sink.* and .*feature_norm"),
    ],
)
def test_what_no_engine_has_is_refused_by_name(tmp_path, target, options, layout, said):
    save_drafter(tmp_path / "ours", target, **options)
    with pytest.raises(CheckpointError, match=f"{said}.*--for-engines"):
        export_eagle3(tmp_path / "ours", tmp_path / "out", layout=layout)
    assert not (tmp_path / "out").exists()


def test_feature_norms_are_speculators_fc_norm(tmp_path, target):
    save_drafter(tmp_path / "ours", target, feature_norm=True)
    export_eagle3(tmp_path / "ours", tmp_path / "out", layout="speculators")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["fc_norm"] is True
    assert convert_eagle3(tmp_path / "out", tmp_path / "b", target_layers=10).feature_norm


def test_other_layers_than_the_papers_come_with_a_note(tmp_path, target):
    save_drafter(tmp_path / "papers", target, feature_layers=paper_feature_layers(10))
    assert export_eagle3(tmp_path / "papers", tmp_path / "a", layout="eagle3") == []
    save_drafter(tmp_path / "other", target, feature_layers=(3, 6, 8))
    (note,) = export_eagle3(tmp_path / "other", tmp_path / "b", layout="eagle3")
    assert "llama.cpp" in note


def test_the_command_and_what_it_refuses(tmp_path, target):
    save_drafter(tmp_path / "ours", target)
    out = tmp_path / "out"
    command = ["export", str(tmp_path / "ours"), str(out), "--format"]
    result = CliRunner().invoke(app, [*command, "speculators"])
    assert result.exit_code == 0, result.output
    verifier = json.loads((out / "config.json").read_text())["speculators_config"]["verifier"]
    assert verifier["name_or_path"] == str(target)
    result = CliRunner().invoke(app, [*command, "eagle3", "--dtype", "int8"])
    assert result.exit_code == 2
    assert "float32, bfloat16, float16" in result.output
    with pytest.raises(ConfigError, match="in place"):
        export_eagle3(tmp_path / "ours", tmp_path / "ours", layout="eagle3")
    other = save_target(tmp_path / "other", "llama", vocab_size=VOCABULARY + 1)
    with pytest.raises(CheckpointError, match="vocabulary size"):
        export_eagle3(tmp_path / "ours", out, layout="eagle3", target=str(other))
