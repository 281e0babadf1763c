"""Simulated decoding against the engine: the same rounds, the same accepted length."""

import pytest
import torch
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import VOCABULARY, OracleDrafter, make_target, seeded

from specblock.drafters.base import FixedBudget
from specblock.drafters.registry import make_drafter
from specblock.engine.rounds import decode
from specblock.engine.statistics import GenerationStats
from specblock.target.model import Target
from specblock.training.data.answers import Answer, count_tokens, draft_vocabulary
from specblock.training.evaluate.simulate import greedy_answers, simulate, walk
from specblock.training.features.reader import FeatureReader
from specblock.training.kinds import drafter_config, new_drafter, warm_start
from specblock.training.recipe import DrafterRecipe
from specblock.tree.draft_tree import DraftTree
from specblock.tree.sampling import SamplingParams

LENGTH, ANSWERS = 60, 6


def decoded(target: Target, drafter, budget, ids) -> tuple[list[int], GenerationStats]:
    stats = GenerationStats()
    rounds = decode(target, drafter, budget, ids, SamplingParams(), LENGTH, stats)
    return [token for new in rounds for token in new], stats


@pytest.fixture(scope="module")
def network():
    return make_target("llama")


@pytest.fixture(scope="module")
def answers(network) -> list[Answer]:
    generator = seeded(3)
    made = []
    for index in range(ANSWERS):
        ids = torch.randint(3, VOCABULARY, (5 + index,), generator=generator).tolist()
        made.append(Answer(str(index), ids, decoded(Target(network), None, None, ids)[0], False))
    return made


@pytest.fixture(scope="module")
def trained(network, answers):
    """A drafter in closed form from the very answers: it drafts well here."""
    recipe = DrafterRecipe(draft_vocab_size=80, slot_rank=16)
    d2t, t2d, _ = draft_vocabulary(count_tokens(answers, VOCABULARY), 80)
    config = drafter_config(network, recipe, make_tokenizer(), "tiny")
    model = new_drafter(network, config, d2t, t2d)
    reader = FeatureReader(network, config.feature_layers, t2d)
    sequences = reader.read_batch(answers)
    warm_start(model, network, sequences)
    return model, sequences


def test_tau_is_that_of_the_engine(network, answers, trained):
    model, sequences = trained
    drafter = make_drafter(model)
    target = Target(network, drafter.feature_layers)
    simulated, measured = [0, 0], [0, 0]
    for answer, sequence in zip(answers, sequences, strict=True):
        tokens, stats = decoded(target, drafter, FixedBudget(24, 6), answer.prompt_ids)
        assert tokens == answer.answer_ids
        rounds, counted = simulate(drafter, sequence, FixedBudget(24, 6))
        assert rounds == stats.rounds
        assert counted == stats.round_tokens
        simulated[0] += rounds
        simulated[1] += counted
        measured[0] += stats.rounds
        measured[1] += stats.round_tokens
    tau = measured[1] / measured[0]
    assert tau > 1.5  # something was accepted
    assert simulated[1] / simulated[0] == pytest.approx(tau, rel=1e-9)


@pytest.mark.parametrize("index", range(3))
def test_deep_acceptance_is_counted_alike(network, answers, trained, index):
    answer, sequence = answers[index], trained[1][index]

    def oracle():
        return OracleDrafter(answer.answer_ids, len(answer.prompt_ids), seed=index)

    target = Target(network, OracleDrafter.feature_layers)
    _, stats = decoded(target, oracle(), FixedBudget(), answer.prompt_ids)
    drafter = oracle()
    rounds, tokens = simulate(drafter, sequence, FixedBudget())
    assert rounds == stats.rounds
    assert stats.round_tokens == tokens
    assert tokens / rounds > 2.5
    pairs = torch.cat([part for _, part in drafter.pairs])
    assert pairs.tolist() == answer.ids[1:]  # every pair once, in order


def test_the_engines_budget_is_asked_and_told(trained, answers):
    class Watched(FixedBudget):
        def __init__(self):
            super().__init__(12, 4)
            self.plain, self.told, self.turn = 0, 0, 0

        def speculate(self, copied=None):
            self.turn += 1
            return self.turn % 3 > 0

        def update(self, log_probs, classes, trials):
            assert len(log_probs) == len(classes)
            assert all(0 < child < len(log_probs) for visited in trials for child, _ in visited)
            self.told += 1

        def update_without(self, tokens=1, nodes=0):
            self.plain += 1

    model, sequences = trained
    budget = Watched()
    rounds, tokens = simulate(make_drafter(model), sequences[0], budget)
    assert budget.plain == rounds // 3
    assert budget.told + budget.plain == rounds
    assert tokens >= len(answers[0].answer_ids) - 1


def test_a_walk_by_hand():
    tree = DraftTree(
        torch.tensor([9, 4, 5, 6, 7]),
        torch.tensor([-1, 0, 0, 2, 3]),
        torch.tensor([0, 1, 1, 2, 3]),
        torch.zeros(5),
        torch.zeros(5),
        torch.zeros(5, dtype=torch.int64),
    )
    accepted, trials = walk(tree, [5, 6, 8])
    assert accepted == 2
    assert trials == [[(1, False), (2, True)], [(3, True)], [(4, False)]]
    assert walk(tree, [5, 6])[0] == 2
    assert walk(tree, [3])[0] == 0


def test_only_greedy_answers_are_simulated(network, answers, trained):
    model, sequences = trained
    config = model.config
    reader = FeatureReader(network, config.feature_layers, model.t2d)
    sampled = [
        Answer("x", a.prompt_ids, a.answer_ids[:20] + a.answer_ids[:20], False) for a in answers
    ]
    mixed = [*reader.read_batch(sampled), *sequences]
    found = greedy_answers(mixed, model.d2t, 4)
    assert [any(f is s for s in sequences) for f in found] == [True] * 4
