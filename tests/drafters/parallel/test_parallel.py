"""Decoding with parallel heads: one function with training, the right tree, the same output."""

import itertools

import pytest
import torch
from tests.tiny import make_target

from specblock.budget.costs import CostTable
from specblock.drafters.base import BudgetController, FixedBudget
from specblock.drafters.parallel.config import ParallelConfig
from specblock.drafters.parallel.network import ParallelModel
from specblock.drafters.parallel.objective import run_trunk
from specblock.drafters.parallel.propose import ParallelDrafter
from specblock.drafters.proposing.together import alone
from specblock.engine.rounds import decode
from specblock.engine.statistics import GenerationStats
from specblock.target.model import Target
from specblock.tree.sampling import SamplingParams

LENGTH = 15


def make_model(**overrides) -> ParallelModel:
    torch.manual_seed(3)
    settings = {
        "hidden_size": 32,
        "vocab_size": 97,
        "target_layers": 6,
        "feature_layers": (0, 2, 4),
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "draft_vocab_size": 40,
        **overrides,
    }
    model = ParallelModel(ParallelConfig(**settings))
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    return model.eval()


def sequence():
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(LENGTH, 96, generator=generator)
    return features, torch.randint(0, 97, (LENGTH,), generator=generator)


@torch.no_grad()
@pytest.mark.parametrize("overrides", [{}, {"sink": True, "feature_norm": True}])
@pytest.mark.parametrize("steps", [(LENGTH,), (1,) * LENGTH, (6, 1, 3, 4, 1)])
def test_the_cached_forward_equals_training_at_every_position(overrides, steps):
    model = make_model(**overrides)
    features, tokens = sequence()
    expected = model.ahead(run_trunk(model, features[None], tokens[None]))[0]
    drafter = ParallelDrafter(model)
    drafter.reset(LENGTH)
    end = 0
    for count in steps:
        drafter.observe(features[end : end + count], tokens[end : end + count])
        end += count
        ids, log_probs = alone(drafter.refresh())
        best = model.logits(expected[end - 1])[0].log_softmax(-1).topk(ids.shape[1])
        assert ids.tolist() == model.to_target_ids(best.indices).tolist()
        torch.testing.assert_close(log_probs, best.values, atol=2e-4, rtol=2e-4)


def test_heads_start_as_the_trunk():
    torch.manual_seed(0)
    model = ParallelModel(make_model().config)
    hidden = torch.randn(5, 32)
    assert torch.equal(model.ahead(hidden), hidden[:, None].expand(-1, 4, -1))


@torch.no_grad()
@pytest.mark.parametrize(("width", "positions", "nodes"), [(4, 3, 20), (3, 2, 60), (5, 1, 3)])
def test_the_tree_is_the_best_of_all_combinations(width, positions, nodes):
    model = make_model(positions=positions)
    features, tokens = sequence()
    drafter = ParallelDrafter(model, width=width)
    drafter.reset(LENGTH)
    drafter.prefill(features, tokens)
    tree = drafter.propose(int(tokens[-1]), FixedBudget(nodes))
    tree.validate()
    hidden = model.ahead(run_trunk(model, features[None], tokens[None]))[0, -1]
    top, ids = model.logits(hidden)[0].log_softmax(-1).topk(width)
    scores = {}
    for depth in range(1, positions + 1):
        for ranks in itertools.product(range(width), repeat=depth):
            path = tuple(int(model.to_target_ids(ids[k, r])) for k, r in enumerate(ranks))
            scores[path] = float(sum(top[k, r] for k, r in enumerate(ranks)))
    best = sorted(scores, key=lambda path: -scores[path])[:nodes]
    paths = {}
    for node in range(1, len(tree)):
        path, at = [], node
        while at > 0:
            path.append(int(tree.tokens[at]))
            at = int(tree.parents[at])
        paths[tuple(reversed(path))] = float(tree.scores[node])
    assert paths.keys() == set(best)
    for path, score in paths.items():
        assert score == pytest.approx(scores[path], abs=2e-4)


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=1.0, seed=4)])
def test_the_output_is_that_of_plain_decoding(params):
    target = Target(make_target("llama"), (0, 2, 4))
    prompt = torch.randint(3, 97, (11,), generator=torch.Generator().manual_seed(1)).tolist()

    def run(drafter, budget):
        stats = GenerationStats()
        rounds = decode(target, drafter, budget, prompt, params, 40, stats)
        return [token for new in rounds for token in new], stats

    plain, _ = run(None, None)
    drafter = ParallelDrafter(make_model(draft_vocab_size=60))
    for budget in (
        FixedBudget(12),
        BudgetController(CostTable({1: 1.0, 64: 1.2}, {1: 0.05, 8: 0.06})),
    ):
        ours, stats = run(drafter, budget)
        assert ours == plain
        assert stats.drafted_nodes > 0


def test_measurements_are_of_first_calls_alone():
    features, tokens = sequence()
    drafter = ParallelDrafter(make_model())
    first, later = drafter.measurements(features, tokens, (1, 4), (1, 2))
    assert (sorted(first), later) == ([1, 4], {})
    for call in (*first.values(), *first.values()):
        call()
    assert drafter._entries == LENGTH + 4


def test_a_proposal_needs_a_new_pair():
    drafter = ParallelDrafter(make_model())
    drafter.reset(LENGTH)
    with pytest.raises(ValueError, match="newest pair"):
        drafter.propose(1, FixedBudget())
