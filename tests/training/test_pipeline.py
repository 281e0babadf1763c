"""Prompts to a drafter that decodes, on a tiny target, stopped and started again on the way."""

import json
import re
from dataclasses import replace

import pytest
import torch
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import VOCABULARY, make_target

from specblock.drafters.base import FixedBudget
from specblock.drafters.checkpoint import read_extra
from specblock.engine.loading import load_drafter
from specblock.engine.rounds import decode
from specblock.engine.statistics import GenerationStats
from specblock.errors import ModelError, SpecBlockError
from specblock.target.model import Target
from specblock.training.data.answers import (
    count_tokens,
    draft_vocabulary,
    read_answers,
    split_held_out,
)
from specblock.training.data.prompts import Prompt
from specblock.training.data.regenerate import (
    RegenerateConfig,
    answers,
    regenerate,
)
from specblock.training.data.turns import Turn, temperature_of
from specblock.training.features.reader import FeatureReader, collate
from specblock.training.loop import monitor
from specblock.training.loop.monitor import Table
from specblock.training.loop.trainer import TrainConfig
from specblock.training.pipeline import train_drafter
from specblock.training.recipe import DrafterRecipe
from specblock.tree.sampling import SamplingParams

GREEDY = RegenerateConfig(max_new_tokens=20, batch_size=3, temperatures=((0.0, 1.0),))
ENDS = frozenset([2])


def prompts(count: int) -> list[Prompt]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for index in range(count):
        length = 3 + index % 4
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        made.append(Prompt(f"p{index}", [], ids))
    return made


def plain(model, ids: list[int], length: int) -> list[int]:
    stats = GenerationStats()
    rounds = decode(Target(model), None, None, ids, SamplingParams(), length, stats)
    tokens = [token for new in rounds for token in new]
    end = next((i + 1 for i, token in enumerate(tokens) if token in ENDS), length)
    return tokens[:end]


def answered(model, asked: list[Prompt], config: RegenerateConfig) -> dict[str, list[int]]:
    turns = iter([Turn(prompt.id, 0, [], prompt.ids) for prompt in asked])
    ended = [one for some in answers(model, turns, ENDS, config) for one in some]
    return {one.turn.id: one.answer for one in ended}


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_prompts_are_answered_as_they_would_be_alone(family):
    """Sliding windows, too."""
    model, asked = make_target(family), prompts(7)
    found = answered(model, asked, GREEDY)
    assert found == {prompt.id: plain(model, prompt.ids, 20) for prompt in asked}


def test_a_killed_run_goes_on_without_losing_or_repeating(tmp_path):
    out = tmp_path / "answers.jsonl"
    model, asked = make_target("llama"), prompts(10)
    done = regenerate(model, asked, out, ENDS, GREEDY, max_seconds=0)  # up to the first end
    first = out.read_text()
    assert 1 <= len(first.splitlines()) == done <= 3
    out.write_text(first + '{"id": "p9", "half')  # what a kill leaves
    assert regenerate(model, asked, out, ENDS, GREEDY) == 10 - done
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == sorted(prompt.id for prompt in asked)
    assert out.read_text().startswith(first)
    assert regenerate(model, asked, out, ENDS, GREEDY) == 0


def test_answers_do_not_depend_on_how_many_are_written_together():
    sampled = RegenerateConfig(max_new_tokens=12, batch_size=1, seed=3)
    alone = answered(make_target("llama"), prompts(6), sampled)
    together = answered(make_target("llama"), prompts(6), replace(sampled, batch_size=5))
    assert alone == together
    assert alone != answered(make_target("llama"), prompts(6), replace(sampled, seed=4))


def test_temperatures_are_mixed_and_belong_to_their_conversations():
    shares = RegenerateConfig().temperatures
    heats = [temperature_of(f"x{i}", 0, shares) for i in range(2000)]
    assert 0.35 < heats.count(0.0) / 2000 < 0.45
    assert heats[7] == temperature_of("x7", 0, shares)


def test_logits_without_a_possible_token_name_the_conversation(tmp_path):
    model = make_target("llama")
    torch.nn.init.constant_(model.lm_head.weight, torch.nan)
    with pytest.raises(ModelError, match="Conversation 'p0', turn 0: .*NaN"):
        regenerate(model, prompts(1), tmp_path / "a", ENDS, GREEDY)


@pytest.fixture(scope="module")
def answer_file(tmp_path_factory):
    out = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    regenerate(make_target("llama"), prompts(16), out, ENDS, GREEDY)
    return out


