"""Acceptance against plain decoding, on a toy language model that reads its whole prefix."""

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from specblock.tree.accept import Acceptance, accept
from specblock.tree.draft_tree import DraftTree
from specblock.tree.sampling import SamplingParams, draw, process

SAMPLERS = {
    "greedy": {},
    "greedy, penalties": {
        "repetition_penalty": 1.3,
        "frequency_penalty": 0.4,
        "presence_penalty": 0.3,
    },
    "temperature": {"temperature": 0.8},
    "hot": {"temperature": 2.0},
    "top-k": {"temperature": 1.0, "top_k": 3},
    "top-p": {"temperature": 1.0, "top_p": 0.7},
    "min-p": {"temperature": 1.2, "min_p": 0.25},
    "repetition": {"temperature": 1.0, "repetition_penalty": 1.5},
    "frequency": {"temperature": 1.0, "frequency_penalty": 0.9},
    "presence": {"temperature": 1.0, "presence_penalty": -1.1},
    "all": {
        "temperature": 0.9,
        "top_k": 4,
        "top_p": 0.9,
        "min_p": 0.05,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.5,
    },
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


class ToyModel:
    """Logits are a fixed function of every token of the prefix; half-integers, so that they tie."""

    def __init__(self, vocabulary: int, seed: int, ties: bool = True):
        self.vocabulary, self.seed, self.ties = vocabulary, seed, ties

    def logits(self, prefix: list[int]) -> torch.Tensor:
        source = random.Random(f"{self.seed} {prefix}")
        row = [source.gauss(0, 1.3) for _ in range(self.vocabulary)]
        return torch.tensor([round(2 * x) / 2 for x in row] if self.ties else row)

    def verify(self, tree: DraftTree, prefix: list[int]) -> torch.Tensor:
        """[N+1, V]; the prefix ends before the root."""
        paths: list[list[int]] = []
        for token, parent in zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True):
            paths.append([*(prefix if parent < 0 else paths[parent]), token])
        return torch.stack([self.logits(path) for path in paths])


def random_tree(root: int, vocabulary: int, size: int, source: random.Random) -> DraftTree:
    tokens, parents, depths, taken = [root], [-1], [0], set()
    for _ in range(size):
        parent, token = source.randrange(len(tokens)), source.randrange(vocabulary)
        if (parent, token) not in taken:
            taken.add((parent, token))
            tokens.append(token)
            parents.append(parent)
            depths.append(depths[parent] + 1)
    log_probs = torch.full((len(tokens),), -1.0)
    log_probs[0] = 0
    depths = torch.tensor(depths)
    tree = DraftTree(
        tokens=torch.tensor(tokens),
        parents=torch.tensor(parents),
        depths=depths,
        scores=-depths.float(),
        log_probs=log_probs,
        buckets=torch.zeros(len(tokens), dtype=torch.int64),
    )
    tree.validate()
    return tree


def plain(model: ToyModel, params: SamplingParams, prompt: list[int], count: int) -> list[int]:
    text = list(prompt)
    for _ in range(count):
        text.append(draw(model.logits(text), params, text, len(prompt), len(text)))
    return text[len(prompt) :]


def speculative(
    model: ToyModel, params: SamplingParams, prompt: list[int], count: int, size: int, seed: int
) -> tuple[list[int], list[Acceptance]]:
    """Rounds of accept; the tree is a function of prefix and seed alone."""
    text, rounds = list(prompt), []
    while len(text) - len(prompt) < count:
        source = random.Random(f"{seed} {text}")
        tree = random_tree(text[-1], model.vocabulary, source.randint(0, size), source)
        logits = model.verify(tree, text[:-1])
        rounds.append(accept(tree, logits, params, text, len(prompt), len(text)))
        text += rounds[-1].tokens
    return text[len(prompt) :][:count], rounds


