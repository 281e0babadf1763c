import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from specblock.tree.sampling import SamplingParams, process


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def reference(logits, params, context):
    """What transformers' generate would sample from (no frequency or presence penalty there)."""
    scores = logits[None].float()
    ids = torch.tensor([context], dtype=torch.long)
    if params.repetition_penalty != 1:
        scores = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(ids, scores)
    if params.greedy:
        return scores[0]
    scores = TemperatureLogitsWarper(params.temperature)(ids, scores)
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(ids, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(ids, scores)
    if params.min_p:
        scores = MinPLogitsWarper(params.min_p)(ids, scores)
    return scores[0]


def assert_as_in_transformers(logits, params, context, prompt_length):
    """Equal, except for which of several equal tokens stay at the edge of top-p."""
    got = process(logits, params, context, prompt_length)
    wanted = reference(logits, params, context)
    assert got.dtype == torch.float32
    assert torch.equal(got.sort().values, wanted.sort().values)
    everything = reference(logits, replace(params, top_k=0, top_p=1.0, min_p=0.0), context)
    kept = got > -math.inf
    assert torch.equal(got[kept], everything[kept])


@given(
    size=st.integers(1, 300),
    scale=st.sampled_from([0.1, 1.0, 5.0]),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 2, 7, 50, 1000]),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.95, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    repetition=st.sampled_from([1.0, 1.3, 0.8]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=250, deadline=None, derandomize=True)
def test_process_equals_transformers(
    size, scale, temperature, top_k, top_p, min_p, repetition, seed
):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, generator=generator) * scale
    context = torch.randint(0, size, (12,), generator=generator).tolist()
    params = SamplingParams(temperature, top_k, top_p, min_p, repetition)
    before = logits.clone()
    assert_as_in_transformers(logits, params, context, 5)
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    "logits",
    [
        [0.0] * 10,
        [0.0] * 4,
        [1.0, 1.0, 1.0, 0.0, 0.0],
        [2.0, 5.0, 5.0, 5.0, -3.0],
        [-math.inf, 0.0, -math.inf, 0.0, -1.0],
        [0.0],
        [100.0, -100.0, 0.0],
    ],
)
def test_process_equals_transformers_on_ties_and_edges(logits):
    logits = torch.tensor(logits)
    ranges = ([1.0, 0.5], [0, 1, 2, 3], [0.0, 0.25, 0.5, 0.9, 1.0], [0.0, 0.5, 1.0])
    for values in product(*ranges):
        params = SamplingParams(*values)
        assert_as_in_transformers(logits, params, [], 0)


@pytest.mark.parametrize("top_k", [0, 50])
def test_large_vocabulary_filters(top_k):
    for seed in range(5):
        logits = torch.randn(49152, generator=torch.Generator().manual_seed(seed)) * 3
        params = SamplingParams(0.8, top_k, 0.9, 0.001, 1.1)
        context = list(range(0, 2000, 3))
        assert_as_in_transformers(logits, params, context, 9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_processed_in_float32(dtype):
    for seed in range(100):  # full of ties
        logits = torch.randn(64, generator=torch.Generator().manual_seed(seed)).to(dtype)
        assert_as_in_transformers(logits, SamplingParams(0.7, 10, 0.9), [], 0)


def test_of_equal_tokens_the_higher_ids_stay_in_the_nucleus():
    for size in (4, 64, 1000):
        got = process(torch.zeros(size), SamplingParams(1.0, top_p=0.5), [], 0)
        assert (got > -math.inf).nonzero().squeeze(1).tolist() == list(range(size // 2, size))


def test_token_ids_without_a_logit_need_no_penalty():
    logits = torch.tensor([1.0, -1.0, 2.0])
    params = SamplingParams(repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25)
    got = process(logits, params, [7, 0, 9, 3], 1)
    assert got.tolist() == [0.5 - 0.75, -1.0, 2.0]


def test_frequency_and_presence_count_generated_tokens_only():
    logits = torch.zeros(5)
    params = SamplingParams(frequency_penalty=0.5, presence_penalty=0.25)
    context = [0, 0, 1, 1, 2, 1, 3]
    got = process(logits, params, context, 3)
    assert got.tolist() == [0.0, -(2 * 0.5 + 0.25), -0.75, -0.75, 0.0]
    # Before the temperature, after the repetition penalty.
    params = replace(params, repetition_penalty=2.0, temperature=0.5)
    got = process(torch.full((5,), 4.0), params, context, 3)
    assert got.tolist() == [4.0, (2.0 - 1.25) * 2, (2.0 - 0.75) * 2, (2.0 - 0.75) * 2, 8.0]
    everything = process(logits, SamplingParams(frequency_penalty=1.0), torch.tensor(context), 0)
    assert everything.tolist() == [-2.0, -3.0, -1.0, -1.0, 0.0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_k": 2.5},
        {"top_p": 1.1},
        {"top_p": -0.1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.nan},
        {"frequency_penalty": 2.5},
        {"presence_penalty": math.nan},
        {"seed": 1.5},
        {"seed": 2**64},
    ],
)
def test_values_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingParams(**wrong)
