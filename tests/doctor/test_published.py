"""Folders as others publish them are examined before they are converted."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.doctor.test_doctor import wrong
from tests.doctor.world import LAYERS, World

from specblock.drafters.eagle3.published_config import LAYERS as IDS

OURS = ("drafter_type", "target_layers", "feature_layers", "feature_convention", "sink")
OURS += ("target_lm_head", "tokenizer_fingerprint", "target_name", "own_embeddings", "qk_norm")
OURS += ("feature_norm", "norm_before_fc", "norm_output", "norm_before_residual")


def publish(world, folder, *, speculators=False, ids=(2, 4, 5), edit=lambda tensors: None):
    """The world's drafter in the authors' layout, or in that of speculators."""
    config = {k: v for k, v in world.model.config.to_dict().items() if k not in OURS}
    tensors = load_file(world.folder / "model.safetensors")
    edit(tensors)
    special = {"draft_vocab_size": config.pop("draft_vocab_size"), IDS: list(ids)}
    if speculators:
        tensors = {name.replace("midlayer.", "layers.0."): t for name, t in tensors.items()}
        special |= {"speculators_model_type": "eagle3", "norm_before_residual": False}
        config = {"transformer_layer_config": config}
    folder.mkdir()
    written = {"architectures": ["LlamaForCausalLMEagle3"], **config, **special}
    (folder / "config.json").write_text(json.dumps(written))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.mark.parametrize("speculators", [False, True])
def test_a_sound_folder_is_told_how_to_convert(world, tmp_path, speculators):
    folder = publish(world, tmp_path / "published", speculators=speculators)
    found = world.examine(folder)
    assert not wrong(found)
    files = found["drafter files"]
    assert files.verdict == "warning"
    assert f"specblock convert {folder} OUT --target counting" in files.advice
    assert found["feature layers"].figures["layers"] == list(LAYERS)
    assert found["feature layers"].figures["published"] == [2, 4, 5]
    assert found["first token"].figures["agreement"] > 0.9


def test_ids_that_count_outputs_are_measured(world, tmp_path):
    found = world.examine(publish(world, tmp_path / "published", ids=LAYERS))
    assert wrong(found) == ["layers, measured", "first token"]
    assert "--feature-layers 1,3,4" in found["layers, measured"].advice


def test_ids_beyond_the_target(world, tmp_path):
    found = world.examine(publish(world, tmp_path / "published", ids=(2, 4, 9)))
    assert wrong(found) == ["feature layers"]


def test_maps_that_contradict_each_other(world, tmp_path):
    def swap(tensors):
        tensors["d2t"][:2] += torch.tensor([1, -1])

    found = world.examine(publish(world, tmp_path / "published", edit=swap))
    assert wrong(found) == ["vocabulary map"]


def test_a_weight_that_is_missing(world, tmp_path):
    found = world.examine(
        publish(world, tmp_path / "published", edit=lambda tensors: tensors.pop("fc.weight"))
    )
    assert wrong(found) == ["drafter files"]
