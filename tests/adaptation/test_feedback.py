"""Feedback is what reading the answer again would have shown, and the buffer keeps its bounds."""

import pytest
import torch
from tests.adaptation.world import config, make_record, make_speculator, prompt
from tests.tiny import VOCABULARY, OracleDrafter, make_drafter, make_target

from specblock.adaptation.adapter import Adaptation
from specblock.adaptation.feedback.buffer import (
    PER_STRATUM,
    FeedbackBuffer,
    as_drafted,
    stratum_of,
)
from specblock.adaptation.feedback.observer import FeedbackObserver, TargetReducer
from specblock.adaptation.feedback.signals import round_signal
from specblock.drafters.base import FixedBudget
from specblock.engine.rounds import decode
from specblock.engine.statistics import GenerationStats
from specblock.target.model import Target
from specblock.training.data.answers import Answer
from specblock.training.features.reader import FeatureReader
from specblock.tree.accept import Acceptance
from specblock.tree.draft_tree import DraftTree
from specblock.tree.sampling import SamplingParams
from specblock.tree.source import Source


def decoded(params=None, length=24, keep=None, **limits):
    """An answer decoded with crooked trees under observation: prompt, tokens, record, t2d."""
    params, tokens = params or SamplingParams(), prompt(1, 9)
    target = Target(make_target("llama"), (0, 2, 4))

    def run(drafter, observer=None):
        stats = GenerationStats()
        rounds = decode(target, drafter, FixedBudget(), tokens, params, length, stats, observer)
        return [token for new in rounds for token in new]

    plain = run(None)
    limits = {"max_prompt_pairs": 64, "max_answer_pairs": 64, **limits}
    t2d = make_drafter().model.t2d
    observer = FeedbackObserver(TargetReducer(VOCABULARY), 1, **limits)
    said = run(OracleDrafter(plain, len(tokens)), observer)
    assert said == plain
    return tokens, said, observer.record(keep or length), t2d


@pytest.mark.parametrize(
    "params", [SamplingParams(), SamplingParams(temperature=0.8, seed=3, repetition_penalty=1.2)]
)
def test_feedback_is_what_the_feature_reader_reads(params):
    tokens, said, record, t2d = decoded(params)
    reader = FeatureReader(make_target("llama"), (0, 2, 4), t2d, top=8)
    expected = reader.read(Answer("a", tokens, said, False))
    ours = as_drafted(record, t2d)
    last = len(ours.tokens) - 1
    assert len(ours.tokens) == len(expected.tokens) == len(tokens) + len(said) - 1
    assert torch.equal(ours.tokens, expected.tokens)
    assert torch.equal(ours.start, expected.start)
    assert ours.features.dtype == torch.bfloat16
    torch.testing.assert_close(ours.features.float(), expected.features, atol=1e-2, rtol=1e-2)
    # the last token was never fed to the target: nothing is known of what follows it
    assert torch.equal(ours.usable[:last], expected.usable[:last])
    assert not ours.usable[last]
    likely = ours.target_probabilities[:last, :8]
    assert torch.equal(ours.target_ids[:last, :8], expected.target_ids[:last])
    torch.testing.assert_close(likely, expected.target_probabilities[:last], atol=1e-4, rtol=1e-3)
    assert record.missed[:last].any()
    assert not record.missed[: len(tokens) - 1].any()


def test_what_follows_the_end_of_the_answer_is_cut_off():
    tokens, said, record, _ = decoded(keep=7)
    ours = record.sequence
    assert ours.tokens.tolist() == (tokens + said[:7])[1:]
    assert ours.answer_tokens == 7
    assert not ours.usable[-1]
    assert len(record.missed) == len(ours.tokens)


def test_long_prompts_and_answers_leave_a_part():
    tokens, said, record, _ = decoded(max_prompt_pairs=4, max_answer_pairs=6)
    ours = record.sequence
    assert ours.tokens[:4].tolist() == [*tokens[-3:], said[0]]
    assert ours.start.tolist() == [False] * 3 + [True] * (len(ours.tokens) - 3)
    assert len(said) > ours.answer_tokens >= 6


def test_no_round_is_no_feedback():
    observer = FeedbackObserver(TargetReducer(8), 1, max_prompt_pairs=8, max_answer_pairs=8)
    assert observer.record(1) is None
    observer.prefilled(torch.zeros(3, 96), torch.tensor([1, 2, 3]))
    assert observer.record(1) is None


def test_signals_of_a_round():
    log_probs = torch.tensor([0.0, -0.5, -2.0, -1.0])
    tree = DraftTree(
        torch.tensor([9, 4, 5, 6]),
        torch.tensor([-1, 0, 0, 2]),
        torch.tensor([0, 1, 1, 2]),
        torch.tensor([0.0, -0.5, -2.0, -3.0]),
        log_probs,
        torch.tensor([0, 0, 0, 1]),
    )
    accepted = Acceptance([0, 2], [5, 7], [[(1, False), (2, True)], [(3, False)]])
    signal = round_signal(tree, accepted)
    # hit by the second child (bucket 1, class 0); then missed (bucket 3, class 1)
    assert (signal.tokens, signal.nodes, signal.rank_error) == (2, 2, 1 + 2)
    missed = 1 - torch.tensor(-1.0).exp()
    assert signal.ranked == 2
    assert signal.loss == pytest.approx(2.0 - missed.log().item(), rel=1e-5)


