"""Saving and loading drafters, and refusing those that do not fit."""

import dataclasses
import errno
import json
import os

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from specblock import storage
from specblock.drafters import checkpoint
from specblock.drafters.specblock.checkpoint import load_checkpoint, read_extra, save_checkpoint
from specblock.drafters.specblock.config import SpecBlockConfig
from specblock.drafters.specblock.network import SpecBlockModel, vocabulary_map
from specblock.errors import CheckpointError, SpecBlockError

TINY = SpecBlockConfig(
    hidden_size=16,
    vocab_size=40,
    target_layers=8,
    feature_layers=(1, 3, 4),
    intermediate_size=24,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    draft_vocab_size=24,
    tokenizer_fingerprint="0123456789abcdef",
    target_name="toy",
)
EVERYTHING = {"cached_slots": 1, "feature_norm": True, "slot_rank": 3, "sink": True}


def tiny_model(**changes):
    torch.manual_seed(0)
    model = SpecBlockModel(dataclasses.replace(TINY, **changes))
    chosen = torch.randperm(40)[:24]
    model.d2t, model.t2d = vocabulary_map(chosen, 40)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def saved(tmp_path):
    """A model, and the folder it was saved to in fp32."""
    model = tiny_model()
    save_checkpoint(model, tmp_path / "drafter", dtype=torch.float32)
    return model, tmp_path / "drafter"


def embeddings(model):
    return model.input_layer.embed_tokens.weight


def reload(model, folder, **options):
    return load_checkpoint(folder, embeddings=embeddings(model), **options)


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("changes", [{}, EVERYTHING])
def test_what_is_saved_is_loaded(tmp_path, changes):
    model = tiny_model(**changes)
    save_checkpoint(model, tmp_path / "deep" / "drafter", dtype=torch.float32)
    loaded = reload(model, tmp_path / "deep" / "drafter")
    assert loaded.config == model.config
    assert not loaded.training
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name
    trainable = {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert trainable == {name for name, p in model.named_parameters() if p.requires_grad}


def test_dtypes(tmp_path):
    model = tiny_model()
    save_checkpoint(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert {str(t.dtype) for t in stored.values()} == {
        "torch.bfloat16",
        "torch.int64",
        "torch.bool",
    }
    assert model.norm.weight.dtype == torch.float32
    loaded = reload(model, tmp_path, dtype=torch.float64)
    assert {p.dtype for p in loaded.parameters()} == {torch.float64}
    assert (loaded.d2t.dtype, loaded.t2d.dtype) == (torch.int64, torch.bool)
    torch.testing.assert_close(loaded.norm.weight.float(), model.norm.weight, atol=0, rtol=2**-8)


def test_embeddings_are_never_stored_and_shared_when_loaded(saved):
    model, folder = saved
    assert not [n for n in load_file(folder / "model.safetensors") if "embed" in n]
    loaded = reload(model, folder)
    assert embeddings(loaded).data_ptr() == embeddings(model).data_ptr()
    assert not embeddings(loaded).requires_grad


def test_the_targets_head_is_not_stored(tmp_path):
    model = tiny_model(target_lm_head=True)
    save_checkpoint(model, tmp_path, dtype=torch.float32)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    head = torch.randn(40, 16)
    loaded = reload(model, tmp_path, target_head=head)
    ids = loaded.to_target_ids(torch.arange(24))
    assert torch.equal(loaded.lm_head.weight, head[ids])
    assert not loaded.lm_head.weight.requires_grad
    with pytest.raises(CheckpointError, match="needs the target's output head"):
        reload(model, tmp_path)
    with pytest.raises(CheckpointError, match=r"output head .*\[41, 16\].*\[40, 16\]"):
        reload(model, tmp_path, target_head=torch.randn(41, 16))


def test_a_drafter_for_another_target_is_refused_by_its_shapes(saved):
    with pytest.raises(CheckpointError, match=r"\[50, 8\].*\[40, 16\]"):
        load_checkpoint(saved[1], embeddings=torch.zeros(50, 8))


def test_all_wrong_names_and_shapes_are_listed(saved):
    model, folder = saved

    def spoil(tensors):
        del tensors["norm.weight"]
        del tensors["layers.1.mlp.up_proj.weight"]
        tensors["unheard.of"] = torch.zeros(2)
        tensors["lm_head.weight"] = torch.zeros(23, 16)
        tensors["t2d"] = tensors["t2d"].to(torch.uint8)

    rewrite(folder, spoil)
    with pytest.raises(CheckpointError) as caught:
        reload(model, folder)
    message = str(caught.value)
    assert "missing: layers.1.mlp.up_proj.weight, norm.weight" in message
    assert "extra: unheard.of" in message
    assert "mis-shaped: lm_head.weight is [23, 16] instead of [24, 16]" in message
    assert "of a wrong type: t2d is uint8 instead of bool" in message


def test_stored_embeddings_are_an_extra_name(saved):
    model, folder = saved
    rewrite(folder, lambda t: t.update({"input_layer.embed_tokens.weight": torch.zeros(40, 16)}))
    with pytest.raises(CheckpointError, match="extra: input_layer.embed_tokens.weight"):
        reload(model, folder)


@pytest.mark.parametrize("cut", [0, 4, 20, 2000, -1])
def test_a_half_copied_file_is_one_sentence(saved, cut):
    model, folder = saved
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match="damaged or only half copied") as caught:
        reload(model, folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"<html>not found</html>" * 9, b"\x80\x02" * 99])
