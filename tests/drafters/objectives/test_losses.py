"""The losses against loop-by-loop float64 references."""

import math

import pytest
import torch

from specblock.drafters.objectives.losses import (
    Targets,
    rank_bucket,
    rank_loss,
    rank_of_best,
    rank_soft_targets,
    soft_cross_entropy,
)

ROWS, VOCAB = 6, 17


def random_logits(seed=0, rows=ROWS, scale=3.0):
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


def targets_of(logits, top):
    """The target's ``top`` most probable tokens, normalised over all of them."""
    probabilities, ids = logits.softmax(-1).topk(top, dim=-1)
    return Targets(ids, probabilities, torch.ones(len(ids), dtype=torch.bool))


def log_softmax(row):
    top = max(row)
    normaliser = top + math.log(math.fsum(math.exp(v - top) for v in row))
    return [v - normaliser for v in row]


@pytest.mark.parametrize("top", [1, 5, VOCAB])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_soft_cross_entropy(top, dtype):
    logits, target = random_logits(1).to(dtype), random_logits(2)
    losses = soft_cross_entropy(logits, targets_of(target, top))
    assert losses.dtype == torch.float32
    for row in range(ROWS):
        p = [math.exp(v) for v in log_softmax(target[row].double().tolist())]
        log_q = log_softmax(logits[row].double().tolist())
        largest = sorted(range(VOCAB), key=lambda v: -p[v])[:top]
        expected = -math.fsum(p[v] * log_q[v] for v in largest)  # not normalised again
        assert float(losses[row]) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_soft_cross_entropy_over_everything_has_the_gradient_of_the_divergence():
    logits = random_logits(1).double().requires_grad_()
    target = random_logits(2).double()
    soft_cross_entropy(logits, targets_of(target, VOCAB)).sum().backward()
    expected = logits.detach().softmax(-1) - target.softmax(-1)
    torch.testing.assert_close(logits.grad, expected, atol=1e-5, rtol=1e-4)


def test_rank_of_best():
    logits, best = random_logits(3), torch.tensor([0, 3, 5, 16, 8, 1])
    expected = [
        sorted(range(VOCAB), key=lambda v: -float(row[v])).index(int(token)) + 1
        for row, token in zip(logits, best, strict=True)
    ]
    assert rank_of_best(logits, best).tolist() == expected


def test_rank_buckets_at_their_edges():
    ranks = torch.tensor([1, 2, 3, 4, 5, 9, 10, 11, 500, 49152])
    assert rank_bucket(ranks).tolist() == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert rank_bucket(ranks.view(2, 5)).shape == (2, 5)


@pytest.mark.parametrize("classes", [2, 4])
def test_ordinal_soft_targets(classes):
    soft = rank_soft_targets(classes)
    for true in range(classes):
        weights = [1 / (1 + abs(c - true) + max(true - c, 0)) ** 2 for c in range(classes)]
        for c in range(classes):
            assert float(soft[true, c]) == pytest.approx(weights[c] / math.fsum(weights))


def test_ordinal_soft_targets_by_hand():
    # true class 1: class 0 is one too low and counts double (distance 3), class 2 distance 2
    expected = torch.tensor([1 / 9, 1.0, 1 / 4, 1 / 9])
    torch.testing.assert_close(rank_soft_targets(4)[1], expected / expected.sum())


def reference_rank_loss(rank_logits, labels, mask, budget):
    classes = rank_logits.shape[-1]
    above, below = 0.0, 0.0
    for row, t, used in zip(rank_logits.double().tolist(), labels, mask, strict=True):
        if not used:
            continue
        count = sum(1 for label, m in zip(labels, mask, strict=True) if m and label == t)
        frequency = min(1.0, budget / count) if budget > 0 else 1.0
        predicted = max(range(classes), key=lambda c: row[c])
        distance = 1 + abs(t - predicted) + max(t - predicted, 0)
        soft = [1 / (1 + abs(c - t) + max(t - c, 0)) ** 2 for c in range(classes)]
        log_p = log_softmax(row)
        cross = -math.fsum(soft[c] / math.fsum(soft) * log_p[c] for c in range(classes))
        above += frequency * distance * cross
        below += frequency
    return above, below


@pytest.mark.parametrize("budget", [10.0, 2.0, 0.5, 0.0, -1.0])
def test_rank_loss(budget):
    generator = torch.Generator().manual_seed(4)
    rank_logits = torch.randn(40, 4, generator=generator)
    labels = torch.randint(4, (40,), generator=generator)
    labels[:25] = 0  # a frequent class, which the budget holds down
    mask = torch.rand(40, generator=generator) < 0.8
    above, below = rank_loss(rank_logits, labels, mask, budget)
    expected = reference_rank_loss(rank_logits, labels.tolist(), mask.tolist(), budget)
    assert float(above) == pytest.approx(expected[0], rel=1e-5)
    assert float(below) == pytest.approx(expected[1], rel=1e-5)


def test_frequency_weight_caps_what_a_class_counts():
    labels = torch.tensor([0] * 50 + [3] * 4)
    _, below = rank_loss(torch.randn(54, 4), labels, torch.ones(54, dtype=torch.bool), 10.0)
    assert float(below) == pytest.approx(10 + 4)


def test_too_low_a_rank_costs_more_than_too_high():
    def distance(label, predicted):
        sure = torch.full((1, 4), -30.0)
        sure[0, predicted] = 30.0
        mask = torch.ones(1, dtype=torch.bool)
        above, below = rank_loss(sure, torch.tensor([label]), mask, 10.0)
        soft = rank_soft_targets(4)[label]
        cross = 60 * float(1 - soft[predicted])
        return float(above) / float(below) / cross

    assert distance(2, 1) == pytest.approx(3, rel=1e-4)
    assert distance(2, 3) == pytest.approx(2, rel=1e-4)
    assert distance(3, 0) == pytest.approx(7, rel=1e-4)
    assert distance(0, 3) == pytest.approx(4, rel=1e-4)


def test_rank_loss_of_nothing_is_zero():
    nothing = torch.zeros(3, dtype=torch.bool)
    above, below = rank_loss(torch.randn(3, 4), torch.tensor([0, 1, 2]), nothing, 10.0)
    assert (float(above), float(below)) == (0.0, 0.0)
    above, below = rank_loss(torch.zeros(0, 4), torch.zeros(0).long(), nothing[:0], 10.0)
    assert (float(above), float(below)) == (0.0, 0.0)


def test_masked_rows_take_no_part_in_the_rank_loss():
    rank_logits = torch.randn(5, 4, requires_grad=True)
    mask = torch.tensor([True, False, True, False, True])
    rank_loss(rank_logits, torch.tensor([0, 1, 2, 3, 0]), mask, 10.0)[0].backward()
    assert (rank_logits.grad.abs().sum(-1) > 0).tolist() == mask.tolist()


def test_targets_at_rows():
    targets = Targets(torch.arange(12).view(4, 3), torch.rand(4, 3), torch.tensor([1, 0, 1, 0]) > 0)
    picked = targets.at(torch.tensor([2, 0]))
    assert picked.ids.tolist() == [[6, 7, 8], [0, 1, 2]]
    assert picked.best.tolist() == [6, 0]
    assert picked.usable.tolist() == [True, True]
    assert torch.equal(picked.probabilities, targets.probabilities[[2, 0]])
