"""A drafter from nothing: silent until what was served pays, and never a word of another."""

from dataclasses import replace

import pytest
import torch
from tests.adaptation.test_adapter import serve
from tests.adaptation.world import config, make_record, prompt
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import VOCABULARY, make_target

from specblock.adaptation.day0 import empty_drafter
from specblock.adaptation.doorway import adapt
from specblock.adaptation.feedback.buffer import as_drafted
from specblock.adaptation.feedback.served_tokens import ServedTokens
from specblock.adaptation.learning.arms import FIT
from specblock.adaptation.learning.beginning import cost_of_a_round
from specblock.adaptation.state import export
from specblock.budget.costs import CostTable
from specblock.engine.loading import assemble, load_drafter
from specblock.engine.named_drafter import DAY0, find_drafter
from specblock.errors import ConfigError

SETTINGS = {"policy": "always-full", "accept_z": 0.0, "fresh_lr": 1e-3}


def speculator(folder=None, **settings):
    network, tokenizer = make_target("llama"), make_tokenizer()
    empty = empty_drafter(network, tokenizer)
    made = assemble(network, tokenizer, empty, budget="fixed", calibrate="never")
    return adapt(made, config(**{**SETTINGS, **settings}, folder=folder))


def plain(count, **settings):
    model = assemble(make_target("llama"), make_tokenizer(), None, calibrate="never")
    return serve(model, count, **settings)


def test_it_begins_when_enough_was_served_and_the_output_stays():
    own = speculator()
    adaptation = own.adaptation
    assert not adaptation.learner.begun
    found = serve(own, 3)
    assert own.drafter.untrained
    assert adaptation.journal.arms[FIT]["pulls"] == 0, "fewer pairs than unknowns"
    drafted = own.generate(prompt(0), max_new_tokens=16, ignore_eos=True).stats
    assert drafted.accepted_length == 1.0, "nobody was asked"
    found += serve(own, 25, first=3)
    assert adaptation.learner.begun
    assert adaptation.journal.arms[FIT]["swaps"] == 1
    assert adaptation.journal.arms["full"]["pulls"] > 0, "and learns on"
    assert found == plain(28)
    assert own.budget.asking
    settings = {"temperature": 0.8, "seed": 3}
    assert serve(own, 2, **settings) == plain(2, **settings)


def test_the_vocabulary_is_what_was_served_and_grows():
    served = ServedTokens(10, 3)
    assert served.vocabulary().nonzero().flatten().tolist() == [0, 1, 2]
    served.add(torch.tensor([7, 7, 9]))
    assert served.vocabulary().nonzero().flatten().tolist() == [0, 7, 9]
    served.add(torch.tensor([5, 5, 4, 4]))
    assert served.vocabulary().nonzero().flatten().tolist() == [4, 5, 7]
    again = ServedTokens(10, 3)
    again.restore(served.to_dict())
    assert torch.equal(again.vocabulary(), served.vocabulary())


def test_an_update_may_bring_other_tokens_to_draft():
    own = speculator()
    serve(own, 28)
    learner, model = own.adaptation.learner, own.drafter.model
    vocabulary = ~torch.zeros(VOCABULARY, dtype=torch.bool)
    smaller = replace(model.config, draft_vocab_size=VOCABULARY)
    assert model.config == smaller, "a tiny target's tokens are all drafted"
    learner._draft_from(vocabulary)
    assert torch.equal(learner.master.t2d, vocabulary)
    head = own.target.model.get_output_embeddings().weight
    torch.testing.assert_close(learner.master.lm_head.weight, head.float())


def test_a_record_in_other_vocabularies():
    record = make_record(0)
    ids, likely = record.sequence.target_ids, record.sequence.target_probabilities
    every = as_drafted(record, torch.ones(VOCABULARY, dtype=torch.bool))
    assert torch.equal(every.target_ids, ids)
    assert torch.equal(every.usable, record.sequence.usable)
    t2d = torch.arange(VOCABULARY) % 2 == 1
    halved = as_drafted(record, t2d)
    for row in record.sequence.usable.nonzero().flatten().tolist():
        said = list(zip(ids[row].tolist(), likely[row].tolist(), strict=True))
        kept = [(token, chance) for token, chance in said if token % 2]
        lost = sum(chance for token, chance in said if not token % 2)
        for place, (token, chance) in enumerate(kept):
            assert int(halved.target_ids[row, place]) == token // 2
            assert float(halved.target_probabilities[row, place]) == pytest.approx(
                chance / (1 - lost), rel=1e-4
            )
        assert float(halved.target_probabilities[row, len(kept) :].sum()) == 0.0
        assert bool(halved.usable[row]) == bool(ids[row, 0] % 2)


def test_what_it_became_outlives_the_process(tmp_path):
    first = speculator(tmp_path)
    serve(first, 28)
    first.close()
    second = speculator(tmp_path)
    assert second.adaptation.learner.begun
    ours, theirs = first.drafter.model.state_dict(), second.drafter.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert serve(second, 3) == plain(3)
    second.close()
    export(second.adaptation, tmp_path / "out")
    drafter = load_drafter(tmp_path / "out", make_target("llama"), make_tokenizer())
    assert not drafter.untrained
    torch.testing.assert_close(
        drafter.model.input_layer.fuse.weight, ours["input_layer.fuse.weight"], atol=1e-2, rtol=1e-2
    )


def test_one_that_has_not_begun_is_silent_after_a_resume_and_exports_nothing(tmp_path):
    first = speculator(tmp_path)
    serve(first, 2)
    first.close()
    second = speculator(tmp_path)
    assert not second.adaptation.learner.begun
    assert not second.budget.asking
    with pytest.raises(ConfigError, match="has not begun"):
        export(second.adaptation, tmp_path / "out")
    second.close()


def test_a_beginning_that_drafts_badly_is_taken_back():
    own = speculator()
    serve(own, 28)
    adaptation = own.adaptation
    learner = adaptation.learner
    learner.former, learner.current = learner.start, learner.original
    adaptation._roll_back()
    assert not learner.begun
    assert not own.budget.asking
    assert serve(own, 1) == plain(1)


def test_it_is_always_the_same_and_needs_a_folder_or_settings():
    network, tokenizer = make_target("llama"), make_tokenizer()
    one, other = (empty_drafter(network, tokenizer).model.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(ConfigError, match="--adapt"):
        find_drafter("any", "day0")
    assert find_drafter("any", "day0", adapts=True) == DAY0


def test_a_rounds_cost_by_the_table():
    costs = CostTable({1: 10.0, 9: 16.0}, {1: 3.0}, {1: 1.0}, overhead=1.0)
    assert cost_of_a_round(costs) == pytest.approx((3.0 + 16.0 + 1.0) / 10.0)
    assert cost_of_a_round(None) == 1.0