def test_another_kind_of_file_is_one_sentence(saved, content):
    model, folder = saved
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        reload(model, folder)


def test_missing_files(saved):
    model, folder = saved
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model.safetensors is missing"):
        reload(model, folder)
    with pytest.raises(CheckpointError, match="There is no drafter"):
        reload(model, folder / "elsewhere")
    with pytest.raises(CheckpointError):
        reload(model, folder / "config.json")


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "16"},
        {"hidden_size": None},
        {"intermediate_size": -3},
        {"feature_layers": 3},
        {"feature_layers": None},
        {"num_hidden_layers": 1.5},
    ],
)
def test_a_config_of_nonsense_is_refused(saved, change):
    model, folder = saved
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, **change}))
    with pytest.raises(CheckpointError, match="config.json"):
        reload(model, folder)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "3", "null"])
def test_a_config_that_is_no_config_is_refused(saved, text):
    model, folder = saved
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="config.json"):
        reload(model, folder)


def test_a_config_of_other_weights_is_refused(saved):
    model, folder = saved
    other = dataclasses.replace(TINY, rope_theta=5e5)
    (folder / "config.json").write_text(json.dumps(other.to_dict()))
    with pytest.raises(CheckpointError, match=r"rope_theta is 500000.0 there but 10000.0 in"):
        reload(model, folder)
    renamed = dataclasses.replace(TINY, target_name="toy-2", tokenizer_fingerprint="")
    (folder / "config.json").write_text(json.dumps(renamed.to_dict()))
    assert reload(model, folder).config == renamed


def test_contradicting_vocabulary_maps_are_refused(saved):
    model, folder = saved

    def shift(tensors):
        tensors["d2t"][5] += 1

    rewrite(folder, shift)
    with pytest.raises(CheckpointError, match="contradict each other: draft token 5 is"):
        reload(model, folder)
    rewrite(folder, lambda t: t["t2d"].fill_(True))
    with pytest.raises(CheckpointError, match="t2d marks 40 tokens, d2t lists 24"):
        reload(model, folder)
    model.d2t[0] += 1
    with pytest.raises(CheckpointError, match="contradict"):
        save_checkpoint(model, folder)


def test_extra_is_remembered(saved):
    model, folder = saved
    assert read_extra(folder) == {}
    save_checkpoint(model, folder, extra={"steps": 12, "data": ["a"]})
    assert read_extra(folder) == {"steps": 12, "data": ["a"]}


def break_save(*_args, **_kwargs):
    raise KeyboardInterrupt


def break_disk(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("module", "name", "how", "error"),
    [
        (checkpoint, "save_file", break_save, KeyboardInterrupt),
        (checkpoint, "save_file", break_disk, SpecBlockError),
        (storage, "fsync_path", break_save, KeyboardInterrupt),
        (storage, "fsync_path", break_disk, SpecBlockError),
    ],
)
def test_a_failed_save_leaves_the_former_checkpoint(saved, monkeypatch, module, name, how, error):
    model, folder = saved
    files = sorted(p.name for p in folder.iterdir())
    other = tiny_model()
    with torch.no_grad():
        other.norm.weight.add_(1)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, how)
        with pytest.raises(error):
            save_checkpoint(other, folder, dtype=torch.float32)
    assert sorted(p.name for p in folder.iterdir()) == files
    assert torch.equal(reload(model, folder).norm.weight, model.norm.weight)


def test_a_full_disk_is_told(saved, monkeypatch):
    monkeypatch.setattr(checkpoint, "save_file", break_disk)
    with pytest.raises(SpecBlockError, match="disk is full"):
        save_checkpoint(saved[0], saved[1])


def test_a_full_disk_is_told_when_only_the_text_says_so(saved, monkeypatch):
    def fail(*_args, **_kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(SpecBlockError, match="disk is full"):
        save_checkpoint(saved[0], saved[1])


def test_a_file_in_the_place_of_the_folder_is_told(saved):
    with pytest.raises(SpecBlockError, match="cannot be written"):
        save_checkpoint(saved[0], saved[1] / "config.json")


def test_what_a_killed_save_left_behind_does_no_harm(saved):
    model, folder = saved
    (folder / ".model.safetensors.123.tmp").write_bytes(b"half")
    assert reload(model, folder).config == TINY
