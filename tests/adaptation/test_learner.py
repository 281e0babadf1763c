"""Updates train what their arm may train, are judged fairly, and fold into an ordinary drafter."""

from dataclasses import replace

import pytest
import torch
from tests.adaptation.world import config, make_record
from tests.tiny import make_drafter

from specblock.adaptation.deciding.watch import TauWatch
from specblock.adaptation.feedback.buffer import as_drafted
from specblock.adaptation.learning.arms import (
    ARMS,
    COST_SHARES,
    FIT,
    FULL,
    HEADS,
    LAST_LAYER,
    folded,
    master_of,
    put_weights,
    swap,
    trainable,
)
from specblock.adaptation.learning.judge import accepted_lengths, compare
from specblock.adaptation.learning.learner import BETTER, NOT_FINITE, REVERTED, Job, Learner
from specblock.drafters.specblock.forward import run_block, run_trunk
from specblock.kernels.linear import route_linears, routed
from specblock.kernels.products import available_routes
from specblock.kernels.route_table import RouteTable
from specblock.steps import drained
from specblock.training.evaluate.evaluator import make_batch

SHAPE = {"cached_slots": 1, "slot_rank": 4, "sink": True}


def live_model(seed=0, **more):
    return make_drafter(seed, **{**SHAPE, **more}).model


def job(arm, seed=0, records=4, steps=2):
    train = [make_record(number) for number in range(records)]
    return Job(arm, [train] * steps, [make_record(90 + n) for n in range(4)], seed)


def learnable_job(arm, steps=30):
    """Held out is what is trained on: it must be found better."""
    made = job(arm, steps=steps)
    return replace(made, held_out=made.batches[0])


