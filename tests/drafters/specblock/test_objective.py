"""The total loss: which rows it trains, on what, and that it teaches every slot of every block."""

import dataclasses
import math

import pytest
import torch
from tests.drafters.objectives.scripted import (
    SLOTS,
    VOCAB,
    Scripted,
    random_batch,
    random_tables,
    reference_loss,
)
from tests.tiny import seeded

from specblock.drafters.objectives.batch import Batch
from specblock.drafters.objectives.losses import Targets, rank_loss, rank_terms
from specblock.drafters.objectives.noise import keyed_noise, mixed_seed
from specblock.drafters.objectives.reduction import Means
from specblock.drafters.specblock.config import SpecBlockConfig
from specblock.drafters.specblock.network import SpecBlockModel
from specblock.drafters.specblock.objective import ObjectiveConfig, total_loss


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("valid_prefix_mask", [True, False])
@pytest.mark.parametrize("mean_over_valid", [True, False])
def test_draft_loss_equals_the_loops(monkeypatch, seed, valid_prefix_mask, mean_over_valid):
    config = ObjectiveConfig(
        blocks=3,
        positions=7,
        valid_prefix_mask=valid_prefix_mask,
        mean_over_valid=mean_over_valid,
    )
    batch = random_batch(seed, favourite=2)
    tables = random_tables(10 * seed, config.blocks)
    with torch.no_grad():
        for table in tables:
            table[..., 2] += 1.5  # right often enough for long chains
    model = Scripted(tables).install(monkeypatch)
    loss, tally = total_loss(model, batch, config, seeded(seed))
    calls = model.calls
    assert [c.positions.tolist() for c in calls] == [[list(range(7))] * 2] * 3
    used = calls[-1].used
    expected, trained, reachable = reference_loss(tables, batch, used, config)
    assert loss.item() == pytest.approx(expected, rel=1e-5)

    # exactly the trained rows take gradients
    loss.backward()
    for index, table in enumerate(tables):
        moved = table.grad.abs().sum(-1) > 0
        wanted = torch.zeros_like(moved)
        for block, b, i, slot in trained:
            if block == index:
                wanted[b, i, slot] = True
        assert torch.equal(moved, wanted)
        assert tally.rows[index].sum() == wanted.sum()

    # what the later blocks are fed
    offset = torch.zeros(2, 7, dtype=torch.int64)
    for index in (1, 2):
        depth = calls[index].used[-1]
        offset += depth
        for b in range(2):
            for i in range(7):
                m = int(depth[b, i])
                assert 1 <= m <= min(SLOTS, reachable[index - 1][b, i] + 1)
                at = min(i + int(offset[b, i]), 6)
                assert calls[index].tokens[b, i] == batch.tokens[b, at]
                parent = tables[index - 1][b, i, m - 1]
                assert torch.equal(calls[index].condition[b, i], parent)
    assert torch.equal(calls[0].condition, batch.features)
    assert torch.equal(calls[0].tokens, batch.tokens)


def hand_made(right, usable=(True,) * 4, *, length=8, start_at=2):
    """One sequence, drafting at one pair only; slot k is right or wrong as told."""
    tables = [torch.zeros(1, length, 4, VOCAB, dtype=torch.float64)]
    for slot, is_right in enumerate(right):
        tables[0][0, start_at, slot, 1 if is_right else 3] = 4.0
    tables[0].requires_grad_()
    ids = torch.arange(VOCAB).expand(1, length + 4, VOCAB).clone()
    ids[..., 0], ids[..., 1] = 1, 0  # the target's best token is always 1
    allowed = torch.ones(1, length + 4, dtype=torch.bool)
    allowed[0, start_at : start_at + 4] = torch.tensor(usable)
    start = torch.zeros(1, length, dtype=torch.bool)
    start[0, start_at] = True
    probabilities = torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1])
    return tables, Batch(
        torch.zeros(1, length, VOCAB, dtype=torch.float64),
        torch.zeros(1, length, dtype=torch.int64),
        start,
        Targets(ids, probabilities.expand(1, length + 4, VOCAB), allowed),
    )


