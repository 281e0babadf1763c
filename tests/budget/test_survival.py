import json
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specblock.budget.survival import BINS, CLASSES, SurvivalModel, endings, trim
from specblock.tree.draft_tree import DraftTree
from specblock.tree.source import BUCKETS, Source


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def random_tree(size: int, seed: int) -> DraftTree:
    """Siblings' probabilities may add up to more than 1, as those of a drafter's blocks do."""
    source = random.Random(seed)
    parents = [-1] + [source.randrange(node) for node in range(1, size + 1)]
    depths = [0]
    log_probs = torch.rand(size + 1, generator=torch.Generator().manual_seed(seed)).log()
    log_probs[0] = 0.0
    scores = [0.0]
    for node in range(1, size + 1):
        depths.append(depths[parents[node]] + 1)
        scores.append(scores[parents[node]] + float(log_probs[node]))
    tree = DraftTree(
        tokens=torch.arange(size + 1),
        parents=torch.tensor(parents),
        depths=torch.tensor(depths),
        scores=torch.tensor(scores),
        log_probs=log_probs,
        buckets=torch.tensor([0] + [source.randrange(4) for _ in range(size)]),
    )
    tree.validate()
    return tree


def trained(seed: int) -> SurvivalModel:
    """A model that has seen random outcomes."""
    model, source = SurvivalModel.fresh(), random.Random(seed)
    for round_ in range(20):
        tree = random_tree(15, seed + round_)
        trials = [[(node, source.random() < 0.5) for node in range(1, 16)]]
        model = model.update(tree.log_probs, tree.classes, trials)
    return model


def test_a_fresh_model_repeats_the_drafter():
    p = torch.tensor([1e-6, 0.001, 0.3, 0.5, 0.9, 0.9999])
    classes = torch.tensor([0, 1, 2, 3, 0, 1])
    got = SurvivalModel.fresh().conditional(p.log(), classes)
    assert got.dtype == torch.float32
    assert torch.allclose(got, p, rtol=1e-4, atol=0)
    certain = SurvivalModel.fresh().conditional(torch.tensor([0.0, -torch.inf]), classes[:2])
    assert certain[0] == pytest.approx(1, abs=1e-5)
    assert certain[1] == 0


@given(size=st.integers(0, 40), seed=st.integers(0, 1000), fresh=st.booleans())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_survival_is_the_product_along_the_path(size, seed, fresh):
    tree = random_tree(size, seed)
    model = SurvivalModel.fresh() if fresh else trained(seed)
    got = model.survival(tree.log_probs, tree.classes, tree.parents)
    conditional = model.conditional(tree.log_probs, tree.classes).clamp(max=0.9999).tolist()
    parents = tree.parents.tolist()
    wanted = [1.0]
    for node in range(1, size + 1):
        family = sum(conditional[n] for n in range(1, size + 1) if parents[n] == parents[node])
        wanted.append(wanted[parents[node]] * conditional[node] / max(1.0, family))
    assert got.tolist() == pytest.approx(wanted, rel=1e-4)
    assert all(got[node] < got[parents[node]] for node in range(1, size + 1))
    ends = endings(got, tree.parents)
    assert float(ends.sum()) == pytest.approx(1, abs=1e-4)
    assert ends.min() >= 0


def test_even_certain_children_come_after_their_parents():
    chain = torch.arange(-1, 40)
    log_probs, classes = torch.zeros(41), torch.zeros(41, dtype=torch.int64)
    got = SurvivalModel.fresh().survival(log_probs, classes, chain)
    assert torch.all(got[1:] < got[:-1])
    assert got[-1] > 0.99


def test_a_pool_is_a_tree_without_its_root():
    tree, model = random_tree(30, 4), trained(4)
    whole = model.survival(tree.log_probs, tree.classes, tree.parents)
    # Invalid entries, and a parent that comes after its child, as de-duplication leaves them.
    order = torch.cat((torch.arange(29, -1, -1), torch.tensor([3, 7])))
    place = torch.empty(31, dtype=torch.int64)
    place[0] = -1
    place[order[:30] + 1] = torch.arange(30)
    log_probs = tree.log_probs[1:][order]
    log_probs[30:] = -torch.inf
    parents = place[tree.parents[1:][order]]
    got = model.pool_survival(log_probs, tree.classes[1:][order], parents)
    assert torch.allclose(got[:30], whole[1:][order[:30]])
    assert torch.all(got[30:] == 0)
    ends = endings(got, parents)
    assert torch.allclose(ends[:30], endings(whole, tree.parents)[1:][order[:30]], atol=1e-6)


def test_it_learns_the_hit_rates_of_its_cells():
    """A drafter that is overconfident in class 0 and underconfident in class 2."""
    source, model = random.Random(0), SurvivalModel.fresh(discount=1.0)
    truth = {(0.9, 0): 0.6, (0.9, 2): 0.97, (0.2, 0): 0.05, (0.2, 2): 0.4}
    cases = list(truth)
    log_probs = torch.tensor([0.0] + [p for p, _ in cases]).clamp(min=1e-9).log()
    log_probs[0] = 0.0
    classes = torch.tensor([0] + [rank for _, rank in cases])
    for _ in range(1500):
        trials = [[(n + 1, source.random() < truth[case])] for n, case in enumerate(cases)]
        model = model.update(log_probs, classes, trials)
    got = model.conditional(log_probs[1:], classes[1:])
    assert got.tolist() == pytest.approx(list(truth.values()), abs=0.04)
    # Other cells stay as they were, and within a cell more is still more.
    untouched = model.conditional(torch.tensor([0.9]).log(), torch.tensor([1]))
    assert float(untouched) == pytest.approx(0.9, abs=1e-4)
    near = model.conditional(torch.tensor([0.89, 0.9, 0.91]).log(), torch.tensor([0, 0, 0]))
    assert near[0] < near[1] < near[2]


