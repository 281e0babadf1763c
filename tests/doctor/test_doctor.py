"""Drafters broken on purpose: each is found by the check that is about it, and by no other."""

import json

import pytest
import torch
from tests.doctor.world import (
    FIRST,
    LAYERS,
    LENGTH,
    TEMPLATE,
    World,
    calibrated,
    counting_tokenizer,
)
from tests.tiny import make_drafter

from specblock.budget.survival import SurvivalModel
from specblock.doctor.examine import CHECKS
from specblock.doctor.measured import layers_measured
from specblock.doctor.patient import Patient, Request
from specblock.doctor.reading import Reading, arrangements
from specblock.drafters.checkpoint import save_checkpoint


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def wrong(findings):
    return [name for name, finding in findings.items() if finding.verdict == "wrong"]


def test_a_sound_drafter_comes_out_clean(world):
    found = world.examine()
    assert list(found) == [check.name for check in CHECKS]
    assert not wrong(found)
    assert {f.verdict for name, f in found.items() if name != "pays"} <= {"ok", "warning"}
    assert all(found[name].verdict == "ok" for name in found if name not in ("pays", "kernels"))
    assert found["first token"].figures["agreement"] > 0.9
    assert json.dumps([one.to_dict() for one in found.values()], allow_nan=False)


@pytest.mark.parametrize("shift", [-1, 1])
def test_shifted_layers_are_measured(world, shift):
    world.save(feature_layers=tuple(layer + shift for layer in LAYERS))
    found = world.examine()
    assert wrong(found) == ["layers, measured", "first token"]
    assert "--feature-layers 1,3,4" in found["layers, measured"].advice
    assert found["pays"].verdict == "skipped"


@pytest.mark.parametrize("order", [(4, 3, 1), (3, 1, 4), (3, 4, 1)])
def test_layers_in_another_order_are_measured(world, order):
    world.save(feature_layers=order)
    found = world.examine()
    assert wrong(found) == ["layers, measured", "first token"]
    assert "--feature-layers 1,3,4" in found["layers, measured"].advice


def test_a_drafter_far_below_its_training_is_said(world):
    world.model.lm_head.weight.data[FIRST + 2 - 3 : FIRST + LENGTH - 3].zero_()  # it forgot most
    extra = {"held_out": {"accuracy_b1s0": 0.9}}
    save_checkpoint(world.model, world.folder, extra=extra, dtype=torch.float32)
    found = world.examine()
    assert not wrong(found)
    assert found["first token"].verdict == "warning"
    assert "it was 90%" in found["first token"].found


@pytest.mark.parametrize(
    ("recorded", "named", "other", "verdict"),
    [
        (None, 0.22, 0.24, "wrong"),
        (0.58, 0.22, 0.24, "warning"),  # with neither as in training
        (0.58, 0.22, 0.41, "wrong"),
        (0.58, 0.02, 0.32, "wrong"),  # half of what it lacks
        (0.58, 0.45, 0.48, "wrong"),
        (0.58, 0.45, 0.45, "ok"),
    ],
)
def test_other_layers_have_to_explain_what_is_lacking(tmp_path, recorded, named, other, verdict):
    def hits(share):
        return torch.arange(1000) < 1000 * share

    agreement = {(1, 3, 4): hits(named), (3, 1, 4): hits(other)}
    overlap = {layers: right.float() for layers, right in agreement.items()}
    patient = Patient(Request(tmp_path, "counting", tuple), tmp_path)
    patient.readings = [Reading(hits(1.0), hits(1.0), agreement, overlap, {})]
    save_checkpoint(make_drafter().model, tmp_path, dtype=torch.float32, extra=extra_of(recorded))
    assert layers_measured(patient).verdict == verdict


def extra_of(recorded):
    return {} if recorded is None else {"held_out": {"accuracy_b1s0": recorded}}


def test_more_than_three_layers_are_tried_in_reverse_and_swapped():
    assert set(arrangements((0, 2, 4, 7), 8)) == {
        (0, 2, 4, 7), (7, 4, 2, 0), (2, 0, 4, 7), (0, 4, 2, 7), (0, 2, 7, 4),
    }  # fmt: skip
    assert arrangements((1, 2, 3), 8)[0] == (1, 2, 3)
    assert len(arrangements((1, 2, 3), 8)) == 8


@pytest.mark.parametrize("most", [1, 2])
def test_too_little_text_is_said(world, most):
    found = world.examine(limit=1, max_new_tokens=most)
    assert not wrong(found)
    for name in ("layers, measured", "vocabulary, measured", "first token", "pays"):
        assert found[name].verdict == "warning"
        assert "--max-new-tokens" in found[name].advice
    assert found["served as trained"].verdict == ("warning" if most == 1 else "ok")


def test_layers_that_the_target_lacks(world):
    world.save(feature_layers=(1, 3, 6))
    assert wrong(world.examine()) == ["feature layers"]


