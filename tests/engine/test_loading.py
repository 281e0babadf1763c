"""From names to a Speculator, with every misfit said in a sentence."""

import dataclasses
import json

import pytest
import torch

from specblock.api import load
from specblock.budget.costs import CostTable
from specblock.drafters.base import BudgetController, CopiesController, FixedBudget
from specblock.drafters.specblock.checkpoint import save_checkpoint
from specblock.drafters.specblock.network import SpecBlockModel
from specblock.engine import named_drafter
from specblock.engine.loading import assemble, load_drafter
from specblock.engine.machine.calibrate import Calibration, calibration_key, calibration_path
from specblock.engine.named_drafter import find_drafter
from specblock.errors import CheckpointError, ConfigError
from specblock.kernels.route_table import RouteTable
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import make_drafter, make_target

MEASURING = "specblock.engine.machine.calibrate.measure_believably"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "drafter"
    save_checkpoint(make_drafter().model, path, dtype=torch.float32)
    return path


@pytest.fixture(autouse=True)
def believing(monkeypatch):
    """Whatever else runs beside the tests: what is measured is kept."""
    monkeypatch.setattr("specblock.engine.machine.calibrate._BELIEVED", float("inf"))


def test_a_first_load_measures_and_the_next_remembers(folder, tmp_path):
    steps = []
    first = assemble(
        make_target("llama"), make_tokenizer(), folder, cache_dir=tmp_path, on_step=steps.append
    )
    assert steps
    assert isinstance(first.budget, BudgetController)
    costs = first.costs.to_dict()
    assert costs["target"]
    assert costs["draft_first"]
    assert costs["draft_next"]
    steps.clear()
    second = assemble(
        make_target("llama"), make_tokenizer(), folder, cache_dir=tmp_path, on_step=steps.append
    )
    assert steps == []
    assert second.costs.to_dict() == costs
    assert first.generate("w7", max_new_tokens=12, ignore_eos=True).token_ids == (
        second.generate("w7", max_new_tokens=12, ignore_eos=True, use_drafter=False).token_ids
    )


def test_a_damaged_calibration_is_measured_again(folder, tmp_path):
    speculator = assemble(make_target("llama"), make_tokenizer(), folder, cache_dir=tmp_path)
    path = calibration_path(calibration_key(speculator.target, speculator.drafter), tmp_path)
    path.write_text(path.read_text()[:50])
    steps = []
    assemble(
        make_target("llama"), make_tokenizer(), folder, cache_dir=tmp_path, on_step=steps.append
    )
    assert steps
    assert json.loads(path.read_text())["calibration"]


def test_without_measuring_the_budget_is_fixed(folder, tmp_path):
    speculator = assemble(
        make_target("llama"), make_tokenizer(), folder, calibrate="never", cache_dir=tmp_path
    )
    assert isinstance(speculator.budget, FixedBudget)
    assert speculator.costs is None


def test_lookup_needs_no_drafter(tmp_path):
    assert find_drafter("any-model", "lookup") == "lookup"
    speculator = assemble(make_target("llama"), make_tokenizer(), "lookup", cache_dir=tmp_path)
    assert isinstance(speculator.budget, CopiesController)
    speculator.budget.costs = CostTable({1: 1.0, 64: 1.1})  # a machine on which it pays
    words = " ".join(["w7", "w8", "w9"] * 4)
    settings = {"max_new_tokens": 40, "ignore_eos": True}
    fast = speculator.generate(words, **settings)
    assert fast.token_ids == speculator.generate(words, use_drafter=False, **settings).token_ids
    assert fast.stats.speculative_rounds > 0
    fixed = assemble(
        make_target("llama"), make_tokenizer(), "lookup", budget="fixed", cache_dir=tmp_path
    )
    assert fixed.generate(words, **settings).token_ids == fast.token_ids
    assert fixed.copies is None


def test_a_network_gets_the_text_along_with_a_measured_budget(folder, tmp_path):
    def loaded(**settings):
        return assemble(
            make_target("llama"), make_tokenizer(), folder, cache_dir=tmp_path, **settings
        )

    assert loaded().copies is not None
    assert loaded(budget="fixed").copies is None


