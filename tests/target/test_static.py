"""Verification with static shapes, held to the dynamic one token for token."""

import logging

import pytest
import torch

from specblock.drafters.base import FixedBudget
from specblock.engine.rounds import decode
from specblock.engine.speculator import Speculator
from specblock.engine.statistics import GenerationStats
from specblock.errors import ConfigError
from specblock.target.model import Target
from specblock.target.static import ROWS, StaticTarget
from specblock.tree.draft_tree import DraftTree
from specblock.tree.sampling import SamplingParams
from tests.tiny import make_drafter, make_target

PROMPT = list(range(3, 20))


def written(target, drafter, params=None, nodes=12, tokens=24):
    stats, said = GenerationStats(), []
    budget = None if drafter is None else FixedBudget(nodes, 4)
    for new in decode(target, drafter, budget, PROMPT, params or SamplingParams(), tokens, stats):
        said += new
    return said, stats.rounds, stats.drafted_nodes, stats.accepted_by_depth


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])
@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=0.9, seed=3)])
def test_the_same_tokens_in_the_same_rounds(family, params):
    model, drafter = make_target(family), make_drafter()
    dynamic = Target(model, drafter.feature_layers, exact=False, owned=True)
    static = StaticTarget(model, drafter.feature_layers)
    for nodes in (3, 30):
        assert written(static, drafter, params, nodes) == written(dynamic, drafter, params, nodes)
    assert written(static, None, params) == written(dynamic, None, params)
    assert set(static._recorded) == {1, 8, 32}
    assert not static.recorder.captures, "there are no graphs on a CPU"


def tree_of(parents, device="cpu"):
    parents = torch.tensor(parents)
    depths = torch.zeros_like(parents)
    for node in range(1, len(parents)):
        depths[node] = depths[parents[node]] + 1
    zero = torch.zeros(len(parents))
    tokens = 5 + torch.arange(len(parents)) * 7 % 80
    return DraftTree(tokens, parents, depths, zero, zero, torch.zeros_like(parents))


def test_logits_features_and_what_is_kept():
    model = make_target("llama")
    targets = Target(model, (1, 3), exact=False, owned=True), StaticTarget(model, (1, 3))
    tree, path = tree_of([-1, 0, 0, 1, 2, 4, 0, 3, 1]), torch.tensor([0, 2, 4])
    found = []
    for target in targets:
        target.reset(64)
        target.prefill(torch.tensor(PROMPT))
        first = target.verify(tree)
        target.commit(path)
        assert target.length == len(PROMPT) + 3
        found.append((first, target.verify(tree_of([-1, 0]))))
    for dynamic, static in zip(*found, strict=True):
        assert static.logits.shape == dynamic.logits.shape
        torch.testing.assert_close(static.logits, dynamic.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(static.features, dynamic.features, rtol=1e-4, atol=1e-4)


def test_a_longer_text_gets_a_larger_cache_and_others_the_dynamic_path():
    model, drafter = make_target("llama", max_position_embeddings=512), make_drafter()
    static = StaticTarget(model, drafter.feature_layers, capacity=256)
    dynamic = Target(model, drafter.feature_layers, exact=False, owned=True)
    assert written(static, drafter, tokens=20) == written(dynamic, drafter, tokens=20)
    assert static._cache.capacity == 256
    assert written(static, drafter, tokens=140) == written(dynamic, drafter, tokens=140)
    assert static._cache.capacity == 512
    one, other = static.open(30), static.open(30)
    assert one.cache is static._cache
    assert other.cache is not static._cache
    static.release(one)
    assert static.open(30).cache is static._cache


def test_a_tree_beyond_the_largest_size_is_dynamic():
    model = make_target("llama")
    static, dynamic = StaticTarget(model), Target(model, exact=False, owned=True)
    tree = tree_of([-1, *range(ROWS[-1])])
    logits = []
    for target in (static, dynamic):
        target.reset(128)
        target.prefill(torch.tensor(PROMPT))
        logits.append(target.verify(tree).logits)
    assert not static._recorded
    torch.testing.assert_close(*logits)


def test_several_requests_are_written_as_alone():
    from tests.engine.test_speculator import make_tokenizer

    model, drafter = make_target("llama"), make_drafter()
    target = StaticTarget(model, drafter.feature_layers)
    speculator = Speculator(target, make_tokenizer(), drafter, FixedBudget(8, 2))
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    alone = [speculator.generate(p, max_new_tokens=12).token_ids for p in prompts]
    together = speculator.generate(prompts, max_new_tokens=12)
    assert [one.token_ids for one in together] == alone


def test_a_recording_that_fails_is_said_once_and_run_eagerly(monkeypatch, caplog):
    static = StaticTarget(make_target("llama"))
    static.recorder.captures = True  # as on a GPU; there is none, so recording raises

    def no_stream(device):
        raise RuntimeError("no CUDA here")

    monkeypatch.setattr(torch.cuda, "Stream", no_stream)
    with caplog.at_level(logging.WARNING, "specblock"):
        first, again = written(static, None), written(static, None)
    assert first == again == written(Target(make_target("llama"), exact=False), None)
    said = [record.message for record in caplog.records if "CUDA graphs" in record.message]
    assert said == ["Rounds are not captured as CUDA graphs, but run eagerly: no CUDA here"]


def test_models_whose_shapes_depend_on_the_text_are_refused():
    with pytest.raises(ConfigError, match="decode it with Target"):
        StaticTarget(make_target("mistral-sliding"))