def test_signals_are_of_the_networks_own_nodes():
    # under the root: the network's with the text's consent, and a copy, which is what is drawn
    tree = DraftTree(
        torch.tensor([9, 4, 5, 6]),
        torch.tensor([-1, 0, 0, 2]),
        torch.tensor([0, 1, 1, 2]),
        torch.tensor([0.0, -0.5, -0.2, -0.3]),
        torch.tensor([0.0, -0.5, -0.2, -0.1]),
        torch.tensor([0, 1, 2, 0]),
        torch.tensor([Source.NETWORK, Source.AGREED, Source.ALONE, Source.COPIED]),
    )
    accepted = Acceptance([0, 2], [5, 7], [[(1, False), (2, True)], [(3, False)]])
    signal = round_signal(tree, accepted)
    assert (signal.nodes, signal.ranked, signal.rank_error) == (1, 0, 0)
    missed = 1 - torch.tensor(-0.5).exp()
    assert signal.loss == pytest.approx(-missed.log().item(), rel=1e-5)


def test_the_buffer_keeps_its_bytes_and_the_newest():
    one = make_record(0).nbytes()
    buffer = FeedbackBuffer(5 * one)
    for number in range(9):
        buffer.add(make_record(number))
        assert buffer.nbytes <= 5 * one
    assert [record.stratum for record in buffer._records] == [4, 5, 6, 7, 8]
    assert buffer.statistics()["evicted"] == 4
    buffer.add(make_record(10, answer=500))
    assert len(buffer) == 5, "what never fits flushes nothing"


def test_a_burst_of_one_request_flushes_only_its_own():
    one = make_record(0).nbytes()
    buffer = FeedbackBuffer(6 * one)
    for number in range(4):
        buffer.add(make_record(number))
    for number in range(50):
        buffer.add(make_record(100 + number, stratum=77))
    strata = [record.stratum for record in buffer._records]
    assert strata == [0, 1, 2, 3] + [77] * PER_STRATUM
    buffer.add(make_record(4))
    assert [record.stratum for record in buffer._records] == [0, 1, 2, 3, 77, 4]
    buffer.add(make_record(5))
    assert [record.stratum for record in buffer._records] == [1, 2, 3, 77, 4, 5]


def test_no_stratum_is_on_both_sides_and_draws_prefer_the_new():
    buffer = FeedbackBuffer(2**30, held_out_share=0.25, half_life=10.0)
    for number in range(200):
        buffer.add(make_record(number % 120, stratum=stratum_of([number % 120])))
    train = {record.stratum for record in buffer.training()}
    held = {record.stratum for record in buffer.held_out(1000)}
    assert not train & held
    assert 0.1 < len(held) / (len(held) + len(train)) < 0.4
    assert len(buffer.held_out(5)) == 5
    drawn = [buffer.draw(8, seed) for seed in range(50)]
    assert all(len({id(record) for record in part}) == 8 for part in drawn)
    order = {id(record): place for place, record in enumerate(buffer.training())}
    mean = sum(order[id(record)] for part in drawn for record in part) / 400
    assert mean > 0.75 * len(order)
    assert [id(r) for r in buffer.draw(8, 3)] == [id(r) for r in drawn[3]]


def test_requests_fill_the_buffer_through_the_speculator():
    speculator = make_speculator(config(min_requests=1000))
    for number in range(4):
        speculator.generate(prompt(number), max_new_tokens=12, ignore_eos=True)
    adaptation = speculator.adaptation
    assert isinstance(adaptation, Adaptation)
    statistics = adaptation.buffer.statistics()
    assert (statistics["records"], statistics["answer_tokens"]) == (4, 48)
    assert adaptation.signals.tau.fast >= 1.0
    assert adaptation.signals.loss.fast > 0
    assert len(adaptation.signals.context(20_000)) == 7
    speculator.generate(prompt(5), max_new_tokens=12, use_drafter=False)
    assert len(adaptation.buffer) == 4, "plain decoding says nothing of the drafter"


def test_collecting_runs_neither_model_again(monkeypatch):
    calls = {True: [], False: []}
    for adapting in calls:
        speculator = make_speculator(config(min_requests=1000) if adapting else None)
        for part, name in ((speculator.target, "run"), (speculator.drafter.model, "run")):
            real = getattr(part, name)

            def counted(*args, real=real, name=name, adapting=adapting, **more):
                calls[adapting].append(name)
                return real(*args, **more)

            monkeypatch.setattr(part, name, counted)
        speculator.generate(prompt(3), max_new_tokens=20, ignore_eos=True)
    assert calls[True] == calls[False] != []
