"""Answers given are copied from: the output stays, and the memory outlives the process."""

import pytest
import torch
from tests.adaptation.world import config, prompt
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import make_drafter, make_target

from specblock.adaptation.doorway import adapt as start_adapting
from specblock.budget.costs import CostTable
from specblock.drafters.base import BudgetController
from specblock.drafters.lookup.copies import TextCopies
from specblock.engine.speculator import Speculator
from specblock.target.model import Target
from specblock.training.data.answers import Answer
from specblock.training.features.reader import FeatureReader

LENGTH = {"max_new_tokens": 24, "ignore_eos": True}


def make(adapt=None):
    """With a measured budget, so that copies are looked for."""
    target = Target(make_target("llama"), (0, 2, 4))
    budget = BudgetController(CostTable({1: 1.0, 64: 1.2}, {1: 0.1}, {1: 0.1}))
    drafter = make_drafter(0, cached_slots=1, slot_rank=4, sink=True)
    speculator = Speculator(target, make_tokenizer(), drafter, budget, copies=TextCopies())
    return speculator if adapt is None else start_adapting(speculator, adapt)


def serve(speculator, *numbers, **settings):
    return [speculator.generate(prompt(n), **{**LENGTH, **settings}) for n in numbers]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_was_said_is_drafted_and_the_output_stays(temperature):
    settings = {"temperature": temperature, "seed": 3}
    asked = (1, 2, 1, 2)
    plain = serve(make(), *asked, use_drafter=False, **settings)
    speculator = make(config(policy="memory"))
    remembered = serve(speculator, *asked, **settings)
    forgotten = serve(make(config(policy="memory", memory_mib=0)), *asked, **settings)
    assert [a.token_ids for a in remembered] == [a.token_ids for a in plain]
    assert [a.token_ids for a in forgotten] == [a.token_ids for a in plain]
    again = sum(a.stats.rounds for a in remembered[2:])
    assert again < sum(a.stats.rounds for a in forgotten[2:]) / 2, "said before, so known"
    adaptation = speculator.adaptation
    assert adaptation.status()["memory_tokens"] == 2 * (4 + 24 + 1)
    assert adaptation.journal.attempts == 0
    assert len(adaptation.buffer) == 0, "nothing is collected that no update will read"


def test_an_answer_is_remembered_as_far_as_it_was_given():
    speculator = make(config(policy="memory"))
    stream = speculator.stream(prompt(1), **LENGTH)
    said = next(stream).token_ids + next(stream).token_ids
    stream.close()
    kept = speculator.adaptation.memory.tokens().tolist()
    assert kept == [*prompt(1)[-4:], *said, -1]


def test_the_memory_outlives_the_process(tmp_path):
    first = make(config(policy="memory", folder=tmp_path))
    serve(first, 1)
    first.close()
    second = make(config(policy="memory", folder=tmp_path))
    kept = first.adaptation.memory.tokens()
    assert len(kept)
    assert torch.equal(*(torch.tensor(m) for m in (kept, second.adaptation.memory.tokens())))
    assert serve(second, 1)[0].stats.rounds < serve(make(), 1)[0].stats.rounds


def test_feedback_waits_until_an_update_is_within_reach():
    poor = make(config(exploration_seconds=0.0, exploration_share=0.0, collect_share=0.5))
    serve(poor, 1, 2)
    assert len(poor.adaptation.buffer) == 0
    rich = make(config(exploration_seconds=100.0, collect_share=0.5, first_update_seconds=10.0))
    serve(rich, 1, 2)
    assert len(rich.adaptation.buffer) == 2


def test_remembered_states_are_those_before_the_tokens():
    speculator = make(config(policy="memory"))
    said = serve(speculator, 1, max_new_tokens=48)[0].token_ids
    memory = speculator.adaptation.memory
    reader = FeatureReader(
        speculator.target.model, speculator.drafter.feature_layers, speculator.drafter.model.t2d
    )
    answer = Answer("1", prompt(1), said, stopped=False)
    expected = reader.read(answer).features[-(4 + len(said)) :]
    kept = memory.to_dict()["keys"]
    assert len(kept) == len(expected) + 1
    for number, state in enumerate(expected):
        assert memory.keys.similarity(kept[:-1], state)[number] > 0.98
    assert not kept[-1].any(), "nothing follows the end"
