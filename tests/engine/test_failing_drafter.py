"""What a drafter raises ends its drafting, and nothing else."""

import logging

import pytest

from specblock.drafters.specblock.entries import Entries
from tests.engine.test_engine import LENGTH, alone, make, prompts, tokens_of

PARTS = ("reset", "prefill", "drafting", "first_block", "observe")


def broken(monkeypatch, drafter, part, after=0):
    """Let ``part`` of this very drafter raise from its ``after``-th call on; the calls."""
    own, calls = getattr(type(drafter), part), []

    def failing(self, *arguments, **settings):
        if self is drafter:
            calls.append(part)
            if len(calls) > after:
                raise ZeroDivisionError(part)
        return own(self, *arguments, **settings)

    monkeypatch.setattr(type(drafter), part, failing)
    return calls


@pytest.mark.parametrize("kind", ["network", "measured", "lookup"])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("after", [0, 2])
def test_the_text_goes_on_plainly_and_the_others_draft(monkeypatch, caplog, kind, part, after):
    speculator, asked = make(kind=kind), prompts(3)
    if not hasattr(speculator.drafter, part):
        pytest.skip("this drafter has no such part")
    expected = alone(make(kind=kind), asked)
    calls = broken(monkeypatch, speculator.drafter, part, after)  # of the first seat alone
    with caplog.at_level(logging.WARNING, "specblock"):
        answers = speculator.generate(asked, **LENGTH)
    assert [answer.token_ids for answer in answers] == expected
    said = [own for own in caplog.records if "Drafting failed" in own.message]
    assert len(said) == (len(calls) > after)
    assert len(calls) <= after + 1, "it is left alone afterwards"
    assert all(answer.stats.drafted_nodes for answer in answers[1:])
    assert not speculator.engine.busy


def test_a_seat_that_failed_is_not_lent_again(monkeypatch, caplog):
    speculator, asked = make(kind="network"), prompts(2)
    expected = alone(make(kind="network"), asked)
    broken(monkeypatch, speculator.drafter, "observe")
    for number in (0, 1):
        answer = speculator.generate(asked[number], **LENGTH)
        assert answer.token_ids == expected[number]
    assert answer.stats.drafted_nodes > 0
    assert len([own for own in caplog.records if "Drafting failed" in own.message]) == 1


def test_a_forward_for_several_that_fails_is_computed_one_by_one(monkeypatch):
    speculator, asked = make(kind="network"), prompts(3)
    expected = alone(make(kind="network"), asked)
    texts = [speculator.stream(prompt, **LENGTH) for prompt in asked]
    found = [list(next(text).token_ids) for text in texts]
    compute, victim = Entries.compute, speculator.drafter

    def failing(forwards):
        if any(own.cache is victim._cache for own in forwards):
            raise MemoryError("of one text")
        return compute(forwards)

    monkeypatch.setattr(Entries, "compute", staticmethod(failing))
    for own, text in zip(found, texts, strict=True):
        own += tokens_of(text)
    assert found == expected


def test_what_writes_the_answer_out_ends_it_alone():
    """A tokenizer that fails on one text leaves the others as they are."""
    speculator, asked = make(kind="network"), prompts(3)
    expected = alone(make(kind="network"), asked)
    texts = [speculator.ask(prompt, **LENGTH) for prompt in asked]

    def failing(ids):
        raise UnicodeError("no text")

    texts[1]._request._text.push_until_stop = failing
    found = [tokens_of(texts[0])]
    with pytest.raises(UnicodeError, match="no text"):
        list(texts[1])
    found.append(tokens_of(texts[2]))
    assert found == [expected[0], expected[2]]
    assert not speculator.engine.busy


def test_pieces_can_be_taken_by_another_than_who_computes():
    speculator, asked = make(kind="network"), prompts(2)
    handles, found = [speculator.ask(prompt, **LENGTH) for prompt in asked], [[], []]
    over = [False, False]
    assert speculator.engine.counts == (0, 2)
    while not all(over):
        speculator.engine.advance()
        for place, handle in enumerate(handles):
            pieces, over[place] = handle.ready()
            found[place] += tokens_of(pieces)
    assert found == alone(make(kind="network"), asked)
    assert speculator.engine.counts == (0, 0)