def test_the_strength_is_worth_that_many_observations():
    log_probs, classes = torch.tensor([0.0, 0.5]).clamp(min=1e-9), torch.zeros(2, dtype=torch.int64)
    log_probs[1] = -0.6931472
    model = SurvivalModel.fresh(strength=8.0, discount=1.0)
    for _ in range(8):
        model = model.update(log_probs, classes, [[(1, False)]])
    # The cell reaches from 0.5 to 0.73 about its middle: half a bin more than 8 * 0.5 / 16.
    got = float(model.conditional(log_probs, classes)[1])
    assert 0.2 < got < 0.35
    assert model.counts.sum(dim=(1, 2)).tolist() == pytest.approx([8, 4, 0], abs=1e-5)


def test_old_rounds_fade():
    log_probs, classes = torch.tensor([0.0, -0.7]), torch.zeros(2, dtype=torch.int64)
    model = SurvivalModel.fresh(discount=0.9)
    for _ in range(100):
        model = model.update(log_probs, classes, [[(1, True)]])
    assert float(model.counts[0].sum()) == pytest.approx(10, abs=0.01)
    high = float(model.conditional(log_probs, classes)[1])
    for _ in range(100):
        model = model.update(log_probs, classes, [])
    low = float(model.conditional(log_probs, classes)[1])
    assert high > 0.7
    assert low == pytest.approx(float(log_probs[1].exp()), abs=0.001)


def test_update_leaves_the_old_value_alone():
    model = SurvivalModel.fresh()
    tree = random_tree(5, 0)
    model.update(tree.log_probs, tree.classes, [[(1, True), (2, False)], []])
    assert model.counts.abs().sum() == 0
    assert model.counts.shape == (3, BINS, CLASSES)


def test_it_survives_json():
    model, tree = trained(3), random_tree(20, 3)
    back = SurvivalModel.from_dict(json.loads(json.dumps(model.to_dict())))
    fields = tree.log_probs, tree.classes, tree.parents
    assert torch.equal(back.survival(*fields), model.survival(*fields))
    with pytest.raises(ValueError, match="shape"):
        SurvivalModel.from_dict({**model.to_dict(), "counts": [[1.0]]})
    for wrong in ({"strength": 0.0}, {"discount": 0.0}, {"discount": 1.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SurvivalModel.fresh(**wrong)


@pytest.mark.parametrize("known", [BUCKETS, BUCKETS * Source.REMEMBERED])
def test_a_model_without_the_later_classes_is_completed(known):
    state = trained(3).to_dict()
    counts = torch.tensor(state["counts"])
    state["counts"] = counts[..., :known].tolist()
    model = SurvivalModel.from_dict(state)
    assert model.counts.shape == (3, BINS, CLASSES)
    assert torch.equal(model.counts[..., :known].float(), counts[..., :known])
    assert not model.counts[..., known:].any()


def test_further_outcomes_of_a_round_age_nothing():
    model = trained(1)
    nothing = torch.zeros(1), torch.zeros(1, dtype=torch.int64), [[]]
    assert torch.equal(model.update(*nothing, aged=False).counts, model.counts)
    assert float(model.update(*nothing).counts.sum()) < float(model.counts.sum())


def test_who_proposed_a_node():
    assert [source.name for source in Source if source.from_network] == [
        "NETWORK",
        "AGREED",
        "REMEMBERED_AGREED",
    ]
    assert (Source.COPIED.agreed, Source.COPIED.alone) == (Source.AGREED, Source.ALONE)
    assert Source.REMEMBERED.agreed is Source.REMEMBERED_AGREED
    assert Source.REMEMBERED.alone is Source.REMEMBERED_ALONE


def test_every_source_and_bucket_has_a_class_of_its_own():
    pairs = [(source, bucket) for source in Source for bucket in range(BUCKETS)]
    sources, buckets = (torch.tensor(column) for column in zip(*pairs, strict=True))
    tree = DraftTree(*[torch.zeros_like(buckets)] * 5, buckets, sources)
    assert tree.classes.tolist() == list(range(CLASSES))


@given(size=st.integers(0, 30), keep=st.integers(0, 35), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_trim_keeps_the_likeliest_nodes_as_a_tree(size, keep, seed):
    tree = random_tree(size, seed)
    survival = trained(1).survival(tree.log_probs, tree.classes, tree.parents)
    small = trim(tree, survival, keep)
    small.validate()
    assert small.num_draft == min(size, keep)
    # Tokens are the old indices: which nodes stayed, and below which parent.
    kept = small.tokens.tolist()
    best = sorted(range(1, size + 1), key=lambda node: -float(survival[node]))[:keep]
    assert kept == [0, *sorted(best)]
    for name in ("scores", "log_probs", "buckets", "sources", "depths"):
        assert torch.equal(getattr(small, name), getattr(tree, name)[kept])
    assert [kept[p] for p in small.parents.tolist()[1:]] == tree.parents[kept][1:].tolist()


def test_trim_never_takes_a_child_without_its_parent_on_ties():
    tree = random_tree(12, 5)
    for size in range(12):
        trim(tree, torch.ones(13), size).validate()