@pytest.mark.parametrize(
    ("right", "usable", "trained", "hits"),
    [
        ((1, 1, 1, 1), (1, 1, 1, 1), [1, 1, 1, 1], [1, 1, 1, 1]),
        ((1, 1, 0, 1), (1, 1, 1, 1), [1, 1, 1, 0], [1, 1, 0, 0]),
        ((0, 1, 1, 1), (1, 1, 1, 1), [1, 0, 0, 0], [0, 0, 0, 0]),
        ((1, 0, 0, 0), (1, 1, 1, 1), [1, 1, 0, 0], [1, 0, 0, 0]),
        # a slot whose target is outside the vocabulary is left out and does not break the chain
        ((1, 0, 1, 0), (1, 0, 1, 1), [1, 0, 1, 1], [1, 0, 1, 0]),
        ((1, 1, 1, 1), (0, 1, 0, 1), [0, 1, 0, 1], [0, 1, 0, 1]),
        ((1, 1, 1, 1), (0, 0, 0, 0), [0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_the_valid_prefix_by_hand(monkeypatch, right, usable, trained, hits):
    tables, batch = hand_made(right, tuple(bool(u) for u in usable))
    model = Scripted(tables).install(monkeypatch)
    config = ObjectiveConfig(blocks=1, positions=3)
    loss, tally = total_loss(model, batch, config, seeded(0))
    assert tally.rows[0].tolist() == trained
    assert tally.hits[0].tolist() == hits
    normaliser = math.log(math.exp(4) + 4)
    when_right, when_wrong = normaliser - 0.6 * 4, normaliser - 0.1 * 4
    expected = sum(
        0.8**k * (when_right if right[k] else when_wrong) for k in range(4) if trained[k]
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    moved = (tables[0].grad.abs().sum(-1) > 0).long()[0]
    assert moved[2].tolist() == trained
    assert int(moved.sum()) == sum(trained)


def test_without_the_mask_every_usable_slot_is_trained(monkeypatch):
    tables, batch = hand_made((0, 0, 1, 0))
    model = Scripted(tables).install(monkeypatch)
    config = ObjectiveConfig(blocks=1, positions=3, valid_prefix_mask=False)
    _, tally = total_loss(model, batch, config, seeded(0))
    assert tally.rows[0].tolist() == [1, 1, 1, 1]


def test_positions_are_drawn_among_the_starts_without_repetition(monkeypatch):
    batch = random_batch(3, length=30)
    few = batch.start.clone()
    few[0] = False
    few[0, 11] = True
    batch = dataclasses.replace(batch, start=few)
    tables = random_tables(4, 1, length=30)
    config = ObjectiveConfig(blocks=1, positions=6, valid_prefix_mask=False)
    drawn = set()
    for seed in range(8):
        model = Scripted(tables).install(monkeypatch)
        _, tally = total_loss(model, batch, config, seeded(seed))
        (call,) = model.calls
        assert call.positions.shape == (2, 6)
        for row in call.positions.tolist():
            assert row == sorted(set(row))
        assert 11 in call.positions[0].tolist()
        chosen = call.positions[1]
        assert bool(few[1, chosen].all())
        drawn.add(tuple(chosen.tolist()))
        # of sequence 0 only its one start counts
        ones = [batch.targets.usable[1, chosen + 1].sum() + batch.targets.usable[0, 12]]
        assert tally.rows[0, 1] == ones[0]
    assert len(drawn) > 4


def test_depths_are_drawn_from_all_that_decoding_can_reach(monkeypatch):
    tables = [torch.zeros(1, 40, SLOTS, VOCAB, dtype=torch.float64) for _ in range(2)]
    tables[0][..., 1] = 1.0
    tables[0][:, 20:, 1, 1] = -1.0  # slot 1 is wrong in the second half
    ids = torch.tensor([1, 0, 2, 3, 4]).expand(1, 50, VOCAB)
    usable = torch.ones(1, 50, dtype=torch.bool)
    batch = Batch(
        torch.zeros(1, 40, VOCAB, dtype=torch.float64),
        torch.zeros(1, 40, dtype=torch.int64),
        torch.ones(1, 40, dtype=torch.bool),
        Targets(ids, torch.full((1, 50, VOCAB), 0.2), usable),
    )
    model = Scripted(tables).install(monkeypatch)
    total_loss(model, batch, ObjectiveConfig(blocks=2, positions=40), seeded(1))
    used = model.calls[1].used[0][0]
    assert set(used[:20].tolist()) == {1, 2, 3}
    assert set(used[20:].tolist()) == {1, 2}


# --- the rank loss ------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [3.0, 0.0])
def test_the_rank_loss_of_a_block_is_one_mean_over_its_slots(budget):
    """Frequency weights are each slot's own, the denominator is the block's (specblock.md 2.4)."""
    generator, above, below = seeded(2), 0.0, 0.0
    means = Means()
    for rows in (30, 11, 0):
        logits = torch.randn(rows, 4, generator=generator)
        labels = torch.randint(4, (rows,), generator=generator)
        labels[: rows // 2] = 0
        means.add_by_class(rank_terms(logits, labels), labels, 4, budget, "block 1")
        everything = torch.ones(rows, dtype=torch.bool)
        slot = rank_loss(logits, labels, everything, budget)
        above, below = above + float(slot[0]), below + float(slot[1])
    assert sum(means.terms()).item() == pytest.approx(above / below, rel=1e-5)


def test_every_block_has_its_own_rank_loss():
    model = SpecBlockModel(
        SpecBlockConfig(
            hidden_size=16,
            vocab_size=40,
            target_layers=8,
            feature_layers=(1, 3, 4),
            intermediate_size=16,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            draft_vocab_size=30,
            block_size=SLOTS,
        )
    )
    batch = random_batch(5, length=9)
    batch = dataclasses.replace(
        batch,
        features=torch.randn(2, 9, 48, generator=seeded(1)),
        tokens=batch.tokens % 40,
    )
    config = ObjectiveConfig(blocks=2, positions=9, valid_prefix_mask=False, rank_budget=2.0)
    loss, tally = total_loss(model, batch, config, seeded(0))
    assert len(tally.terms) == 2 * 2 * SLOTS
    for block in range(2):
        rank = sum(tally.terms[2 * block * SLOTS + 1 : 2 * (block + 1) * SLOTS : 2])
        # a mean of distances (1 to 7) times smoothed cross-entropies of four classes
        assert 0.5 < rank.item() < 12
    assert sum(tally.terms).item() == pytest.approx(loss.item())
    assert tally.confusion.sum() == tally.rows.sum()


def test_the_draws_belong_to_the_sequence_not_to_its_place():
    keys = torch.tensor([4, 9, 7])
    noise = keyed_noise(keys, 20, 2, seeded(3))
    assert torch.equal(noise[[2, 0]], keyed_noise(keys[[2, 0]], 20, 2, seeded(3)))
    assert torch.equal(noise[:, :12], keyed_noise(keys, 12, 2, seeded(3)))
    assert not torch.equal(noise, keyed_noise(keys, 20, 2, seeded(4)))
    assert len({mixed_seed(a, b) for a in range(40) for b in range(40)}) == 1600
    many = keyed_noise(torch.arange(200), 50, 1, seeded(0))
    assert abs(many.mean() - 0.5) < 0.02
    generator = seeded(3)
    keyed_noise(keys, 20, 2, generator)
    assert not torch.equal(noise, keyed_noise(keys, 20, 2, generator))  # a second call differs
