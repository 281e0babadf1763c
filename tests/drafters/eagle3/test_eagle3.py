"""Decoding with EAGLE-3: one function with training, the right tree, and the same output."""

import pytest
import torch
from tests.tiny import make_target

from specblock.budget.costs import CostTable
from specblock.drafters.base import BudgetController, FixedBudget
from specblock.drafters.eagle3.config import Eagle3Config
from specblock.drafters.eagle3.network import Eagle3Model
from specblock.drafters.eagle3.objective import run_step, run_trunk
from specblock.drafters.eagle3.propose import Eagle3Drafter
from specblock.drafters.proposing.together import alone
from specblock.engine.rounds import decode
from specblock.engine.statistics import GenerationStats
from specblock.target.model import Target
from specblock.tree.sampling import SamplingParams

VARIANTS = {
    "paper": {},
    "departures": {"feature_norm": True, "sink": True},
    "published: residual, fc": {"norm_before_residual": True, "norm_before_fc": True},
    "published: output, heads": {"norm_output": True, "qk_norm": True, "feature_norm": True},
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1},
}
LENGTH = 17


def make_model(**overrides) -> Eagle3Model:
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
    model = Eagle3Model(Eagle3Config(**settings))
    for parameter in model.parameters():  # nothing may be zero, or a missing term would not show
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    return model.eval()


def sequence(model):
    generator = torch.Generator().manual_seed(5)
    config = model.config
    width = len(config.feature_layers) * config.hidden_size
    features = torch.randn(LENGTH, width, generator=generator)
    return features, torch.randint(0, config.vocab_size, (LENGTH,), generator=generator)


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def model(request):
    return make_model(**request.param)


