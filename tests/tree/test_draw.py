"""Draws from processed distributions: the noise, the inverse distribution function, the margins."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from specblock.tree import sampling
from specblock.tree.sampling import SamplingParams, draw, draw_margin, process, uniform


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


def test_uniform_is_fixed_for_ever_and_looks_uniform():
    # The first output of SplitMix64 from state 0, a published value.
    assert sampling._scramble(sampling._GOLDEN) == 0xE220A8397B1DCDAF
    assert uniform(0, 0) == 0.6524484863740322
    assert uniform(1, 0) != uniform(0, 1)
    assert uniform(-1, 5) == uniform(2**64 - 1, 5)
    for values in (
        [uniform(7, position) for position in range(20000)],
        [uniform(seed, 7) for seed in range(20000)],
        [uniform(seed, 20000 - seed) for seed in range(20000)],
    ):
        assert all(0 <= value < 1 for value in values)
        assert stats.kstest(values, "uniform").pvalue > 1e-3
        lagged = stats.pearsonr(values[:-1], values[1:])
        assert lagged.pvalue > 1e-3


def on_grid(monkeypatch, logits, params, steps, context=(), prompt_length=0):
    """Share of each token when the uniform runs over the middles of a grid."""
    counts = Counter()
    for step in range(steps):
        monkeypatch.setattr(sampling, "uniform", lambda *_, at=step: (at + 0.5) / steps)
        counts[draw(logits, params, context, prompt_length, 0)] += 1
    return torch.tensor([counts[token] / steps for token in range(len(logits))])


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
def test_draw_reproduces_the_processed_distribution(monkeypatch, params):
    logits = torch.tensor([0.3, -1.2, 1.1, 0.0, 0.9])
    context = [1, 2, 2, 4]
    shares = on_grid(monkeypatch, logits, params, 1000, context, 1)
    wanted = process(logits, params, context, 1).softmax(-1)
    assert (shares - wanted).abs().max() <= 1.01 / 1000
    assert torch.all(shares[wanted == 0] == 0)


@pytest.mark.parametrize("u", [0.0, 2.0**-53, 0.5, 1 - 2.0**-53])
@pytest.mark.parametrize("compact", [False, True])
def test_a_token_of_probability_zero_is_never_drawn(monkeypatch, u, compact):
    monkeypatch.setattr(sampling, "uniform", lambda *_: u)
    generator = torch.Generator().manual_seed(3)
    for size in (2, 5, 1000):
        for _ in range(30):
            logits = torch.randn(size, generator=generator)
            possible = torch.rand(size, generator=generator) < 0.4
            possible[0] = possible[-1] = False
            possible[torch.randint(0, size, (1,), generator=generator)] = True
            logits[~possible] = -math.inf
            params = SamplingParams(1.0, min_p=1e-9 if compact else 0.0)
            token = draw(logits, params, [], 0, 0)
            assert possible[token]
            allowed = possible.nonzero().squeeze(1)
            if u == 0.0:
                assert token == allowed[0]
            elif u > 0.9:
                assert token == allowed[-1]


def test_underflowing_tokens_at_the_ends_are_never_drawn(monkeypatch):
    logits = torch.tensor([-2000.0, 0.0, 0.0, -2000.0])
    for u, token in ((0.0, 1), (1 - 2.0**-53, 2)):
        monkeypatch.setattr(sampling, "uniform", lambda *_, u=u: u)
        assert draw(logits, SamplingParams(1.0), [], 0, 0) == token


@given(logits=st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=60))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_the_largest_uniform_draws_the_last_token(logits):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "uniform", lambda *_: 1 - 2.0**-53)
        token = draw(torch.tensor(logits), SamplingParams(1.0), [], 0, 0)
    assert token == len(logits) - 1


@given(total=st.floats(0.5, 2.0))
@settings(deadline=None, derandomize=True)
def test_the_largest_uniform_stays_below_any_total(total):
    assert (1 - 2.0**-53) * total < total


@pytest.mark.parametrize("top_k", [0, 20])
@pytest.mark.parametrize("top_p", [0.8, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 0.05])
def test_draw_goes_through_the_tokens_in_the_order_of_their_ids(top_k, top_p, min_p):
    for seed in range(40):
        logits = torch.randn(60, generator=torch.Generator().manual_seed(seed))
        params = SamplingParams(1.0, top_k, top_p, min_p, seed=seed)
        cumulative = process(logits, params, [], 0).double().softmax(-1).cumsum(-1)
        wanted = int((cumulative > uniform(seed, 9)).nonzero()[0])
        assert draw(logits, params, [], 0, 9) == wanted


@pytest.mark.parametrize("top_k", [0, 5])
def test_the_route_for_parallel_sums_draws_the_same_tokens(monkeypatch, top_k):
    logits = torch.randn(40, generator=torch.Generator().manual_seed(2))
    logits[::3] = -math.inf
    params = SamplingParams(1.0, top_k, seed=4)
    wanted = [draw(logits, params, [], 0, position) for position in range(200)]
    monkeypatch.setattr(sampling, "_sums_in_order", lambda _: False)
    assert wanted == [draw(logits, params, [], 0, position) for position in range(200)]


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


@pytest.mark.parametrize(
    ("u", "margin"),
    [(0.0, 0.2), (0.19, 0.01), (0.2001, 0.0001), (0.45, 0.05), (0.35, 0.15), (0.9, 0.4)],
)
def test_sampled_margin_is_the_distance_to_a_shared_edge(monkeypatch, u, margin):
    monkeypatch.setattr(sampling, "uniform", lambda *_: u)
    logits = torch.tensor([0.2, 0.3, 0.0, 0.5, 0.0]).log()
    got = draw_margin(logits, SamplingParams(1.0), [], 0, 0)
    assert got == pytest.approx(margin, abs=1e-6)
    alone = torch.tensor([-math.inf, 0.0, -math.inf])
    assert draw_margin(alone, SamplingParams(1.0), [], 0, 0) == math.inf


@given(seed=st.integers(0, 10**6), margin_scale=st.sampled_from([0.4, 0.9]))
@example(seed=0, margin_scale=0.9)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_noise_smaller_than_the_margin_changes_no_sampled_token(seed, margin_scale):
    logits = torch.randn(20, generator=torch.Generator().manual_seed(seed))
    params = SamplingParams(1.0, seed=seed)
    token, margin = draw(logits, params, [], 0, 3), draw_margin(logits, params, [], 0, 3)
    u = uniform(seed, 3)
    cumulative = [0.0, *logits.double().softmax(-1).cumsum(-1).tolist()]
    for moved in (u - margin_scale * margin, u + margin_scale * margin):
        if 0 <= moved < 1:
            assert cumulative[token] <= moved < cumulative[token + 1]
