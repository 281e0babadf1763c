"""Drafters on the hub: the card, and there and back through the hub's own local cache."""

import json
import re

import pytest
import torch
from huggingface_hub import HfApi

from specblock.drafters.fetch import from_pretrained, is_hub_id
from specblock.drafters.registry import load_model
from specblock.engine.named_drafter import find_drafter
from specblock.errors import CheckpointError
from specblock.integrations.hub.card import model_card, target_licence
from specblock.integrations.hub.push import push_to_hub
from tests.integrations.export.world import save_drafter, save_target

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LocalHub(HfApi):
    """A hub whose repositories are the snapshots of the hub's own cache folder."""

    def __init__(self, cache):
        super().__init__()
        self.cache = cache

    def create_repo(self, repo_id, **_options):
        at = self.cache / f"models--{repo_id.replace('/', '--')}"
        (at / "snapshots" / COMMIT).mkdir(parents=True, exist_ok=True)
        (at / "refs").mkdir(exist_ok=True)
        (at / "refs" / "main").write_text(COMMIT)

    def create_commit(self, repo_id, operations, **_options):
        at = self.cache / f"models--{repo_id.replace('/', '--')}" / "snapshots" / COMMIT
        for operation in operations:
            with operation.as_file() as file:
                (at / operation.path_in_repo).write_bytes(file.read())


@pytest.fixture
def drafter(tmp_path):
    target = save_target(tmp_path / "target")
    (target / "README.md").write_text("---\ntags: [x]\nlicense: mit\n---\n# A target\n")
    save_drafter(tmp_path / "drafter", target)
    (tmp_path / "drafter" / "training").mkdir()
    (tmp_path / "drafter" / "training" / "step.safetensors").write_bytes(b"large")
    run = {
        "verb": "train",
        "argv": ["/home/somebody/bin/specblock", "train", "--answers", "/home/somebody/a.jsonl"],
        "settings": {"epochs": 3, "seed": 7},
        "inputs": [{"path": "/home/somebody/a.jsonl", "bytes": 12345, "sha256": "ab" * 32}],
    }
    (tmp_path / "drafter" / "provenance.json").write_text(json.dumps({"runs": [run]}))
    return tmp_path / "drafter"


def test_there_and_back(drafter, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cache = tmp_path / "hub"
    card = push_to_hub(drafter, "somebody/tiny-drafter", api=LocalHub(cache))
    folder = from_pretrained("somebody/tiny-drafter", cache_dir=cache)
    assert (folder / "README.md").read_text() == card == model_card(drafter)
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "provenance.json", "README.md"}
    embeddings = torch.zeros(97, 32)
    first, second = (load_model(at, embeddings=embeddings) for at in (drafter, folder))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


def test_the_card_says_what_it_came_from_and_no_path(drafter):
    card = model_card(drafter)
    front = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1]
    assert "license: mit" in front
    assert "library_name: specblock" in front
    for said in ("a.jsonl", "12,345 bytes", "specblock train --answers a.jsonl", "epochs 3"):
        assert said in card
    assert "somebody" not in card
    assert str(drafter.parent) not in card


def test_licences_are_found_or_unknown(drafter):
    assert target_licence(str(drafter.parent / "target")) == "mit"
    assert target_licence("smollm2-135m-instruct") == "apache-2.0"
    assert target_licence(str(drafter)) is None
    (drafter.parent / "target" / "README.md").unlink()
    assert "license: other" in model_card(drafter)


def test_a_name_is_a_hub_id_only_where_no_folder_is_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("somebody/tiny-drafter")
    (tmp_path / "runs").mkdir()
    for name in ("runs/drafter", "drafter", "./a/b", "/a/b", "a/b/c", "runs"):
        assert not is_hub_id(name), name
    assert str(find_drafter("m", "runs/drafter")) == "runs/drafter"


def test_without_network_or_repository_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="cannot be reached"):
        from_pretrained("somebody/none", cache_dir=tmp_path)
    with pytest.raises(CheckpointError, match="no drafter"):
        push_to_hub(tmp_path, "somebody/none", api=LocalHub(tmp_path))
