"""The head and its loss in chunks equal the plain formula, gradients included."""

import pytest
import torch

from specblock.drafters.objectives.head_loss import head_loss
from specblock.drafters.objectives.losses import Targets, rank_of_best, soft_cross_entropy

ROWS, HIDDEN, VOCAB = 37, 24, 101


def problem(kept: int = VOCAB):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator)
    weight = torch.randn(VOCAB, HIDDEN, generator=generator)
    probabilities, ids = torch.randn(ROWS, VOCAB, generator=generator).softmax(-1).topk(kept)
    upstream = torch.rand(ROWS, generator=generator)
    return hidden, weight, Targets(ids, probabilities, torch.ones(ROWS, dtype=torch.bool)), upstream


@pytest.mark.parametrize("chunk", [1, 10, 37, 1000])
@pytest.mark.parametrize("kept", [1, 9, VOCAB])
def test_it_is_the_plain_loss(chunk, kept):
    hidden, weight, targets, upstream = problem(kept)
    found, expected = [], []
    for gradients in (found, expected):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if gradients is found:
            output = head_loss(h, w, targets, top=20, chunk_rows=chunk)
            terms = output.terms
        else:
            logits = h @ w.t()
            terms = soft_cross_entropy(logits, targets)
        (terms * upstream).sum().backward()
        gradients += [terms.detach(), h.grad, w.grad]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=2e-5)
    torch.testing.assert_close(output.top, logits.detach().topk(20).values, atol=1e-5, rtol=1e-5)
    true = rank_of_best(logits, targets.best)
    assert torch.equal(output.ranks, true.clamp(max=21))
    assert (true > 21).any()


def test_a_frozen_head_gets_no_gradient_and_frozen_states_none_either():
    hidden, weight, targets, _ = problem(9)
    hidden.requires_grad_()
    head_loss(hidden, weight, targets, top=20).terms.sum().backward()
    assert weight.grad is None
    assert hidden.grad.abs().sum() > 0
    assert not head_loss(hidden.detach(), weight, targets, top=20).terms.requires_grad


def test_under_autocast_the_products_are_bf16_and_the_sums_are_not():
    hidden, weight, targets, _ = problem()
    exact = head_loss(hidden, weight, targets, top=20).terms
    with torch.autocast("cpu", torch.bfloat16):
        rounded = head_loss(hidden, weight, targets, top=20).terms
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.1, rtol=0.05)


def test_a_small_vocabulary_has_fewer_best_logits():
    hidden, weight, targets, _ = problem(9)
    small = Targets(targets.ids % 5, targets.probabilities, targets.usable)
    output = head_loss(hidden, weight[:5], small, top=20)
    assert output.top.shape == (ROWS, 5)
    assert int(output.ranks.max()) <= 5
