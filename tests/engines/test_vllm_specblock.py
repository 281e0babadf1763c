"""SpecBlock inside vLLM: its drafts are our own engine's, its output is vLLM's without it."""

from importlib import resources

import pytest
import torch
from tests.engines.vllm_runs import embedded, own_prompts, run_vllm

from specblock.budget.survival_file import load_survival
from specblock.integrations.vllm.texts import chain, drafter_for_chains
from specblock.target.loading.zoo import load_model

NEW, MOST = 40, 8
TIGHT = {
    # prompts come in chunks of 48 tokens, eight texts at a time, in so little room that texts are
    # put back in the middle; asked again, their beginnings are taken from the cache
    "max_num_batched_tokens": 48,
    "max_num_seqs": 8,
    "enable_prefix_caching": True,
    "num_gpu_blocks_override": 26,
}
GREEDY = {"temperature": 0, "max_tokens": NEW, "ignore_eos": True}


@pytest.fixture(scope="module")
def shipped():
    return resources.files("specblock") / "weights" / "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shipped):
    """With SpecBlock and without, the same prompts twice over; what was drafted; the prompts."""
    home = tmp_path_factory.mktemp("vllm")
    prompts = own_prompts(8, least=40)
    speculative = {"method": "eagle3", "model": str(shipped), "num_speculative_tokens": MOST}
    asks = [{"prompts": prompts, "sampling": GREEDY}] * 2
    engine = {"model": str(embedded())}
    plain = run_vllm(home, "plain", engine=engine, asks=asks[:1])
    record = home / "drafts.pt"
    with_drafts = run_vllm(
        home,
        "specblock",
        engine={**engine, **TIGHT, "speculative_config": speculative},
        asks=asks,
        record=str(record),
    )
    return plain, with_drafts, torch.load(record), prompts


def test_the_output_is_vllms_own(runs):
    plain, with_drafts, _, _ = runs
    assert with_drafts["outputs"] == plain["outputs"] * 2


def test_the_run_had_what_it_was_made_for(runs):
    """Chunks, hits in the prefix cache, texts put back, rejections and paths that end early."""
    _, found, seen, prompts = runs
    counts = found["counts"]
    assert any(not one["wanted"] for one in seen)
    assert counts["prefix_cache_hits"] > 0
    assert counts["num_preemptions"] > 0
    assert 0 < counts["spec_decode_num_accepted_tokens"] < counts["spec_decode_num_draft_tokens"]
    assert 0 < min(len(one["drafts"]) for one in seen if one["wanted"]) < MOST
    assert max(len(one["tokens"]) for one in seen) < max(map(len, prompts))


@torch.inference_mode()
def test_drafts_features_and_entries_are_our_own_engines(runs, shipped):
    from specblock.engine.loading import load_drafter
    from specblock.target.architecture.tap import FeatureTap

    _, found, seen, prompts = runs
    target, tokenizer = load_model("smollm2-135m-instruct")
    drafter = drafter_for_chains(load_drafter(shipped, target, tokenizer).model)
    survival = load_survival(shipped)
    texts = {
        request: prompt + output
        for requests, outputs in zip(found["requests"], found["outputs"], strict=True)
        for request, prompt, output in zip(requests, prompts, outputs, strict=True)
    }
    checked = different = 0
    for request, ids in texts.items():
        own = [one for one in seen if one["request"].split("-")[0] == request]
        tap = FeatureTap(target, drafter.feature_layers)
        with tap:
            target(input_ids=torch.tensor([ids]), use_cache=False)
        features, tokens = tap.take()[0], torch.tensor(ids[1:])
        drafter.reset(len(tokens))
        drafter.observe(features[:-1], tokens)
        drafter.propose(0, _Nothing())
        entries = drafter.committed(0)
        for one in own:
            start, stop = one["start"], one["start"] + len(one["tokens"])
            if stop > len(tokens):
                continue  # the last token comes from beyond what was asked for
            assert one["tokens"] == tokens[start:stop].tolist()
            _close(one["features"], features[start:stop])
            _close(one["entries"], entries[..., start:stop, :])
            if one["wanted"]:
                expected = chain(drafter.another(), survival, features[:stop], tokens[:stop], MOST)
                checked += 1
                different += one["drafts"] != expected
    assert checked > 200
    assert different == 0


class _Nothing:
    """A budget that wants no block behind the first and no node."""

    from specblock.budget.survival import SurvivalModel

    model = SurvivalModel.fresh()

    def leaves(self, *_):
        return 0

    def nodes(self, *_):
        return 0


def _close(found, wanted):
    """To 1e-5 of what these numbers are as a whole: the two compute in another order."""
    error = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1).clamp(min=1e-3)
    assert float(error.max()) < 1e-5, float(error.max())