def test_targets_are_what_the_model_says_next(answer_file):
    """Row p holds the distribution at position p + 1; start marks pairs that may draft."""
    model = make_target("llama")
    answer = read_answers(answer_file)[0]
    _, t2d, _ = draft_vocabulary(count_tokens([answer], VOCABULARY), 60)
    sequence = FeatureReader(model, (0, 2, 4), t2d, top=60).read(answer)
    ids = torch.tensor(answer.ids)
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0]
    chosen = t2d.nonzero().flatten()
    first = len(answer.prompt_ids)
    assert sequence.tokens.tolist() == answer.ids[1:]
    assert sequence.start.tolist() == [i >= first - 1 for i in range(len(ids) - 1)]
    for row in range(first - 1, len(ids) - 1):
        expected = logits[row + 1, chosen].softmax(-1)
        got = torch.zeros(60).scatter(
            0, sequence.target_ids[row].long(), sequence.target_probabilities[row]
        )
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
        best = int(logits[row + 1].argmax())
        ended = answer.stopped and row == len(ids) - 2
        assert bool(sequence.usable[row]) == (bool(t2d[best]) and not ended)
        if t2d[best]:
            assert int(chosen[sequence.target_ids[row, 0].long()]) == best
    batch = collate([sequence, sequence], 8)
    assert batch.targets.usable.shape[1] == len(sequence.tokens) + 8
    assert not batch.targets.usable[:, -8:].any()


def recipe(**overrides) -> DrafterRecipe:
    settings = {
        "draft_vocab_size": 60,
        "slot_rank": 4,
        "held_out": 3,
        "train": TrainConfig(epochs=2, batch_sequences=4, warmup_steps=2, log_every=1, lr=1e-3),
        **overrides,
    }
    return DrafterRecipe(**settings)


def test_training_writes_a_drafter_that_decodes_losslessly(answer_file, tmp_path):
    folder, lines = tmp_path / "drafter", []
    network, tokenizer = make_target("llama"), make_tokenizer()
    train_drafter(network, tokenizer, answer_file, folder, recipe(), report=lines.append)
    assert any("closed form" in line for line in lines)
    drafter = load_drafter(folder, network, tokenizer)
    ids = prompts(1)[0].ids
    target = Target(network, drafter.feature_layers)
    budget, stats = FixedBudget(12, 4), GenerationStats()
    rounds = decode(target, drafter, budget, ids, SamplingParams(), 20, stats)
    ours, wanted = [token for new in rounds for token in new], plain(network, ids, 20)
    assert ours[: len(wanted)] == wanted


def test_every_save_shows_the_network_as_it_is_then(answer_file, tmp_path):
    network, tokenizer, seen = make_target("llama"), make_tokenizer(), []

    def keep(drafter, step, answer_tokens):
        seen.append((step, answer_tokens, drafter.norm.weight.detach().clone()))

    trained = train_drafter(network, tokenizer, answer_file, tmp_path, recipe(), on_save=keep)
    steps, tokens, weights = zip(*seen, strict=True)
    assert sorted(steps) == list(steps)
    assert sorted(tokens) == list(tokens)
    extra = read_extra(tmp_path)
    assert (steps[-1], tokens[-1]) == (extra["steps"], extra["answer_tokens"])
    assert torch.equal(weights[-1], trained.norm.weight)


def test_a_stopped_training_goes_on_to_the_same_weights(answer_file, tmp_path):
    network, tokenizer = make_target("llama"), make_tokenizer()
    whole = train_drafter(network, tokenizer, answer_file, tmp_path / "whole", recipe())
    short = recipe(train=TrainConfig(epochs=1, batch_sequences=4, warmup_steps=2, lr=1e-3))
    assert short.train.epochs < recipe().train.epochs
    parts = tmp_path / "parts"

    class Stop(Exception):
        pass

    def stop_at_three(line: str) -> None:
        if line.startswith("{'step': 3"):
            raise Stop

    settings = recipe(
        train=TrainConfig(
            epochs=2, batch_sequences=4, warmup_steps=2, log_every=1, lr=1e-3, save_every_seconds=0
        )
    )
    with pytest.raises(Stop):
        train_drafter(network, tokenizer, answer_file, parts, settings, report=stop_at_three)
    resumed = train_drafter(network, tokenizer, answer_file, parts, settings)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_a_run_leaves_what_one_wants_to_look_at(answer_file, tmp_path):
    network, tokenizer, lines = make_target("llama"), make_tokenizer(), []
    train_drafter(network, tokenizer, answer_file, tmp_path, recipe(), report=lines.append)
    table = Table(tmp_path / "training" / "eval.csv").rows()
    assert [int(row["step"]) for row in table] == [0, 8]
    assert all(float(row["tau"]) >= 1.0 for row in table)
    assert len(Table(tmp_path / "training" / "log.csv").rows()) == 8
    assert any("GiB are free" in line for line in lines)
    assert read_extra(tmp_path)["held_out"]["tau"] == pytest.approx(
        float(table[-1]["tau"]), abs=1e-3
    )


