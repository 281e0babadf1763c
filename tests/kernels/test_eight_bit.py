"""Drafters stored in 8 bits: what is lost, what is refused, and that they decode as before."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.drafters.test_checkpoint import embeddings, reload, tiny_model

from specblock.drafters.checkpoint import read_extra, save_checkpoint
from specblock.drafters.compress import store_in_eight_bits
from specblock.errors import CheckpointError
from specblock.kernels import eight_bit
from specblock.kernels.eight_bit import pack, unpack


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch):
    monkeypatch.setattr(eight_bit, "_SMALL", 1)


@pytest.fixture
def packed(tmp_path):
    """A model, and a folder that holds it in 8 bits."""
    model = tiny_model(slot_rank=3, sink=True)
    save_checkpoint(model, tmp_path / "whole", dtype=torch.float32, extra={"steps": 3})
    store_in_eight_bits(tmp_path / "whole", tmp_path / "packed")
    return model, tmp_path / "packed"


@pytest.mark.parametrize(("width", "groups"), [(50, 1), (96, 3)])
def test_a_weight_is_off_by_half_a_step_of_its_group(width, groups):
    rows = torch.randn(7, width, generator=torch.Generator().manual_seed(0))
    rows = rows * torch.logspace(-6, 3, 7)[:, None]
    rows[:, width // 2] *= 100  # an outlier costs its own group alone
    packed = pack({"w": rows})
    assert packed["w.scale"].shape == (7, groups)
    own = rows.unflatten(-1, (groups, -1))
    back = unpack(packed)["w"].unflatten(-1, (groups, -1))
    step = own.abs().amax(-1, keepdim=True) / 127
    assert ((back - own).abs() <= step * 0.5001).all()
    torch.testing.assert_close(back.abs().amax(-1), own.abs().amax(-1))


def test_zeros_vectors_and_integers_come_back_as_they_were():
    tensors = {
        "zeros": torch.zeros(3, 5),
        "norm": torch.randn(9),
        "ids": torch.arange(12).view(3, 4),
        "flags": torch.tensor([[True, False]]),
        "small": torch.tensor([[1e-42, 0.0]]),
    }
    back = unpack(pack(tensors))
    assert back.keys() == tensors.keys()
    for name in ("zeros", "norm", "ids", "flags"):
        assert torch.equal(back[name], tensors[name]), name
    assert back["small"].isfinite().all()


def test_small_matrices_are_left_alone(monkeypatch):
    monkeypatch.setattr(eight_bit, "_SMALL", 10)
    packed = pack({"small": torch.randn(3, 3), "large": torch.randn(4, 3)})
    assert {name: t.dtype for name, t in packed.items()} == {
        "small": torch.float32,
        "large": torch.int8,
        "large.scale": torch.float32,
    }


def test_packing_again_changes_nothing():
    once = pack({"w": torch.randn(5, 64, generator=torch.Generator().manual_seed(1))})
    again = pack(unpack(once))
    assert torch.equal(once["w"], again["w"])
    torch.testing.assert_close(once["w.scale"], again["w.scale"], rtol=1e-6, atol=0)


def test_a_packed_drafter_loads_close_to_the_whole(packed):
    model, folder = packed
    loaded = reload(model, folder)
    assert loaded.config == model.config
    assert read_extra(folder) == {"steps": 3}
    state = load_file(folder / "model.safetensors")
    assert sum(tensor.dtype == torch.int8 for tensor in state.values()) > 5
    changed = 0
    for name, tensor in model.state_dict().items():
        kept = loaded.state_dict()[name]
        assert kept.dtype == tensor.dtype
        if tensor.is_floating_point():
            torch.testing.assert_close(kept, tensor, rtol=0, atol=float(tensor.abs().max()) / 127)
            changed += not torch.equal(kept, tensor)
    assert changed > 5
    assert torch.equal(embeddings(loaded), embeddings(model))


@pytest.mark.parametrize("fault", ["missing", "mis-shaped", "lonely"])
def test_scales_that_do_not_fit_are_named(packed, fault):
    model, folder = packed
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name, tensor in tensors.items() if tensor.dtype == torch.int8)
    if fault == "missing":
        del tensors[name + ".scale"]
    elif fault == "mis-shaped":
        tensors[name + ".scale"] = torch.ones(1, 1)
    else:
        tensors[name] = tensors[name].float()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        reload(model, folder)


def test_only_a_drafter_is_packed(tmp_path):
    with pytest.raises(CheckpointError, match="config.json"):
        store_in_eight_bits(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_drafter_is_not_packed(packed, tmp_path):
    _, folder = packed
    tensors = load_file(folder / "model.safetensors")
    del tensors["d2t"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing: d2t"):
        store_in_eight_bits(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
