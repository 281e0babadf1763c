"""A kind of drafter from outside, as docs/add-a-drafter.md adds one: the example, step by step."""

import csv
import importlib.util
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from tests.bench.test_field import prompts as questions
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import make_target
from tests.training.test_pipeline import ENDS, GREEDY, prompts

from specblock.bench import run
from specblock.bench.measure.field import Measured, assemble_field
from specblock.bench.measure.weights import find_weights
from specblock.budget.costs import CostTable
from specblock.config import GenerationConfig
from specblock.drafters import registry
from specblock.drafters.kind import DrafterKind
from specblock.drafters.registry import read_config, register
from specblock.engine.loading import assemble, load_drafter
from specblock.errors import CheckpointError, ConfigError
from specblock.kernels.route_table import RouteTable
from specblock.training.data.regenerate import regenerate
from specblock.training.evaluate.served import trained_log_probs
from specblock.training.loop.trainer import TrainConfig
from specblock.training.pipeline import train_drafter
from specblock.training.recipe import DrafterRecipe

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "bigram_drafter.py"
PLAIN = GenerationConfig(max_new_tokens=24, ignore_eos=True)


def example():
    spec = importlib.util.spec_from_file_location("bigram_drafter", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def kind():
    found = example().KIND
    register(found)
    yield found
    registry.KINDS.pop("bigram")


@pytest.fixture(scope="module")
def trained(kind, tmp_path_factory):
    """The folder of one that was trained, and what training said."""
    work = tmp_path_factory.mktemp("bigram")
    target, said = make_target("llama"), []
    regenerate(target, prompts(32), work / "answers.jsonl", ENDS, GREEDY)
    recipe = DrafterRecipe(
        kind="bigram",
        draft_vocab_size=97,
        held_out=2,
        simulated=2,
        train=TrainConfig(epochs=30, batch_sequences=5, lr=1e-2, warmup_steps=2, seed=1),
    )
    train_drafter(
        target, make_tokenizer(), work / "answers.jsonl", work / "drafter", recipe,
        report=said.append,
    )  # fmt: skip
    return work / "drafter", said


def test_the_page_shows_the_example():
    page = (ROOT / "docs" / "add-a-drafter.md").read_text(encoding="utf-8")
    assert f"```python\n{EXAMPLE.read_text(encoding='utf-8')}```" in page


def test_it_learns(trained):
    folder, said = trained
    assert read_config(folder).drafter_type == "bigram"
    assert "drafters of kind bigram have no start in closed form" in " ".join(said)
    with (folder / "training" / "eval.csv").open() as file:
        first, *_, last = csv.DictReader(file)
    assert float(first["tau"]) < 1.3 < 1.6 < float(last["tau"])


def test_what_it_drafts_is_what_it_was_trained_for(trained):
    """The alignment: the first level of its tree has the training forward's log-probabilities."""
    from specblock.drafters.base import FixedBudget

    target = make_target("llama")
    drafter = load_drafter(trained[0], target, make_tokenizer(), width=97, depth=1)
    tokens = torch.tensor([4, 9, 33])
    drafter.reset(8)
    drafter.observe(torch.zeros(3, 3 * 32), tokens)
    tree = drafter.propose(33, FixedBudget(97, 4))
    with torch.no_grad():
        log_probs = trained_log_probs(drafter.model, torch.zeros(3, 3 * 32), tokens.tolist())
    expected = log_probs[-1]
    torch.testing.assert_close(tree.log_probs[1:], expected[tree.tokens[1:]])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_engine_writes_with_it_what_it_writes_without(trained, temperature):
    speculator = assemble(
        make_target("llama"), make_tokenizer(), trained[0], budget="fixed", calibrate="never"
    )
    settings = {"temperature": temperature, "seed": 3}
    found = speculator.generate(["w4 w9", "w20"], PLAIN, **settings)
    plain = speculator.generate(["w4 w9", "w20"], PLAIN, use_drafter=False, **settings)
    assert [one.token_ids for one in found] == [one.token_ids for one in plain]
    if not temperature:
        assert max(one.stats.accepted_length for one in found) > 1.2


def test_it_is_benchmarked_by_its_name(trained):
    table = CostTable({1: 1.0, 96: 1.5}, {1: 0.01, 8: 0.02})
    folders = find_weights("tiny", [f"bigram={trained[0]}"])
    field = assemble_field(
        make_target("llama"), make_tokenizer(), ["plain", "bigram"], folders,
        measured=Measured(RouteTable(), {"": table, "bigram": table}),
    )  # fmt: skip
    report = run(
        field.judge,
        questions("w7 w8 w9"),
        methods=field.contenders,
        config=PLAIN,
        costs=field.measured.costs,
    )
    assert [item for item in report["divergences"] if item["kind"] == "bug"] == []
    assert report["methods"]["bigram"]["draft_calls_per_round"] > 0


def test_an_installed_package_names_its_kind_by_an_entry_point(monkeypatch):
    point = EntryPoint("unigram", "somewhere:KIND", "specblock.drafters")
    found = example()
    named = type("Config", (found.BigramConfig,), {"drafter_type": "unigram"})
    kind = DrafterKind(named, found.BigramModel, found.BigramDrafter, (), found.KIND.training)
    monkeypatch.setattr(EntryPoint, "load", lambda self: kind)
    monkeypatch.setattr(
        registry,
        "entry_points",
        lambda group, name: [point] if (group, name) == (point.group, point.name) else [],
    )
    monkeypatch.setattr(registry, "KINDS", dict(registry.KINDS))
    assert registry.kind_of("unigram") is kind
    with pytest.raises(CheckpointError, match="'zerogram', not one of 'specblock'"):
        registry.kind_of("zerogram")
    with pytest.raises(ConfigError, match="choose another name"):
        register(DrafterKind(named, found.BigramModel, found.BigramDrafter, (), kind.training))
