"""Exported EAGLE-3 drafters and SpecBlock's own folders in vLLM, beside a tiny Qwen3."""

import pytest
import torch
from tests.engines.tiny_world import unseen
from tests.engines.vllm_runs import run_vllm

from specblock.drafters.base import FixedBudget
from specblock.engine.loading import load_drafter
from specblock.engine.speculator import Speculator
from specblock.integrations.export.eagle3 import export_eagle3
from specblock.target.loading.zoo import load_model
from specblock.target.model import Target

NEW, TOKENS = 48, 5  # as many drafts as the speculators layout proposes by itself
GREEDY = {"temperature": 0, "max_tokens": NEW, "ignore_eos": True}
# Few outcomes, so that 800 texts fill them: two tokens of the best five each.
SAMPLED = {"temperature": 1.0, "top_k": 5, "max_tokens": 6, "ignore_eos": True, "n": 800}
ASKS = [{"prompts": unseen(12), "sampling": GREEDY}, {"prompts": unseen(1), "sampling": SAMPLED}]


@pytest.fixture(scope="module")
def plain(world):
    return run_vllm(world.home, "plain", engine={"model": str(world.target)}, asks=ASKS[:1])


@pytest.fixture(scope="module", params=["eagle3", "speculators", "specblock"])
def drafted(request, world):
    """The kind, and vLLM's answers with its drafter."""
    kind, out = request.param, world.home / f"{request.param}-exported"
    if kind != "specblock":
        export_eagle3(world.eagle3, out, layout=kind, dtype="float32")
    given = {"method": "eagle3", "model": str(out), "num_speculative_tokens": TOKENS}
    engine = {"model": str(world.target), "speculative_config": given}
    if kind == "speculators":  # the folder alone: it names its target
        engine = {"model": str(out)}
    if kind == "specblock":
        given["model"] = str(world.specblock)
    return kind, run_vllm(world.home, kind, engine=engine, asks=ASKS)


def test_greedy_output_is_plain_output(plain, drafted):
    _, found = drafted
    assert found["outputs"][0] == plain["outputs"][0]
    assert found["counts"]["spec_decode_num_accepted_tokens"] > 0


def test_sampled_tokens_follow_the_targets_distribution(world, drafted):
    """Chi-square of the second and third token, which drafts had a part in."""
    from scipy.stats import chisquare

    kind, found = drafted
    (prompt,) = unseen(1)
    model, counts = world.model, {}
    for text in found["outputs"][1]:
        counts[tuple(text[:3])] = counts.get(tuple(text[:3]), 0) + 1
    expected = {(): 1.0}
    for _ in range(3):
        grown = {}
        for path, mass in expected.items():
            with torch.no_grad():
                logits = model(torch.tensor([prompt + list(path)])).logits[0, -1]
            best = logits.topk(5)
            for token, share in zip(best.indices, best.values.softmax(-1), strict=True):
                grown[(*path, int(token))] = mass * float(share)
        expected = grown
    total = sum(counts.values())
    assert set(counts) <= set(expected), kind  # nothing outside of the five best
    common = [path for path, mass in expected.items() if mass * total >= 5]
    rest = total - sum(counts.get(path, 0) for path in common)
    seen = [counts.get(path, 0) for path in common] + [rest]
    wanted = [expected[path] * total for path in common]
    wanted.append(total - sum(wanted))
    assert len(common) >= 8
    assert chisquare(seen, wanted).pvalue > 1e-4, (kind, seen, wanted)


def test_the_accepted_length_is_our_chains(world, drafted):
    kind, found = drafted
    if kind == "specblock":
        pytest.skip("SpecBlock's drafts are compared one by one in test_vllm_specblock.py")
    own = our_chain(world.target, world.eagle3, unseen(12), TOKENS, NEW)
    # of the greedy texts alone: sampled ones are counted together with them
    accepted = found["greedy_accepted_length"]
    assert abs(accepted / own - 1) < 0.03, (accepted, own)


def our_chain(target, folder, prompts, tokens, new):
    """Accepted length with ``tokens`` drafts a round, the whole prompt read as vLLM reads it."""
    network, tokenizer = load_model(target)
    drafter = load_drafter(folder, network, tokenizer, depth=tokens - 1, top_k=1)
    drafter.prompt_pairs = 10**6
    budget = FixedBudget(tokens, tokens)
    speculator = Speculator(Target(network, drafter.feature_layers), tokenizer, drafter, budget)
    rounds = taken = 0
    for ids in prompts:
        stats = speculator.generate(ids, max_new_tokens=new, ignore_eos=True).stats
        rounds, taken = rounds + stats.rounds, taken + stats.round_tokens
    return taken / rounds