def test_a_map_of_another_head_is_measured(world):
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    world.model.lm_head.weight.data = world.model.lm_head.weight.data[order]
    world.save()
    found = world.examine()
    assert wrong(found) == ["vocabulary, measured", "first token"]
    assert found["vocabulary, measured"].figures["agreement_of_learned_map"] > 0.8


def test_a_vocabulary_of_other_tokens_is_measured(world):
    model = world.model
    drafted = torch.arange(40) + 50
    model.d2t.copy_(drafted - torch.arange(40))
    model.t2d.zero_()[drafted] = True
    world.save()
    assert wrong(world.examine()) == ["vocabulary, measured", "first token"]


@pytest.mark.parametrize("change", ["swapped", "ids"])
def test_maps_that_contradict_each_other(world, change):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = world.folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    if change == "swapped":
        tensors["d2t"][:2] += torch.tensor([1, -1])
    else:
        tensors["d2t"] = tensors["t2d"].nonzero().flatten()
    save_file(tensors, path, metadata)
    found = world.examine()
    assert wrong(found) == ["vocabulary map"]
    assert ("target ids" in found["vocabulary map"].found) == (change == "ids")


def test_a_nan_among_the_weights(world):
    world.model.midlayer.mlp.up_proj.weight.data[3, 4] = float("nan")
    world.save()
    found = world.examine()
    assert wrong(found) == ["drafter numbers"]
    assert "midlayer.mlp.up_proj.weight" in found["drafter numbers"].found
    assert found["mask rows"].verdict == "ok"
    assert found["decoding"].verdict == "skipped"


@pytest.mark.parametrize(
    ("template", "check"),
    [
        (TEMPLATE.replace("{% if add_generation_prompt %}w3 {% endif %}", ""), "chat template"),
        (TEMPLATE.replace("{{ m['content'] }}", ""), "chat template"),
        (TEMPLATE.replace("w2", "w4"), "end tokens"),
    ],
)
def test_a_wrong_chat_template(world, template, check):
    world.tokenizer.chat_template = template
    assert wrong(world.examine()) == [check]


def test_an_end_token_that_the_template_does_not_write(world):
    world.tokenizer = counting_tokenizer(eos_token="w9")
    world.network.generation_config.eos_token_id = 9
    assert wrong(world.examine(limit=1, max_new_tokens=3)) == ["end tokens"]


def test_a_drafter_of_another_tokenizer(world):
    world.tokenizer.add_tokens(["more"])
    world.network.resize_token_embeddings(97)
    found = world.examine()
    assert wrong(found) == ["tokenizer"]


def test_a_tokenizer_with_more_tokens_than_embeddings(world):
    world.save(tokenizer_fingerprint="")
    world.tokenizer.add_tokens(["more"])
    assert "97" in world.examine()["tokenizer"].found


def test_a_drafter_of_a_target_of_another_shape(world, tmp_path):
    model = make_drafter(hidden_size=64).model
    save_checkpoint(model, tmp_path / "other", dtype=torch.float32)
    assert wrong(world.examine(tmp_path / "other")) == ["fits the target"]


def test_a_drafter_that_knows_nothing_of_this_target(world):
    torch.nn.init.zeros_(world.model.fc.weight)
    world.save()
    assert wrong(world.examine()) == ["first token"]


@pytest.mark.parametrize("cut", [20, -400])
def test_a_truncated_file(world, cut):
    path = world.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    found = world.examine()
    assert wrong(found) == ["drafter files"]
    assert found["mask rows"].verdict == "ok"


def test_a_missing_key(world):
    path = world.folder / "config.json"
    values = json.loads(path.read_text())
    del values["head_dim"]
    path.write_text(json.dumps(values))
    found = world.examine()
    assert wrong(found) == ["drafter files"]
    assert "head_dim" in found["drafter files"].found


@pytest.mark.parametrize("damage", ["{", "[]", "NaN", "shape", "missing"])
def test_a_damaged_survival_file(world, damage):
    state = SurvivalModel.fresh().to_dict()
    if damage == "NaN":
        state["counts"][0][0][0] = float("nan")
    elif damage == "shape":
        state["counts"].pop()
    elif damage == "missing":
        del state["strength"]
    text = damage if damage in ("{", "[]") else json.dumps(state)
    (world.folder / "survival.json").write_text(text)
    found = world.examine()
    assert wrong(found) == ["drafter files"]
    assert "survival.json is damaged: copy it again" in found["drafter files"].found
    assert found["tokenizer"].verdict == "skipped"
    assert "it needs 'drafter files'" in found["tokenizer"].found


def test_a_stale_calibration(world, tmp_path):
    calibrated(tmp_path / "old", world.network, world.model, threads=96)
    found = world.examine(cache_dir=tmp_path / "old", limit=1, max_new_tokens=4)
    assert not wrong(found)
    assert found["calibration"].verdict == "warning"
    assert "stale" in found["calibration"].found
    assert "threads 96 (now" in found["calibration"].found
