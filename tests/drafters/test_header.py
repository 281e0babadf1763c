"""Equal weights make equal files."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.drafters.test_checkpoint import tiny_model

from specblock.drafters.checkpoint import WEIGHTS, save_checkpoint
from specblock.drafters.header import sort_metadata


def names_in_order(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return list(json.loads(data[8 : 8 + length])["__metadata__"])


def test_a_drafter_is_the_same_bytes_whenever_it_is_saved(tmp_path):
    files = []
    for name in "abcdefgh":  # the library's order would agree by chance once in 6 ** 7
        save_checkpoint(tiny_model(), tmp_path / name, extra={"steps": 3, "who": "ü\n\x01\\"})
        files.append((tmp_path / name / WEIGHTS).read_bytes())
    assert len(set(files)) == 1


@pytest.mark.parametrize("text", ['"quoted"\n\t\\', "\x01\x7f\u2028é€😀", ""])
def test_metadata_and_weights_are_what_they_were(tmp_path, text):
    path = tmp_path / "file.safetensors"
    metadata = {name: f"{name} {text}" for name in "zyxabc"}
    weights = {"a": torch.randn(3, 5), "b": torch.arange(7)}
    save_file(weights, path, metadata=metadata)
    size = path.stat().st_size
    sort_metadata(path)
    assert names_in_order(path) == sorted(metadata)
    assert path.stat().st_size == size
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == metadata
        for name, weight in weights.items():
            assert torch.equal(file.get_tensor(name), weight)