@pytest.mark.parametrize("kind", ["eagle3", "parallel"])
def test_the_other_drafters_train_the_same_way(answer_file, tmp_path, kind):
    network, tokenizer = make_target("llama"), make_tokenizer()
    lines = []
    model = train_drafter(
        network, tokenizer, answer_file, tmp_path, recipe(kind=kind), report=lines.append
    )
    assert any("closed form" in line for line in lines)
    assert model.config.drafter_type == kind
    assert float(Table(tmp_path / "training" / "eval.csv").rows()[-1]["tau"]) >= 1.0
    assert load_drafter(tmp_path, network, tokenizer).feature_layers == model.config.feature_layers


def test_init_goes_on_from_weights_and_keeps_their_vocabulary(answer_file, tmp_path):
    network, tokenizer, lines = make_target("llama"), make_tokenizer(), []
    first = train_drafter(
        network, tokenizer, answer_file, tmp_path / "first", recipe(draft_vocab_size=40)
    )
    again = recipe(init=tmp_path / "first", draft_vocab_size=60, train=TrainConfig(epochs=1))
    more = train_drafter(
        network, tokenizer, answer_file, tmp_path / "more", again, report=lines.append
    )
    assert torch.equal(first.d2t, more.d2t)
    assert torch.equal(first.t2d, more.t2d)
    counts = count_tokens(split_held_out(read_answers(answer_file), 3)[0], VOCABULARY)
    coverage = counts[first.t2d].sum() / counts.sum()
    assert any(f"covers {coverage:.2%}" in line for line in lines)
    start = next(line for line in lines if line.startswith("step 0"))
    end = Table(tmp_path / "first" / "training" / "eval.csv").rows()[-1]
    begun = float(re.search(r"'accuracy_b1s0': ([0-9.]+)", start)[1])
    assert begun == pytest.approx(float(end["accuracy_b1s0"]), abs=0.03), "stored in half precision"
    with pytest.raises(SpecBlockError, match="kind: specblock"):
        train_drafter(
            network,
            tokenizer,
            answer_file,
            tmp_path / "x",
            recipe(init=tmp_path / "first", kind="eagle3"),
        )


def test_stored_and_online_features_train_too(answer_file, tmp_path):
    loop = TrainConfig(epochs=1, batch_sequences=4, warmup_steps=2, lr=1e-3)
    network, tokenizer = make_target("llama"), make_tokenizer()
    online = train_drafter(
        network, tokenizer, answer_file, tmp_path / "online", recipe(online=True, train=loop)
    )
    kept = train_drafter(network, tokenizer, answer_file, tmp_path / "kept", recipe(train=loop))
    settings = recipe(features_file=tmp_path / "features", train=loop)
    stored = train_drafter(network, tokenizer, answer_file, tmp_path / "stored", settings)
    again = train_drafter(network, tokenizer, answer_file, tmp_path / "again", settings)
    for name, weight in kept.named_parameters():
        # batches of another make-up round differently
        near = {"atol": 5e-3, "rtol": 5e-2}
        torch.testing.assert_close(online.get_parameter(name), weight, **near, msg=name)
        assert torch.equal(stored.get_parameter(name), again.get_parameter(name)), name


def test_what_a_kind_cannot_do_is_refused(answer_file, tmp_path):
    network, tokenizer = make_target("llama"), make_tokenizer()
    for settings, what in (
        ({"kind": "medusa"}, "choose specblock, eagle3, parallel"),
        ({"kind": "eagle3", "layer_shift": False}, "no layer_shift"),
    ):
        with pytest.raises(SpecBlockError, match=what):
            train_drafter(network, tokenizer, answer_file, tmp_path, recipe(**settings))


def test_a_missing_dashboard_stops_before_any_work(answer_file, tmp_path, monkeypatch):
    monkeypatch.setattr(monitor, "find_spec", lambda name: None)
    settings = recipe(train=TrainConfig(tensorboard=True), features_file=tmp_path / "features")
    with pytest.raises(SpecBlockError, match="tensorboard is not installed"):
        train_drafter(make_target("llama"), make_tokenizer(), answer_file, tmp_path, settings)
    assert not (tmp_path / "features").exists()
