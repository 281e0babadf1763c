"""The profile of a round accounts for its rounds, part by part."""

import json

import pytest
import torch
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import make_drafter, make_target

from specblock.bench.measure.field import Measured, assemble_field
from specblock.bench.measure.profile import profile_rounds
from specblock.budget.costs import CostTable
from specblock.config import GenerationConfig
from specblock.drafters.checkpoint import save_checkpoint
from specblock.errors import ContextError
from specblock.kernels.route_table import RouteTable

IDS = list(range(5, 20))


@pytest.fixture(scope="module")
def contenders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drafter")
    save_checkpoint(make_drafter().model, folder, dtype=torch.float32)
    measured = Measured(RouteTable(), {"": CostTable({1: 1.0, 96: 1.5})})
    names, folders = ("plain", "specblock-paper"), {"specblock": folder}
    field = assemble_field(
        make_target("llama"), make_tokenizer(), names, folders, measured=measured
    )
    return field.contenders


@pytest.mark.parametrize("name", ["plain", "specblock-paper"])
def test_parts_add_up(contenders, name):
    config = GenerationConfig(max_new_tokens=24, ignore_eos=True)
    found = profile_rounds(contenders[name], IDS, config, most=10_000)
    generated = contenders[name](IDS, config).generation
    assert found.rounds == generated.stats.rounds - 2
    for part, taken in found.milliseconds.items():
        rows = [row.milliseconds for row in found.by_operator if row.part == part]
        assert taken == pytest.approx(sum(rows))
    verify = [row for row in found.by_operator if row.part == "verify"]
    products = [r for r in verify if r.name in ("aten::linear", "aten::mm", "aten::addmm")]
    assert sum(row.calls for row in products if row.name != "aten::linear") >= 6 * 7
    drafts = found.operators["draft"]
    assert drafts > 50 if name != "plain" else drafts < 50
    assert found.kernels == 0
    times = [row.milliseconds for row in found.by_operator]
    assert times == sorted(times, reverse=True)
    json.dumps(found.to_dict())


def test_too_short_an_answer_is_refused(contenders):
    with pytest.raises(ContextError, match="more new tokens"):
        profile_rounds(contenders["plain"], IDS, GenerationConfig(max_new_tokens=2))
