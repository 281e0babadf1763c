"""Playing decoding back: pooled lengths, speed-ups by a cost table, the verb on a tiny drafter."""

import json
from pathlib import Path

import pytest
import torch
from tests.budget.cost_tables import GPU
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import make_target
from tests.training.test_pipeline import ENDS, GREEDY, prompts
from typer.testing import CliRunner

from specblock.budget.controller import BudgetController
from specblock.cli.main import app
from specblock.drafters.base import FixedBudget
from specblock.drafters.lookup.copies import TextCopies
from specblock.engine.loading import load_drafter
from specblock.errors import SpecBlockError
from specblock.training.data.answers import read_answers
from specblock.training.data.regenerate import RegenerateConfig, regenerate
from specblock.training.evaluate.curve import spread
from specblock.training.evaluate.finished import Setting, evaluate_drafter
from specblock.training.evaluate.playback import Playback, play, shortened
from specblock.training.evaluate.simulate import simulate
from specblock.training.features.corpus import read_all
from specblock.training.features.reader import FeatureReader
from specblock.training.loop.checkpoints import numbered
from specblock.training.loop.trainer import TrainConfig
from specblock.training.pipeline import train_drafter
from specblock.training.recipe import DrafterRecipe


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(target, answers, folder of a drafter trained on them, path of the answers)."""
    folder = tmp_path_factory.mktemp("playback")
    target, path = make_target("llama"), folder / "answers.jsonl"
    regenerate(target, prompts(12), path, ENDS, GREEDY)
    recipe = DrafterRecipe(
        draft_vocab_size=80,
        slot_rank=16,
        held_out=3,
        train=TrainConfig(batch_sequences=4, save_every_seconds=1e-3, keep_checkpoints=20),
    )
    train_drafter(target, make_tokenizer(), path, folder / "drafter", recipe)
    return target, read_answers(path), folder / "drafter", path


@pytest.fixture(scope="module")
def served(made):
    target, answers, folder, _ = made
    drafter = load_drafter(folder, target, make_tokenizer())
    reader = FeatureReader(target, drafter.feature_layers, drafter.model.t2d)
    return drafter, read_all(reader, answers)


def test_lengths_are_pooled(served):
    drafter, sequences = served
    played = play(drafter, sequences, FixedBudget(8, 2))
    alone = [simulate(drafter, sequence, FixedBudget(8, 2)) for sequence in sequences]
    assert (played.rounds, played.tokens) == tuple(map(sum, zip(*alone, strict=True)))
    assert played.accepted_length == played.tokens / played.rounds > 1
    assert played.row() == {"tau": round(played.accepted_length, 3)}


def test_speedups_are_tokens_over_the_seconds_of_the_table(served):
    drafter, sequences = served

    class Clocked(BudgetController):
        texts: tuple = ()

        def begin(self, pairs=1):
            super().begin(pairs)
            self.texts = (*self.texts, [0, 0.0])

        def _book(self, tokens, *round):
            super()._book(tokens, *round)
            self.texts[-1][0] += tokens
            self.texts[-1][1] += GPU.target_seconds(1) + self.added

    budget = Clocked(GPU)
    played = play(drafter, sequences, budget, TextCopies())
    texts = budget.texts
    assert len(played.speedups) == len(texts) == len(sequences)
    for speedup, (tokens, seconds) in zip(played.speedups, texts, strict=True):
        assert speedup == pytest.approx(tokens * GPU.target_seconds(1) / seconds)
    # of the last round of a text nothing is known behind its end
    assert 0 <= played.tokens - sum(tokens for tokens, _ in texts) <= len(texts)


def test_a_row_of_speedups():
    row = Playback(10, 25, (0.9, 1.0, 1.2, 2.0)).row()
    assert row["tau"] == 2.5
    assert (row["median"], row["lowest"], row["below_0.95"]) == (1.1, 0.9, 1)
    assert 0.9 < row["lower_quartile"] < 1.0
    assert Playback(1, 1, (1.5,)).row()["lower_quartile"] == 1.5


def test_shortened_answers_keep_their_prompt(served):
    sequence = max(served[1], key=lambda s: s.answer_tokens)
    prompt = int(sequence.start.nonzero()[0])
    short = shortened(sequence, 4)
    assert len(short.tokens) == prompt + 5
    assert torch.equal(short.tokens, sequence.tokens[: prompt + 5])
    assert len(shortened(sequence, 1000).tokens) == len(sequence.tokens)


def test_the_figures_of_a_drafter(made):
    target, answers, folder, _ = made
    tokenizer = make_tokenizer()
    plain = evaluate_drafter(folder, target, tokenizer, answers, Setting(nodes=12, leaves=3))
    assert plain["answers"] == plain["greedy_answers"] == len(answers)
    assert 0 < plain["accuracy_b1s0"] <= 1
    assert plain["tau"] > 1
    assert "played_back" not in plain
    costly = Setting(nodes=12, leaves=3, rank_branching=False, costs=GPU)
    found = evaluate_drafter(folder, target, tokenizer, answers, costly)
    assert found["accuracy_b1s0"] == plain["accuracy_b1s0"]
    assert found["played_back_with_copies"]["median"] > 0.9
    assert found["played_back_with_memory"]["tau"] >= 1.0


def test_a_learning_curve_is_read_off_the_states_that_were_kept(made):
    target, answers, folder, _ = made
    steps = sorted(step for step, _ in numbered(folder / "training"))
    assert len(steps) > 1
    found = evaluate_drafter(
        folder, target, make_tokenizer(), answers, Setting(nodes=12, leaves=3, states=2)
    )
    first, last = found["curve"]
    assert (first["step"], last["step"]) == (steps[0], steps[-1])
    assert 0 < first["answer_tokens"] < last["answer_tokens"]
    for name in ("tau", "accuracy_b1s0", "accuracy_b2s0"):
        assert last[name] == pytest.approx(found[name], rel=0.02), "the finished drafter, unrounded"
    assert first["accuracy_b1s0"] != last["accuracy_b1s0"]


def test_states_are_spread_evenly():
    states = [(step, Path(f"{step}")) for step in (10, 90, 100, 52, 49, 11)]
    assert [str(path) for path in spread(states, 3)] == ["10", "52", "100"]
    assert [str(path) for path in spread(states, 1)] == ["100"]
    assert len(spread(states, 9)) == 6
    assert spread([], 3) == []


def test_sampled_answers_alone_are_refused(made, tmp_path):
    target, _, folder, _ = made
    hot = RegenerateConfig(max_new_tokens=20, batch_size=3, temperatures=((5.0, 1.0),))
    regenerate(target, prompts(4), tmp_path / "hot.jsonl", ENDS, hot)
    answers = read_answers(tmp_path / "hot.jsonl", min_tokens=1)
    with pytest.raises(SpecBlockError, match="--temperatures 0:1"):
        evaluate_drafter(folder, target, make_tokenizer(), answers, Setting())


def test_the_verb(made, tmp_path):
    def run(*arguments: str):
        return CliRunner().invoke(app, list(arguments))

    target, _, drafter, answers = made
    where, out, costs = tmp_path / "target", tmp_path / "out.json", tmp_path / "costs.json"
    target.save_pretrained(where)
    make_tokenizer().save_pretrained(where)
    costs.write_text(json.dumps(GPU.to_dict()))
    given = ("--answers", str(answers), "--model", str(where), "--json", str(out))
    result = run("evaluate", *given, "--drafter", str(drafter), "--costs", str(costs))
    assert result.exit_code == 0, result.output
    assert "with copies" in result.stdout
    found = json.loads(out.read_text())
    assert found["drafters"][str(drafter)]["tau"] > 1
    assert found["settings"]["nodes"] == 60
    for options, sentence in (
        (("--drafter", str(drafter), "--costs", str(answers)), "no table of `specblock calibrate"),
        ((), "name one with --drafter"),
    ):
        result = run("evaluate", *given, *options)
        assert result.exit_code == 2
        assert sentence in result.stderr
