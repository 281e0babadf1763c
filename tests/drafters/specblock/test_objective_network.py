"""The objective with the real network: what it learns, and what trains what."""

import dataclasses

import pytest
import torch
from tests.tiny import seeded

from specblock.drafters.objectives.batch import Batch
from specblock.drafters.objectives.losses import Targets
from specblock.drafters.specblock import objective
from specblock.drafters.specblock.config import SpecBlockConfig
from specblock.drafters.specblock.forward import run_block, run_trunk
from specblock.drafters.specblock.network import SpecBlockModel
from specblock.drafters.specblock.objective import ObjectiveConfig, total_loss

# --- with the real network ----------------------------------------------------------------------

LENGTH, WORDS = 12, 12
TINY = SpecBlockConfig(
    hidden_size=32,
    vocab_size=WORDS,
    target_layers=8,
    feature_layers=(1, 3, 4),
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    draft_vocab_size=WORDS,
)


def language(seed=0, sequences=1):
    """Sentences in which the next token depends on the position alone (given its features).

    Returns the batch and the words ``[B, LENGTH + 1]`` behind it.
    """
    generator = seeded(seed)
    words = torch.randint(WORDS, (sequences, LENGTH + 1), generator=generator)
    features = torch.randn(sequences, LENGTH, 3 * TINY.hidden_size, generator=generator)
    rows = LENGTH + 16
    ids = torch.zeros(sequences, rows, 1, dtype=torch.int64)
    ids[:, : LENGTH - 1, 0] = words[:, 2:]  # row p is the distribution at position p + 1
    usable = torch.zeros(sequences, rows, dtype=torch.bool)
    usable[:, : LENGTH - 1] = True
    start = torch.ones(sequences, LENGTH, dtype=torch.bool)
    probabilities = torch.ones(sequences, rows, 1)
    return Batch(features, words[:, 1:], start, Targets(ids, probabilities, usable)), words


def new_model(**changes):
    torch.manual_seed(0)
    return SpecBlockModel(dataclasses.replace(TINY, **changes))


@pytest.mark.parametrize(("cached_slots", "blocks"), [(0, 2), (1, 3)])
def test_every_slot_of_every_block_learns_its_own_token(cached_slots, blocks):
    model = new_model(cached_slots=cached_slots)
    batch, words = language()
    config = ObjectiveConfig(blocks=blocks, positions=LENGTH)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=6e-3)
    generator = seeded(1)
    solved = 0
    for _ in range(300):
        loss, tally = total_loss(model, batch, config, generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        # depths are drawn anew every step: right for a while means right at most of them
        solved = solved + 1 if bool((tally.hits == tally.rows).all()) else 0
        if solved == 20:
            break
    assert solved == 20
    assert bool((tally.rows[:2] > 0).all())
    with torch.no_grad():
        wrong = list(mistakes(model, batch, words, blocks))
    assert len(wrong) <= 3, wrong  # a descent that was hardly ever drawn may be missed


def mistakes(model, batch, words, blocks):
    """Every (offset, pair, slot) whose prediction is not the word there, over all descents."""
    trunk = run_trunk(model, batch.features, batch.tokens)
    everywhere = torch.arange(LENGTH)[None]
    first = run_block(model, trunk, trunk.condition, batch.tokens, everywhere)
    yield from compare(model, first, 0, words)
    for m1 in range(1, 5):
        used = torch.full((1, LENGTH), m1)
        second = descend(model, trunk, batch, first, m1, m1, [(first, used)])
        yield from compare(model, second, m1, words)
        for m2 in range(1, 5) if blocks == 3 else ():
            parents = [(first, used), (second, torch.full((1, LENGTH), m2))]
            third = descend(model, trunk, batch, second, m2, m1 + m2, parents)
            yield from compare(model, third, m1 + m2, words)


def descend(model, trunk, batch, parent, depth, offset, parents):
    everywhere = torch.arange(LENGTH)[None]
    tokens = batch.tokens[:, (everywhere[0] + offset).clamp(max=LENGTH - 1)]
    return run_block(model, trunk, parent.hidden[:, :, depth - 1], tokens, everywhere, parents)


def compare(model, block, offset, words):
    predicted = model.logits(block.hidden)[0].argmax(-1)
    for i in range(LENGTH):
        for slot in range(4):
            place = i + offset + slot + 2
            if place <= LENGTH and predicted[0, i, slot] != words[0, place]:
                yield offset, i, slot


def test_the_same_seed_gives_the_same_loss():
    model = new_model()
    batch, _ = language(sequences=2)
    config = ObjectiveConfig(blocks=2, positions=5, valid_prefix_mask=False)
    losses = {s: total_loss(model, batch, config, seeded(s))[0].item() for s in range(4)}
    for seed, loss in losses.items():
        assert total_loss(model, batch, config, seeded(seed))[0].item() == loss
    assert len(set(losses.values())) == 4


def test_padding_changes_nothing():
    model = new_model()
    batch, _ = language(sequences=2)
    config = ObjectiveConfig(blocks=1, positions=LENGTH, valid_prefix_mask=False)
    loss, tally = total_loss(model, batch, config, seeded(0))

    def longer(x, value=0):
        return torch.cat((x, x.new_full((2, 5, *x.shape[2:]), value)), dim=1)

    targets = Targets(*(longer(t) for t in (batch.targets.ids, batch.targets.probabilities)), None)
    targets = dataclasses.replace(targets, usable=longer(batch.targets.usable))
    features = longer(batch.features, 7.0)
    padded = Batch(features, longer(batch.tokens, 3), longer(batch.start), targets)
    config = config.replace(positions=LENGTH + 5)
    padded_loss, padded_tally = total_loss(model, padded, config, seeded(0))
    assert padded_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert torch.equal(padded_tally.rows, tally.rows)


def test_the_rank_loss_trains_the_rank_head_alone(monkeypatch):
    model = new_model()
    batch, _ = language(sequences=2)
    whole = objective.head_loss

    def without_draft_loss(*args, **settings):
        output = whole(*args, **settings)
        return dataclasses.replace(output, terms=output.terms * 0.0)

    monkeypatch.setattr(objective, "head_loss", without_draft_loss)
    config = ObjectiveConfig(blocks=2, positions=LENGTH, valid_prefix_mask=False)
    total_loss(model, batch, config, seeded(0))[0].backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            assert bool((parameter.grad != 0).any()) == name.startswith("rank_head"), name


def test_a_later_block_trains_the_block_it_descends_from(monkeypatch):
    """The chained hidden state is not detached: block 2's loss reaches condition_proj."""
    model = new_model()
    batch, _ = language()
    monkeypatch.setattr(objective, "_trunk_loss", lambda m, t, b, ledger: b.start)
    config = ObjectiveConfig(blocks=2, positions=LENGTH, valid_prefix_mask=False)
    _, tally = total_loss(model, batch, config, seeded(0))
    tally.terms[-2].backward()  # the draft loss of block 2's last slot
    assert model.input_layer.condition_proj.weight.grad.abs().sum() > 0


def test_an_all_padding_batch_has_no_loss():
    model = new_model()
    batch, _ = language()
    batch = dataclasses.replace(batch, start=torch.zeros_like(batch.start))
    loss, tally = total_loss(model, batch, ObjectiveConfig(positions=4), seeded(0))
    loss.backward()
    assert loss.item() == 0.0
    assert tally.rows.sum() == 0
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
