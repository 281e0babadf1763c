"""The drafting cost at a shape so small that it takes no time."""

import json

import pytest
import torch

from specblock.bench.costs import drafting as module
from specblock.bench.costs.drafting import drafting_cost
from specblock.bench.costs.shapes import DRAFTERS, SHAPES, Shape, find_shape
from specblock.errors import ConfigError

TINY = Shape(
    "llama", 8, 97, 64, 1e4,
    {
        "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8,
    },
)  # fmt: skip


def test_every_drafter_draws_trees_of_the_budget():
    steps = []
    report = drafting_cost(TINY, nodes=(20, 60), rounds=2, context=24, on_step=steps.append)
    assert report["drafting"].keys() == DRAFTERS.keys()
    for name, budgets in report["drafting"].items():
        assert {budget: figures["nodes"] for budget, figures in budgets.items()} == {
            "20": 20,
            "60": 60,
        }, name
        assert all(figures["seconds"] > 0 for figures in budgets.values())
    calls = {name: budgets["60"]["calls"] for name, budgets in report["drafting"].items()}
    assert calls == {"eagle3": 8, "specblock": 2, "specblock, 1 slot kept": 2, "parallel": 1}
    assert report["ratio_to_eagle3"]["eagle3"] == {"20": 1.0, "60": 1.0}
    assert set(report["verification"]) >= {"1", "64"}
    assert "drafting 60 nodes" in steps
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("name", SHAPES)
def test_the_shapes_are_what_they_are_called(name):
    report = drafting_cost(find_shape(name), device="meta", dtype=torch.bfloat16)
    sizes = {"llama-3.1-8b": 8.03e9, "qwen3-8b": 8.19e9, "embedded": 134.5e6}
    assert report["parameters"]["target"] == pytest.approx(sizes[name], rel=0.002)
    assert report["parameters"]["eagle3"] < report["parameters"]["specblock"]
    assert "drafting" not in report


def test_memory_is_looked_at_first(monkeypatch):
    monkeypatch.setattr(module, "_free_bytes", lambda device: 1e5)
    with pytest.raises(ConfigError, match="The drafters need .* GiB in float32"):
        drafting_cost(TINY)
    free = iter([1e9, 1e3])
    monkeypatch.setattr(module, "_free_bytes", lambda device: next(free))
    report = drafting_cost(TINY, nodes=(8,), rounds=1, context=8)
    assert report["verification"] is None
    assert report["verification_note"].startswith("not measured: the target needs")


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        drafting_cost(TINY, nodes=(0,))
    with pytest.raises(ConfigError, match="did you mean 'llama-3.1-8b'"):
        find_shape("llama-3-8b")
