"""Mends of vLLM's faults, and the self-test that finds the first, without vLLM."""

import torch

from specblock.integrations.vllm.faults import (
    expanded,
    spreads_per_request_values,
    unless_empty,
)


def test_the_self_test_tells_right_from_wrong():
    def forgetful(x, ends, rows, replace_from=0, replace_to=0):
        return x.new_empty(rows).fill_(0.5)  # what lay in memory

    def without_replacing(x, ends, rows, replace_from=0, replace_to=0):
        return expanded(x, ends, rows)

    assert spreads_per_request_values(expanded)
    assert not spreads_per_request_values(forgetful)
    assert not spreads_per_request_values(without_replacing)


def test_requests_without_rows_and_whole_numbers_are_spread_too():
    values, ends = torch.tensor([7, 5, 9]), torch.tensor([2, 2, 5], dtype=torch.int32)
    assert expanded(values, ends, 5).tolist() == [7, 7, 9, 9, 9]
    assert expanded(values, ends, 5, replace_from=9, replace_to=1).tolist() == [7, 7, 1, 1, 1]


def test_no_rows_are_left_alone_and_others_are_not():
    def raising_on_none(logits, top_k):
        return logits - top_k.max()

    guarded = unless_empty(raising_on_none)
    nothing = torch.empty(0, 3)
    assert guarded(nothing, torch.empty(0)) is nothing
    assert torch.equal(guarded(torch.ones(1, 3), torch.tensor([2.0])), -torch.ones(1, 3))
