"""Playing methods on answers of a tiny model: decoding's own rounds, kept and gone on with."""

import json

import pytest
import torch
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import make_drafter, make_target

from specblock.bench import BenchPrompt
from specblock.bench.measure.methods import METHODS
from specblock.bench.playback.answers import Asked, ask
from specblock.bench.playback.report import play_all, playback_markdown, read_playback
from specblock.bench.playback.rounds import RecordingBudget, priced
from specblock.bench.playback.run import Player, check_methods
from specblock.bench.playback.sheet import CostSheet
from specblock.bench.report.document import read_report
from specblock.budget.costs import CostTable
from specblock.drafters.base import BudgetController, FixedBudget
from specblock.drafters.checkpoint import save_checkpoint
from specblock.drafters.eagle3.config import Eagle3Config
from specblock.drafters.eagle3.network import Eagle3Model
from specblock.engine.rounds import decode
from specblock.engine.speculator import Speculator
from specblock.engine.statistics import GenerationStats
from specblock.errors import ConfigError
from specblock.target.model import Target
from specblock.tree.sampling import SamplingParams

SHAPE = {
    "hidden_size": 32, "vocab_size": 97, "target_layers": 6, "intermediate_size": 48,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "draft_vocab_size": 40,
}  # fmt: skip
CHEAP = CostTable({1: 1.0, 96: 1.5}, {1: 0.01, 8: 0.02}, {1: 0.01, 28: 0.02}, 0.005)
DEAR = CostTable({1: 1.0, 2: 2.0}, {1: 1.0}, {1: 1.0})
SHEETS = [CostSheet(n, n, "made up", {"eagle3": t, "specblock": t})
          for n, t in (("cheap", CHEAP), ("dear", DEAR))]  # fmt: skip
NAMES = ["plain", "lookup", "eagle3", "specblock-paper", "specblock-cost", "specblock"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("drafters")
    torch.manual_seed(1)
    models = {
        "specblock": make_drafter().model,
        "eagle3": Eagle3Model(Eagle3Config(**SHAPE, feature_layers=(1, 2, 3))),
    }
    for kind, model in models.items():
        save_checkpoint(model, base / kind, dtype=torch.float32)
    return {kind: base / kind for kind in models}


@pytest.fixture(scope="module")
def answers():
    speculator = Speculator(Target(make_target("llama")), make_tokenizer())
    prompts = [
        BenchPrompt("a", "t", (), ("w7 w8 w9 w7 w8", "w3")),
        BenchPrompt("b", "u", (), ("w2",)),
    ]
    return ask(speculator, prompts, 14)


@pytest.fixture
def player(folders, answers):
    return Player(make_target("llama"), make_tokenizer(), folders, answers)


def test_later_turns_continue_the_answers(answers):
    assert [(one.id, one.turn, one.task) for one in answers] == [
        ("a", 0, "t"),
        ("a", 1, "t"),
        ("b", 0, "u"),
    ]
    first, second, _ = answers
    assert second.prompt_ids[: len(first.prompt_ids)] == first.prompt_ids
    assert Asked.from_dict(json.loads(json.dumps(first.to_dict()))) == first


@pytest.mark.parametrize("name", ["eagle3", "specblock-paper", "specblock-cost"])
def test_the_rounds_are_those_of_decoding(player, folders, answers, name):
    spec, (cheap, _) = METHODS[name], SHEETS
    rows = player.play(name, spec, [cheap])
    drafter = player._drafter(spec)
    target = Target(make_target("llama"), drafter.feature_layers)
    inner = BudgetController(CHEAP) if spec.measured else FixedBudget(60)
    budget = RecordingBudget(inner)
    for row, asked in zip(rows, answers, strict=True):
        stats, said = GenerationStats(), []
        more = len(asked.answer_ids)
        for tokens in decode(
            target, drafter, budget, [*asked.prompt_ids], SamplingParams(), more, stats
        ):
            said += tokens
        assert said[:more] == [*asked.answer_ids]
        assert (row.rounds, row.nodes) == (stats.rounds, stats.drafted_nodes)
        assert row.tokens == more - 1
        assert row.seconds == pytest.approx(priced(budget.rounds, CHEAP).seconds)
        assert row.calls == sum(one.calls for one in budget.rounds) > 0


def test_a_report_by_sheet_goes_on_where_it_stopped(player, folders, tmp_path):
    specs = check_methods(NAMES, SHEETS, folders)
    about = {"settings": {"max_new_tokens": 14, "seed": 0}, "environment": {}}
    out, steps = tmp_path / "report.json", []
    report = play_all(player, specs, SHEETS, about, out=out, on_step=steps.append)
    assert steps[:2] == ["lookup, cheap", "lookup, dear"]
    assert "eagle3, cheap, dear" in steps
    rows = read_playback(report)["methods"]
    by_sheet = {sheet: found["eagle3"]["accepted_length"] for sheet, found in rows.items()}
    assert by_sheet["cheap"] == by_sheet["dear"], "a fixed budget does not look at costs"
    # where a node costs a plain step nothing pays
    assert rows["dear"]["specblock-cost"]["nodes_per_round"] < 0.2
    assert rows["cheap"]["specblock-cost"]["nodes_per_round"] > 1
    text = playback_markdown(read_report(out))
    assert "| cheap, specblock-paper over eagle3 |" in text
    assert "no clock was read" in text.lower()
    steps.clear()
    from specblock.bench.playback.run import Row

    kept = [Row(**row) for row in report["rows"] if row["sheet"] == "cheap"]
    again = play_all(player, specs, SHEETS, about, kept, on_step=steps.append)
    assert not [step for step in steps if "cheap" in step]
    assert sorted(map(str, again["rows"])) == sorted(map(str, report["rows"]))


def test_what_cannot_be_played_is_refused(folders):
    with pytest.raises(ConfigError, match="drafts nothing"):
        check_methods(["plain-compiled"], SHEETS, folders)
    with pytest.raises(ConfigError, match="--drafter eagle3=FOLDER"):
        check_methods(["eagle3"], SHEETS, {})
    with pytest.raises(ConfigError, match="has no drafter of kind parallel"):
        check_methods(["parallel"], SHEETS, {"parallel": "x"})
    with pytest.raises(ConfigError, match="at least one method that drafts"):
        check_methods(["plain"], SHEETS, folders)
