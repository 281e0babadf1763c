"""Draws from processed distributions: which token, how often, and by what margin."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from specblock.tree.noise import gumbel
from specblock.tree.sampling import (
    NoPossibleTokenError,
    SamplingParams,
    draw,
    draw_margin,
    process,
)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def test_greedy_draw_takes_the_lowest_id_on_ties():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        logits = torch.zeros(5000, dtype=dtype)
        logits[[4000, 17, 900]] = 3.0
        assert draw(logits, SamplingParams(), [], 0, 0) == 17
    # 3.0 and 4.5 tie once the repetition penalty has divided the second by 1.5.
    params = SamplingParams(repetition_penalty=1.5)
    assert draw(torch.tensor([1.0, 3.0, 4.5]), params, [2], 1, 1) == 1
    assert draw(torch.tensor([1.0, 3.0, 4.5]), SamplingParams(temperature=1e-6), [], 0, 0) == 2


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(1.0),
        SamplingParams(0.6),
        SamplingParams(1.3, top_k=3),
        SamplingParams(1.0, top_p=0.8),
        SamplingParams(1.0, min_p=0.3),
        SamplingParams(0.9, 4, 0.9, 0.1, 1.4, 0.5, -0.3),
    ],
)
def test_draws_follow_the_processed_distribution(params):
    logits, context = torch.tensor([0.3, -1.2, 1.1, 0.0, 0.9]), [1, 2, 2, 4]
    wanted = process(logits, params, context, 1).double().softmax(-1)
    counts = torch.zeros(5, dtype=torch.float64)
    for position in range(2000):
        counts[draw(logits, params, context, 1, position)] += 1
    assert torch.all(counts[wanted == 0] == 0)
    possible = wanted > 0
    found = stats.chisquare(counts[possible].numpy(), 2000 * wanted[possible].numpy())
    assert found.pvalue > 1e-3


@pytest.mark.parametrize("compact", [False, True])
def test_a_token_of_probability_zero_is_never_drawn(compact):
    generator = torch.Generator().manual_seed(3)
    for size in (2, 5, 1000):
        for position in range(100):
            logits = torch.randn(size, generator=generator)
            possible = torch.rand(size, generator=generator) < 0.4
            possible[torch.randint(0, size, (1,), generator=generator)] = True
            logits[~possible] = -math.inf
            params = SamplingParams(1.0, min_p=1e-9 if compact else 0.0)
            assert possible[draw(logits, params, [], 0, position)]


@pytest.mark.parametrize("top_k", [0, 20])
@pytest.mark.parametrize("top_p", [0.8, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 0.05])
def test_draw_is_the_best_token_once_its_own_noise_is_added(top_k, top_p, min_p):
    for seed in range(40):
        logits = torch.randn(60, generator=torch.Generator().manual_seed(seed))
        params = SamplingParams(0.7, top_k, top_p, min_p, seed=seed)
        noise = gumbel(seed, 9, torch.arange(60)).tolist()
        scores = [
            score + noise[token] for token, score in enumerate(process(logits, params, [], 0))
        ]
        assert draw(logits, params, [], 0, 9) == scores.index(max(scores))


def test_draw_depends_on_seed_and_position_only_through_the_noise():
    logits = torch.randn(100, generator=torch.Generator().manual_seed(0))
    params = SamplingParams(1.0, seed=5)
    draws = [draw(logits, params, [], 0, position) for position in range(50)]
    assert draws == [draw(logits.clone(), params, [1], 1, position) for position in range(50)]
    assert len(set(draws)) > 10
    other = replace(params, seed=6)
    assert draws != [draw(logits, other, [], 0, position) for position in range(50)]


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(1.0), SamplingParams(1.0, 3)])
@pytest.mark.parametrize(
    "logits", [[0.0, math.nan, 1.0], [0.0, math.inf, 1.0], [-math.inf, -math.inf, -math.inf]]
)
def test_impossible_logits_are_refused(params, logits):
    with pytest.raises(ValueError, match="logits"):
        draw(torch.tensor(logits), params, [], 0, 0)


def test_greedy_margin_is_the_gap_of_the_processed_logits():
    logits = torch.tensor([1.0, 4.0, 3.5])
    assert draw_margin(logits, SamplingParams(), [], 0, 0) == 0.5
    assert draw_margin(logits, SamplingParams(repetition_penalty=2.0), [1], 1, 1) == 1.5
    assert draw_margin(torch.zeros(1), SamplingParams(), [], 0, 0) == math.inf


def test_sampled_margin_is_the_gap_behind_the_noise_in_logits():
    logits = torch.tensor([0.2, 0.3, 0.1, 0.5])
    params = SamplingParams(0.5, seed=3)
    first, second = (2 * logits + gumbel(3, 7, torch.arange(4))).topk(2).values.tolist()
    assert draw_margin(logits, params, [], 0, 7) == pytest.approx((first - second) / 2)
    for alone in ([-math.inf, 0.0, -math.inf], [0.0]):
        assert draw_margin(torch.tensor(alone), SamplingParams(1.0), [], 0, 0) == math.inf


@given(seed=st.integers(0, 10**6), temperature=st.sampled_from([0.3, 1.0, 1.7]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_less_than_half_the_margin_changes_no_sampled_token(seed, temperature):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(20, generator=generator)
    params = SamplingParams(temperature, seed=seed)
    token, margin = draw(logits, params, [], 0, 3), draw_margin(logits, params, [], 0, 3)
    shaken = logits + 0.99 * margin * (torch.rand(20, generator=generator) - 0.5)
    assert draw(shaken, params, [], 0, 3) == token
    pushed = logits.clone()
    pushed[token] -= 1.01 * margin
    assert draw(pushed, params, [], 0, 3) != token


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("filters", [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.2}, {}])
def test_no_filter_hides_a_number_that_is_none(wrong, filters):
    logits = torch.arange(20.0)
    logits[4] = wrong
    with pytest.raises(NoPossibleTokenError):
        draw(logits, SamplingParams(temperature=1.0, **filters), [1], 1, 1)