def shake(learner):
    """Weights as after some training, the correction not zero."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in learner.original.items()
    }


def test_arms_contain_each_other():
    master = master_of(live_model(), 4, 0)
    names = {arm: set(trainable(master, arm)) for arm in ARMS}
    assert names[HEADS] < names[LAST_LAYER] < names[FULL]
    assert {"norm.weight", "norm.down", "norm.up", "rank_head.0.weight"} <= names[HEADS]
    assert all(name.startswith(("norm.", "rank_head.")) for name in names[HEADS])
    last = names[LAST_LAYER] - names[HEADS]
    assert {name.split(".")[0] for name in last} == {"layers", "shift_proj"}
    frozen = {name for name, _ in master.named_parameters()} - names[FULL]
    assert frozen == {"lm_head.weight", "input_layer.embed_tokens.weight"}
    assert set(COST_SHARES) == {FIT, *ARMS}
    with pytest.raises(ValueError, match="no arm"):
        trainable(master, "embeddings")


def test_the_master_is_a_copy_that_shares_the_embeddings():
    live = live_model().bfloat16()
    master = master_of(live, 4, 0)
    assert master.input_layer.embed_tokens.weight is live.input_layer.embed_tokens.weight
    assert master.layers[0].mlp.up_proj.weight.dtype == torch.float32
    before = {name: p.clone() for name, p in live.named_parameters()}
    with torch.no_grad():
        for parameter in trainable(master, FULL).values():
            parameter.add_(1.0)
    assert all(torch.equal(p, before[name]) for name, p in live.named_parameters())


def test_folding_the_correction_changes_nothing():
    live = live_model()
    learner = Learner(live, config())
    weights = shake(learner)
    put_weights(learner.master, weights)
    swap(live, folded(learner.master.lm_head.weight, weights))
    hidden = torch.randn(5, 32)
    for model in (live, learner.master):
        model.eval()
    with torch.no_grad():
        logits, normed = live.logits(hidden)
        expected, corrected = learner.master.logits(hidden)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            live.rank_logits(normed, logits),
            learner.master.rank_logits(corrected, expected),
            atol=1e-4,
            rtol=1e-4,
        )
    assert not torch.allclose(live.lm_head.weight, learner.master.lm_head.weight)


def test_a_swap_reaches_the_packed_copies_and_keeps_their_routes():
    live = live_model()
    route_linears(live)
    linear = live.layers[0].mlp.up_proj
    for route in available_routes(linear.weight):
        linear.use(RouteTable({linear.shape: [route] * 8}))
        x = torch.randn(4, linear.in_features)
        with torch.no_grad():
            linear(x)  # makes the copy
            learner = Learner(live, config())
            assert not next(routed(learner.master))._packs
            swap(live, folded(learner.master.lm_head.weight, shake(learner)))
            torch.testing.assert_close(linear(x), x @ linear.weight.t(), atol=1e-5, rtol=1e-4)
        assert linear.table.route(linear.shape, 4) == route


def test_a_wrong_swap_is_refused_whole():
    live = live_model()
    before = {name: p.clone() for name, p in live.named_parameters()}
    good = {"norm.weight": torch.zeros(32)}
    for bad in (
        {"no.such": torch.zeros(3)},
        {"sink": torch.zeros(3)},
        {"sink": torch.full((32,), float("nan"))},
    ):
        with pytest.raises(ValueError):
            swap(live, {**good, **bad})
    assert all(torch.equal(p, before[name]) for name, p in live.named_parameters())


@pytest.mark.parametrize("arm", ARMS)
def test_an_update_trains_its_arm_and_leaves_the_live_drafter(arm):
    live = live_model()
    learner = Learner(live, config(heads_lr=2e-2, layers_lr=5e-3))
    before = {name: p.clone() for name, p in live.named_parameters()}
    attempt = drained(learner.attempting(learnable_job(arm)))
    assert attempt.outcome == BETTER, attempt.details
    assert 0 < attempt.gain < 1
    assert attempt.total_gain == attempt.gain, "from the original weights both are the same"
    assert attempt.seconds > 0
    assert all(torch.equal(p, before[name]) for name, p in live.named_parameters())
    changed = {n for n, t in attempt.weights.items() if not torch.equal(t, learner.original[n])}
    allowed = set(trainable(learner.master, arm))
    assert changed <= allowed
    assert {"norm.up", "rank_head.2.weight"} <= changed
    assert learner.current is learner.original, "only adopting changes what decodes"
    assert learner.optimisers[arm].state
    assert not any(learner.optimisers[other].state for other in ARMS if other != arm)


def test_the_same_job_gives_the_same_weights():
    made = learnable_job(FULL, steps=8)
    first, second = (drained(Learner(live_model(), config()).attempting(made)) for _ in range(2))
    assert first.gain == second.gain
    if first.weights is not None:
        assert all(torch.equal(t, second.weights[name]) for name, t in first.weights.items())


def test_useless_weights_are_not_taken():
    learner = Learner(live_model(), config(heads_lr=5.0, layers_lr=5.0, clip=100.0, accept_z=0.5))
    attempt = drained(learner.attempting(job(FULL, steps=3)))
    assert attempt.weights is None
    assert attempt.gain == 0.0


def test_not_a_number_is_caught_and_the_optimiser_starts_anew():
    learner = Learner(live_model(), config())
    poisoned = job(HEADS)
    bad = make_record(5)
    bad.sequence.features[3] = float("nan")
    poisoned = replace(poisoned, batches=[[bad]] * 2)
    attempt = drained(learner.attempting(poisoned))
    assert attempt.outcome == NOT_FINITE
    assert attempt.weights is None
    assert not learner.optimisers[HEADS].state
    after = drained(learner.attempting(learnable_job(HEADS)))
    assert after.outcome != NOT_FINITE, "the next update starts from whole weights"


def test_the_original_weights_come_back_where_they_draft_better():
    learner = Learner(live_model(), config(heads_lr=2e-2, layers_lr=5e-3))
    made = learnable_job(FULL)
    good = drained(learner.attempting(made)).weights
    # what was learned is the drafter's own now, and something spoilt it
    learner.original = good
    learner.adopt({name: torch.randn_like(tensor) for name, tensor in good.items()})
    attempt = drained(learner.attempting(replace(made, batches=made.batches[:1])))
    assert attempt.outcome == REVERTED
    assert attempt.weights is learner.original
    assert (attempt.gain, attempt.total_gain) == (0.0, 0.0)


def test_judging_counts_what_a_brute_force_walk_counts():
    model = live_model()
    records = [make_record(number) for number in range(3)]
    found = accepted_lengths(model, records, 64, 0)
    for record, tau in zip(records, found.tolist(), strict=True):
        batch = make_batch([as_drafted(record, model.t2d)], [0], 6)
        batch = replace(batch, features=batch.features.float())
        lengths = []
        with torch.no_grad():
            trunk = run_trunk(model, batch.features, batch.tokens)
            for start in (record.sequence.start & record.sequence.usable).nonzero():
                at = start[None]
                token = batch.tokens[:, start]
                block = run_block(model, trunk, trunk.condition[:, start], token, at)
                logits = model.logits(block.hidden[0, 0])[0]
                length = 1
                for slot in range(4):
                    row = int(start) + slot
                    if not batch.targets.usable[0, row]:
                        break
                    best = batch.targets.ids[0, row, 0]
                    rank = int((logits[slot] > logits[slot, best]).sum()) + 1
                    length += rank <= 3
                    if rank > 1:
                        break
                lengths.append(length)
        assert tau == pytest.approx(sum(lengths) / len(lengths))


def test_a_noisy_gain_is_shrunk():
    base = torch.full((8,), 2.0, dtype=torch.float64)
    sure = compare(base * 1.1, base)
    assert sure.ratio == pytest.approx(1.1)
    assert sure.error == pytest.approx(0.0)
    assert sure.gain == pytest.approx(1 - 1 / 1.1)
    noise = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)
    unsure = compare(base * 1.1 + noise, base)
    assert 0 < unsure.gain < 0.2 * sure.gain
    assert sure.better(0.5)
    assert not unsure.better(0.6)
    alone = compare(base[:1] * 1.5, base[:1])
    assert not alone.better(0.5), "one record shows no spread"
    assert alone.gain == 0.0


def feed(watch, mean, rounds, seed):
    generator = torch.Generator().manual_seed(seed)
    draws = torch.poisson(torch.full((rounds,), mean - 1.0), generator=generator) + 1
    for tokens in draws.tolist():
        verdict = watch.add(int(tokens))
        if verdict:
            return verdict
    return None


def test_the_watch_sees_a_drop_and_leaves_noise_alone():
    false_alarms = 0
    for seed in range(40):
        watch = TauWatch(128, 3.0)
        feed(watch, 2.6, 300, seed)
        watch.begin()
        verdict = feed(watch, 2.6, 200, 1000 + seed)
        false_alarms += verdict == "dropped"
        watch = TauWatch(128, 3.0)
        feed(watch, 2.6, 300, seed)
        watch.begin()
        assert feed(watch, 1.2, 128, 2000 + seed) == "dropped"
        assert watch.relative_drop() > 0.3
        watch.rolled_back()
        assert not watch.watching
    assert false_alarms <= 1


def test_a_watch_without_a_past_passes():
    watch = TauWatch(30, 3.0)
    watch.begin()
    assert feed(watch, 1.0001, 30, 0) == "passed"
    assert watch.before.count == 30