def near(one, other):
    torch.testing.assert_close(one, other, atol=2e-4, rtol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("steps", [(LENGTH,), (1,) * LENGTH, (6, 1, 3, 2, 4, 1)])
def test_the_first_level_equals_training_at_every_position(model, steps):
    features, tokens = sequence(model)
    trunk = run_trunk(model, features[None], tokens[None])
    drafter = Eagle3Drafter(model)
    drafter.reset(LENGTH)
    end = 0
    for count in steps:
        drafter.observe(features[end : end + count], tokens[end : end + count])
        end += count
        near(alone(drafter.first_level()).found.hidden[0], trunk.hidden[0, end - 1])


@torch.no_grad()
@pytest.mark.parametrize("position", [0, 1, 9])
def test_later_levels_equal_training_time_test(model, position):
    """Along two branches of a tree at once, each of which is a chain of its own in training."""
    features, tokens = sequence(model)
    drafter = Eagle3Drafter(model, depth=4)
    drafter.reset(LENGTH)
    drafter.observe(features[: position + 1], tokens[: position + 1])
    level = alone(drafter.first_level())
    branches = torch.tensor([[7, 3, 90, 12], [8, 3, 41, 5]])
    pairs = torch.tensor([[position]])
    trunk = run_trunk(model, features[None], tokens[None])
    hidden = [trunk.hidden[:, position : position + 1]] * 2
    earlier = [[], []]
    for step in range(1, 5):
        rows = torch.tensor([0, 0] if step == 1 else [0, 1])
        level = alone(drafter.next_level(level, rows, branches[:, step - 1]))
        for branch in range(2):
            token = branches[branch, step - 1].view(1, 1)
            out, entry = run_step(model, trunk, hidden[branch], token, pairs, earlier[branch])
            hidden[branch] = out
            earlier[branch].append(entry)
            near(level.found.hidden[branch], out[0, 0])


def test_drafting_leaves_no_trace_in_the_cache(model):
    features, tokens = sequence(model)
    drafted, undisturbed = Eagle3Drafter(model), Eagle3Drafter(model)
    for drafter in (drafted, undisturbed):
        drafter.reset(LENGTH)
        drafter.observe(features[:10], tokens[:10])
    drafted.propose(int(tokens[9]), FixedBudget()).validate()
    for drafter in (drafted, undisturbed):
        drafter.observe(features[10:13], tokens[10:13])
    one, other = alone(drafted.first_level()), alone(undisturbed.first_level())
    near(one.found.hidden, other.found.hidden)


def test_a_proposal_needs_a_new_pair():
    drafter = Eagle3Drafter(make_model())
    drafter.reset(LENGTH)
    with pytest.raises(ValueError, match="newest pair"):
        drafter.propose(1, FixedBudget())


def brute_force(model, features, tokens, depth, top_k, nodes):
    """The tree by its definition: {path of target ids: cumulative log-probability}."""

    def continuations(path):
        trunk = run_trunk(model, features[None], tokens[None])
        pairs, earlier = torch.tensor([[len(tokens) - 1]]), []
        hidden = trunk.hidden[:, -1:]
        for token in path:
            token = torch.tensor([[token]])
            hidden, entry = run_step(model, trunk, hidden, token, pairs, earlier)
            earlier.append(entry)
        log_probs = model.logits(hidden[0, 0])[0].log_softmax(-1)
        best = sorted(range(len(log_probs)), key=lambda i: -float(log_probs[i]))[:top_k]
        return {(*path, i + int(model.d2t[i])): float(log_probs[i]) for i in best}

    pool = dict(continuations(()))
    newest = dict(pool)
    for _ in range(depth):
        grown = {}
        for path in sorted(newest, key=lambda path: -newest[path])[:top_k]:
            for child, log_prob in continuations(path).items():
                grown[child] = newest[path] + log_prob
        pool.update(grown)
        newest = grown
    best = sorted(pool, key=lambda path: -pool[path])[:nodes]
    return {path: pool[path] for path in best}


@torch.no_grad()
@pytest.mark.parametrize(
    ("depth", "top_k", "nodes"), [(3, 3, 14), (2, 4, 60), (4, 1, 5), (0, 5, 9)]
)
def test_the_tree_is_the_definition(depth, top_k, nodes):
    model = make_model(draft_vocab_size=9)
    features, tokens = sequence(model)
    drafter = Eagle3Drafter(model, depth=depth, top_k=top_k)
    drafter.reset(LENGTH)
    drafter.prefill(features, tokens)
    tree = drafter.propose(int(tokens[-1]), FixedBudget(nodes))
    tree.validate()
    expected = brute_force(model, features, tokens, depth, top_k, nodes)
    paths = {}
    for node in range(1, len(tree)):
        path, at = [], node
        while at > 0:
            path.append(int(tree.tokens[at]))
            at = int(tree.parents[at])
        paths[tuple(reversed(path))] = float(tree.scores[node])
    assert paths.keys() == expected.keys()
    for path, score in paths.items():
        assert score == pytest.approx(expected[path], abs=2e-4)
    if top_k == 1:
        assert tree.parents.tolist() == [-1, *range(len(tree) - 1)]


def calls_of(drafter, monkeypatch):
    calls = []
    original = drafter.next_level
    monkeypatch.setattr(
        drafter, "next_level", lambda *args: calls.append(len(args[1])) or original(*args)
    )
    return calls


def test_eight_calls_and_sixty_nodes_by_default(monkeypatch):
    model = make_model(draft_vocab_size=60)
    features, tokens = sequence(model)
    drafter = Eagle3Drafter(model)
    calls = calls_of(drafter, monkeypatch)
    drafter.reset(LENGTH)
    drafter.prefill(features, tokens)
    tree = drafter.propose(int(tokens[-1]), FixedBudget())
    assert calls == [10] * 7
    assert tree.num_draft == 60


def test_a_measured_budget_stops_where_a_level_costs_more_than_it_brings(monkeypatch):
    model = make_model(draft_vocab_size=60)
    features, tokens = sequence(model)
    sizes = {}
    for name, seconds in {"free": 0.0, "dear": 1000.0}.items():
        drafter = Eagle3Drafter(model, max_nodes=60)
        calls = calls_of(drafter, monkeypatch)
        costs = CostTable({1: 1.0, 64: 1.0001}, {1: 0.1}, {1: seconds, 10: seconds * 1.01})
        budget = BudgetController(costs)
        budget.speculate()
        drafter.reset(LENGTH)
        drafter.prefill(features, tokens)
        sizes[name] = drafter.propose(int(tokens[-1]), budget).num_draft, len(calls)
    assert sizes["free"][1] == 7
    assert sizes["dear"][1] == 0
    assert 0 < sizes["dear"][0] <= 10 < sizes["free"][0]


def test_measurements_leave_the_same_cost_at_every_call():
    model = make_model()
    features, tokens = sequence(model)
    drafter = Eagle3Drafter(model, depth=3, top_k=5)
    first, later = drafter.measurements(features, tokens, (1, 4), (1, 2, 4, 8, 16))
    assert (sorted(first), sorted(later)) == ([1, 4], [1, 2, 4, 5])
    for call in (*first.values(), *later.values()) * 3:
        call()
    assert drafter._entries in (LENGTH, LENGTH + 4)


@pytest.mark.parametrize("top_k", [1, 4])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=1.0, seed=4)])
def test_the_output_is_that_of_plain_decoding(name, params, top_k):
    target = Target(make_target(name), (0, 2, 4))
    prompt = torch.randint(3, 97, (11,), generator=torch.Generator().manual_seed(1)).tolist()
    costs = CostTable({1: 1.0, 64: 1.2}, {1: 0.05}, {1: 0.02, 10: 0.03})

    def run(drafter, budget):
        stats = GenerationStats()
        rounds = decode(target, drafter, budget, prompt, params, 40, stats)
        return [token for new in rounds for token in new], stats

    plain, _ = run(None, None)
    drafter = Eagle3Drafter(make_model(draft_vocab_size=60), depth=3, top_k=top_k)
    for budget in (FixedBudget(12), BudgetController(costs)):
        ours, stats = run(drafter, budget)
        assert ours == plain
        assert stats.drafted_nodes > 0