def test_a_calibration_survives_json():
    table = CostTable({1: 1.0, 4: 1.5}, {1: 0.1}, {1: 0.1, 4: 0.2}, 0.01)
    calibration = Calibration(RouteTable({(4, 3): ["direct"] * 8}), table, exact=True)
    again = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    assert again.costs.to_dict() == table.to_dict()
    assert again.routes.routes == calibration.routes.routes
    assert again.exact


def test_a_machine_that_was_found_inexact_is_remembered(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("specblock.engine.machine.exactness.repeats_plain", lambda target: False)
    model, costs = make_target("llama").to(torch.bfloat16), CostTable({1: 1.0})
    monkeypatch.setattr(MEASURING, lambda *_: (costs, 1.0))
    measured = assemble(model, make_tokenizer(), "lookup", cache_dir=tmp_path)
    monkeypatch.undo()
    assert not measured.target.exact
    caplog.clear()
    again = assemble(model, make_tokenizer(), "lookup", cache_dir=tmp_path)
    assert again.costs.to_dict() == costs.to_dict()  # nothing was measured
    assert not again.target.exact
    assert "near-ties" in caplog.text  # and it is said every time


def test_targets_of_one_model_keep_their_own_attention():
    model = make_target("llama").to(torch.bfloat16)
    exact = assemble(model, make_tokenizer(), None, calibrate="never")
    answer = exact.generate("w7 w8 w9", max_new_tokens=12)
    loose = assemble(model, make_tokenizer(), None, exact=False, calibrate="never")
    assert not loose.target.exact
    assert loose.generate("w7 w8 w9", max_new_tokens=12).stats.new_tokens > 0
    assert exact.generate("w7 w8 w9", max_new_tokens=12).token_ids == answer.token_ids
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("change", "values"),
    [
        ({"hidden_size": 64}, ("64", "32")),
        ({"vocab_size": 120}, ("120", "97")),
        ({"target_layers": 9}, ("9", "6")),
        ({"tokenizer_fingerprint": "0123456789abcdef"}, ("0123456789abcdef",)),
    ],
)
def test_a_drafter_for_another_target_names_both_values(change, values, tmp_path):
    config = dataclasses.replace(make_drafter().model.config, **change)
    save_checkpoint(SpecBlockModel(config), tmp_path / "d")
    with pytest.raises(CheckpointError) as error:
        load_drafter(tmp_path / "d", make_target("llama"), make_tokenizer())
    for value in values:
        assert value in str(error.value)


def test_a_missing_drafter_and_wrong_settings_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="config.json"):
        load_drafter(tmp_path, make_target("llama"), make_tokenizer())
    with pytest.raises(ConfigError, match="budget"):
        load(budget="big")
    with pytest.raises(ConfigError, match="blocks"):
        load(blocks=0)
    with pytest.raises(ConfigError, match="calibrate"):
        load(calibrate="sometimes")


def test_which_drafter_is_meant(tmp_path, monkeypatch, caplog):
    shipped = tmp_path / "weights" / named_drafter.DEFAULT_MODEL
    shipped.mkdir(parents=True)
    (shipped / "config.json").write_text("{}")
    monkeypatch.setattr(named_drafter.resources, "files", lambda package: tmp_path)
    assert find_drafter("smollm2-135m-instruct", "auto") == shipped
    assert find_drafter("HuggingFaceTB/SmolLM2-135M-Instruct", "auto") == shipped
    assert find_drafter("/cache/smollm2-135m-instruct-0123", "auto") == shipped
    assert find_drafter("smollm2-135m-instruct", "none") is None
    assert find_drafter("smollm2-135m-instruct", None) is None
    own = tmp_path / "own"
    assert find_drafter("smollm2-135m-instruct", str(own)) == own
    assert find_drafter("models/SmolLM2-135M-Instruct.Q4_1.gguf", "auto") == shipped
    assert not caplog.text
    assert find_drafter("Qwen/Qwen3-0.6B", "auto", adapts=True) == "day0"
    assert find_drafter("smollm2-135m-instruct", "auto", adapts=True) == shipped
    assert not caplog.text
    for _ in range(3):
        assert find_drafter("Qwen/Qwen3-0.6B", "auto") == "lookup"
    assert caplog.text.count("No drafter ships for Qwen/Qwen3-0.6B") == 1