@pytest.mark.parametrize("settings_name", SAMPLERS)
@given(
    vocabulary=st.integers(1, 7),
    prompt_length=st.integers(1, 6),
    size=st.integers(0, 40),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_tree_gives_the_tokens_of_plain_decoding(
    settings_name, vocabulary, prompt_length, size, seed
):
    model = ToyModel(vocabulary, seed)
    prompt = [random.Random(seed).randrange(vocabulary) for _ in range(prompt_length)]
    params = SamplingParams(**SAMPLERS[settings_name], seed=seed)
    tokens, _ = speculative(model, params, prompt, 16, size, seed + 1)
    assert tokens == plain(model, params, prompt, 16)


@pytest.mark.parametrize("settings_name", SAMPLERS)
def test_the_trees_above_are_worth_testing_with(settings_name):
    """Long accepted paths, inner stops and leaves all occur, and different seeds differ."""
    model = ToyModel(5, 1)
    lengths, texts = Counter(), set()
    for seed in range(40):
        params = SamplingParams(**SAMPLERS[settings_name], seed=seed)
        tokens, rounds = speculative(model, params, [1, 2], 12, 40, seed)
        lengths.update(round_.accepted for round_ in rounds)
        texts.add(tuple(tokens))
        assert tokens == plain(model, params, [1, 2], 12)
    assert min(lengths[0], lengths[1]) >= 10
    assert sum(lengths[n] for n in lengths if n >= 3) >= 5
    assert len(texts) == 1 if params.greedy else len(texts) > 10


def test_the_walk_by_hand():
    #        0 (token 9)
    #     1: 4      2: 5
    #  3: 4  4: 6   5: 4
    tree = DraftTree(
        tokens=torch.tensor([9, 4, 5, 4, 6, 4]),
        parents=torch.tensor([-1, 0, 0, 1, 1, 2]),
        depths=torch.tensor([0, 1, 1, 2, 2, 2]),
        scores=torch.zeros(6),
        log_probs=torch.zeros(6),
        buckets=torch.zeros(6, dtype=torch.int64),
    )
    logits = torch.zeros(6, 10)
    for node, token in enumerate([4, 6, 0, 0, 8, 0]):
        logits[node, token] = 1.0
    got = accept(tree, logits, SamplingParams(), [], 0, 1)
    assert got.path == [0, 1, 4]
    assert got.tokens == [4, 6, 8]
    assert (got.bonus, got.accepted) == (8, 2)
    assert got.trials == [[(1, True), (2, False)], [(3, False), (4, True)], []]
    logits[0] = torch.eye(10)[7]
    got = accept(tree, logits, SamplingParams(), [], 0, 1)
    assert (got.path, got.tokens, got.accepted) == ([0], [7], 0)
    assert got.trials == [[(1, False), (2, False)]]


def test_root_only_is_one_plain_step():
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    params = SamplingParams(1.0, seed=3)
    got = accept(DraftTree.root_only(7), logits, params, [1, 7], 1, 2)
    assert got == Acceptance([0], [draw(logits[0], params, [1, 7], 1, 2)], [[]])


def test_unvisited_rows_do_not_matter_and_visited_ones_do():
    tree = random_tree(0, 4, 12, random.Random(0))
    model = ToyModel(4, 0)
    logits = model.verify(tree, [])
    wanted = accept(tree, logits, SamplingParams(), [0], 1, 1)
    unvisited = [node for node in range(len(tree)) if node not in wanted.path]
    logits[unvisited] = math.nan
    assert accept(tree, logits, SamplingParams(), [0], 1, 1) == wanted
    logits[wanted.path[-1]] = math.nan
    with pytest.raises(ValueError, match="logits"):
        accept(tree, logits, SamplingParams(), [0], 1, 1)


def test_the_batched_arg_max_of_accelerators_agrees(monkeypatch):
    wanted = [speculative(ToyModel(5, n), SamplingParams(), [1], 20, 30, n) for n in range(20)]
    monkeypatch.setattr("specblock.tree.accept._at_once", lambda *_: True)
    got = [speculative(ToyModel(5, n), SamplingParams(), [1], 20, 30, n) for n in range(20)]
    assert got == wanted
    logits = torch.tensor([[math.nan, 1.0]])
    with pytest.raises(ValueError, match="logits"):
        accept(DraftTree.root_only(1), logits, SamplingParams(), [], 0, 0)


def test_misuse_is_refused():
    tree = DraftTree.root_only(3)
    with pytest.raises(ValueError, match="rows"):
        accept(tree, torch.zeros(2, 4), SamplingParams(), [3], 1, 1)
    for context in ([], [3, 2]):
        with pytest.raises(ValueError, match="root"):
            accept(tree, torch.zeros(1, 4), SamplingParams(repetition_penalty=2.0), context, 0, 1)


def test_the_context_may_be_a_tensor_and_is_not_changed():
    model, params = ToyModel(5, 2), SamplingParams(1.0, repetition_penalty=1.5, seed=1)
    tree = random_tree(2, 5, 30, random.Random(5))
    logits = model.verify(tree, [1, 4])
    context = [1, 4, 2]
    got = accept(tree, logits, params, context, 2, 3)
    assert context == [1, 4, 2]
    assert got == accept(tree, logits, params, torch.tensor(context), 2, 3)


def continuation_probabilities(
    model: ToyModel, params: SamplingParams, prompt: list[int]
) -> dict[tuple[int, int], float]:
    """Exact probabilities of all two-token continuations under the processed distribution."""

    def step(text: list[int]) -> list[float]:
        scores = process(model.logits(text), params, text, len(prompt))
        return scores.double().softmax(-1).tolist()

    first = step(prompt)
    return {
        (a, b): first[a] * second
        for a in range(model.vocabulary)
        for b, second in enumerate(step([*prompt, a]))
    }


SAMPLED = [name for name, given_settings in SAMPLERS.items() if "temperature" in given_settings]


def chi_square(model: ToyModel, params: SamplingParams, count: int, seed_of) -> float:
    """p-value of two-token continuations over many seeds against the exact probabilities."""
    prompt = [3, 1]
    counts = Counter()
    for seed in range(count):
        seeded = SamplingParams(**{**vars(params), "seed": seed_of(seed)})
        tokens, _ = speculative(model, seeded, prompt, 2, 10, 3)
        counts[tuple(tokens)] += 1
    exact = continuation_probabilities(model, params, prompt)
    possible = [pair for pair, probability in exact.items() if probability > 0]
    assert set(counts) <= set(possible)
    expected = [exact[pair] * count for pair in possible]
    return stats.chisquare([counts[pair] for pair in possible], expected).pvalue


@pytest.mark.parametrize("settings_name", SAMPLED)
def test_many_seeds_follow_the_distribution_of_the_target(settings_name):
    params = SamplingParams(**SAMPLERS[settings_name])
    assert chi_square(ToyModel(4, 6, ties=False), params, 1000, lambda seed: seed) > 1e-3


def test_the_chi_square_would_notice_noise_that_is_not_uniform():
    """100 seeds, ten times each, are refused: the test above has the power it needs."""
    params = SamplingParams(**SAMPLERS["hot"])
    model = ToyModel(4, 6, ties=False)
    assert chi_square(model, params, 1000, lambda seed: seed % 100) < 1e-3
