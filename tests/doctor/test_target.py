"""Faults of the target, its forward or the prompts: each is found by the check that is about it."""

import pytest
import torch
from tests.doctor.test_doctor import wrong
from tests.doctor.world import World
from tests.tiny import make_target

from specblock.doctor.patient import Request
from specblock.target import masks
from specblock.tree.draft_tree import DraftTree


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_a_target_that_is_not_there(world):
    from specblock.errors import ModelError

    def load():
        raise ModelError("It is damaged.")

    from specblock.doctor.examine import examine

    found = {one.name: one for one in examine(Request(world.folder, "counting", load))}
    assert wrong(found) == ["target model"]
    assert found["drafter files"].verdict == "ok"


def test_a_mask_that_lets_nodes_see_each_other(world, monkeypatch):
    sound = masks.tree_mask
    monkeypatch.setattr(masks, "tree_mask", lambda *given: torch.ones_like(sound(*given)))
    world.network = make_target("llama")  # one that attends to what it sees
    found = world.examine(limit=1, max_new_tokens=2)
    assert found["mask rows"].verdict == "wrong"


def test_positions_that_are_wrong_far_out_alone(world, monkeypatch):
    sound = DraftTree.positions
    monkeypatch.setattr(
        DraftTree, "positions", lambda tree, prefix: sound(tree, prefix) - 5 * (prefix > 200)
    )
    world.network = make_target("llama")
    found = world.examine(limit=1, max_new_tokens=2)
    assert found["mask rows"].verdict == "ok"
    assert found["long context"].verdict == "wrong"


def test_a_short_context_is_no_fault(world):
    world.network = make_target("llama", max_position_embeddings=50)
    found = world.examine(limit=1, max_new_tokens=2)
    assert found["mask rows"].verdict == found["long context"].verdict == "ok"
    assert found["long context"].figures["position"] == 49


def test_answers_that_differ_are_a_fault(world, monkeypatch):
    import dataclasses

    from specblock.engine.speculator import Speculator

    sound = Speculator.generate

    def altered(self, *given, **settings):
        found = sound(self, *given, **settings)
        if settings.get("use_drafter", True):
            found = dataclasses.replace(found, token_ids=[*found.token_ids[:5], 90])
        return found

    monkeypatch.setattr(Speculator, "generate", altered)
    found = world.examine()
    assert wrong(found) == ["same output"]
    assert "differs at token 5" in found["same output"].found


def test_logits_that_overflow(world):
    world.network.lm_head.weight.data *= 1e38
    assert wrong(world.examine()) == ["target numbers"]


@pytest.mark.parametrize("row", ["not json", '{"id": 1, "messages": []}'])
def test_prompts_that_cannot_be_used(world, tmp_path, row):
    path = tmp_path / "prompts.jsonl"
    path.write_text(row)
    assert wrong(world.examine(prompts=path)) == ["prompts"]
