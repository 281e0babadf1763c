"""A text's tokens do not depend on how its prompt was read, in half precision to the bit."""

import pytest
import torch

from specblock.config import GenerationConfig
from specblock.engine.loading import assemble
from specblock.kernels.invariant import invariant_attention
from specblock.target import masks
from specblock.target.model import Target
from tests.tiny import make_target

FAMILIES = ("llama", "qwen3", "gemma3")


def target_of(family: str) -> Target:
    model = make_target(family, max_position_embeddings=512).to(torch.bfloat16)
    found = assemble(model, None, None, calibrate="never", owned=True).target
    if not found.exact:
        pytest.skip("this processor's kernels are not exact")
    return found


def ids_of(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 97, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [5, 11, 40, 129, 300])
def test_logits_and_features_of_any_pieces_are_the_same(family, length):
    target, ids = target_of(family), ids_of(length)
    target.reset(length)
    whole = target.prefill(ids)
    for sizes in ((1, 3), (7, 100), (128, 20), (length - 1, 1)):
        target.reset(length)
        first = target.prefill(ids[: sizes[0]])
        parts, at = [first], sizes[0]
        while at < length:
            step = sizes[len(parts) % 2]
            parts.append(target.prefill(ids[at : at + step]))
            at += step
        assert parts[-1].logits.equal(whole.logits), sizes
        assert torch.cat([part.features for part in parts]).equal(whole.features)


@pytest.mark.parametrize("family", FAMILIES)
def test_long_prompts_beside_others_are_answered_as_alone(family):
    from specblock.training.data.regenerate import RegenerateConfig, answers
    from specblock.training.data.turns import Turn

    model = make_target(family, max_position_embeddings=512).to(torch.bfloat16)
    lengths = (3, 140, 20, 260, 9, 200, 35)
    turns = [Turn(f"t{n}", 0, [], ids_of(length, n).tolist()) for n, length in enumerate(lengths)]
    found = []
    for together in (1, 4):
        config = RegenerateConfig(max_new_tokens=10, batch_size=together)
        ended = answers(model, iter(turns), frozenset(), config)
        found.append({one.turn.id: one.answer for some in ended for one in some})
    assert found[0] == found[1]


def test_a_full_window_is_still_exact(monkeypatch):
    """With as many keys as the window holds, no row falls to another attention."""
    from specblock.kernels import invariant

    target = target_of("gemma3")
    left = []
    whole = invariant.grouped_sdpa
    monkeypatch.setattr(
        invariant, "grouped_sdpa", lambda *given, **more: left.append(1) or whole(*given, **more)
    )
    target.reset(2 * target.window + 4)
    target.prefill(ids_of(target.window - 3))
    from specblock.tree.draft_tree import DraftTree

    for token in range(5, 13):
        target.verify(DraftTree.root_only(token))
        target.commit(torch.zeros(1, dtype=torch.int64))
    assert not left


def test_generate_of_a_list_is_generate_of_each():
    from tests.engine.test_speculator import make_tokenizer

    model = make_target("llama", max_position_embeddings=512).to(torch.bfloat16)
    speculator = assemble(model, make_tokenizer(), "lookup", calibrate="never", owned=True)
    prompts = [ids_of(length, length).tolist() for length in (4, 150, 12, 270)]
    config = GenerationConfig(max_new_tokens=12, temperature=0.8, ignore_eos=True)
    together = speculator.generate(prompts, config)
    alone = [speculator.generate(one, config) for one in prompts]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]


@pytest.mark.parametrize("dim", [16, 24, 64, 96, 128])
def test_a_row_of_few_keys_is_what_it_is_among_many(dim):
    generator = torch.Generator().manual_seed(dim)
    query = torch.randn(1, 4, 40, dim, generator=generator)
    keys, values = torch.randn(2, 1, 2, 40, dim, generator=generator)
    mask = masks.additive(masks.chain_mask(40, 0, query.device), torch.float32)[None, None]
    among, _ = invariant_attention(None, query, keys, values, mask)
    for row in range(40):
        seen = keys[:, :, : row + 1], values[:, :, : row + 1]
        alone, _ = invariant_attention(None, query[:, :, row : row + 1], *seen, None)
        assert alone[0, 0].equal(among[0, row]), row
