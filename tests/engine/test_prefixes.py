"""Texts that begin like ended ones: what is known is not read again, and no answer changes."""

import pytest
import torch

from tests.engine.test_engine import LENGTH, make, prompts
from tests.tiny import ARCHITECTURES, VOCABULARY

KEPT = ["network", "lookup"]


def read(speculator):
    """Rows of prompts that the target computes, piece by piece."""
    rows, prompt_piece = [], speculator.target.prompt_piece

    def counted(text, ids, prompt):
        rows.append(len(ids))
        return prompt_piece(text, ids, prompt)

    speculator.target.prompt_piece = counted
    return rows


def owned(*args, **settings):
    speculator = make(*args, **settings)
    speculator.target.owned = True
    return speculator


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_answer_is_the_same_behind_a_beginning_that_is_known(name, kind):
    long = prompts(1, seed=3, longest=40)[0] * 2
    asked = [long, long[:30], [*long[:20], 5, 6, 7], long]
    speculator = owned(name, kind)
    found = [speculator.generate(prompt, **LENGTH) for prompt in asked]
    expected = [owned(name, kind).generate(prompt, **LENGTH) for prompt in asked]
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    # the drafter is shown the same, and drafts the same
    assert found[-1].stats.rounds == expected[-1].stats.rounds
    assert [one.stats.cached_tokens for one in found] == [0, 29, 20, len(long) - 1]
    assert speculator.target.texts.hits == 3
    assert speculator.target.texts.tokens_saved == 29 + 20 + len(long) - 1


def test_a_chats_second_turn_reads_its_new_tokens_only():
    speculator, first = owned("llama", "network"), prompts(1, longest=40)[0]
    rows = read(speculator)
    answer = speculator.generate(first, **LENGTH).token_ids
    assert sum(rows) == len(first)
    rows.clear()
    second = [*first, *answer, 11, 12, 13]
    found = speculator.generate(second, **LENGTH)
    assert sum(rows) == 4  # and the last token of the answer, which was never read
    assert found.token_ids == owned("llama", "network").generate(second, **LENGTH).token_ids


def test_half_precision_keeps_its_bits():
    long = prompts(1, longest=40)[0]
    speculator = owned("llama", "network", dtype=torch.bfloat16)
    assert speculator.target.exact
    speculator.generate(long, **LENGTH)
    again = speculator.generate([*long[:15], 9, 8], **LENGTH)
    alone = owned("llama", "network", dtype=torch.bfloat16).generate([*long[:15], 9, 8], **LENGTH)
    assert again.token_ids == alone.token_ids
    assert again.stats.cached_tokens == 15


def test_several_texts_may_begin_with_the_same_one_at_once():
    speculator, system = owned("gemma3", "network"), prompts(1, longest=40)[0]
    speculator.generate(system, **LENGTH)
    asked = [[*system[:-1], number, 3, 4] for number in range(5, 9)]
    found = speculator.generate(asked, **LENGTH)
    assert [one.stats.cached_tokens for one in found] == [len(system) - 1] * 4
    alone = [owned("gemma3", "network").generate(one, **LENGTH).token_ids for one in asked]
    assert [one.token_ids for one in found] == alone


def test_what_was_used_longest_ago_goes_first():
    speculator, asked = owned("llama", "lookup"), prompts(4, longest=20)
    speculator.generate(asked[0], **LENGTH)
    texts = speculator.target.texts
    one = texts._held
    texts.most_bytes = int(2.8 * one * texts._position_bytes)
    for prompt in (asked[1], asked[0], asked[2]):
        speculator.generate(prompt, **LENGTH)
    assert speculator.generate(asked[1], **LENGTH).stats.cached_tokens == 0
    assert texts._held <= texts.most_positions


def test_changed_weights_and_borrowed_models_begin_anew():
    speculator, prompt = owned("llama", "network"), prompts(1)[0]
    speculator.generate(prompt, **LENGTH)
    with torch.no_grad():
        next(speculator.target.model.parameters()).mul_(1.5)
    assert speculator.generate(prompt, **LENGTH).stats.cached_tokens == 0
    borrowed = make("llama", "network")
    borrowed.generate(prompt, **LENGTH)
    assert borrowed.generate(prompt, **LENGTH).stats.cached_tokens == 0


def test_memory_is_flat_over_many_texts():
    speculator = owned("llama", "network", num_hidden_layers=5)
    speculator.generate([1, 2, 3], max_new_tokens=2)
    texts, held = speculator.target.texts, []
    texts.most_bytes = 600 * texts._position_bytes
    source = torch.Generator().manual_seed(0)
    for _ in range(60):
        size = int(torch.randint(3, 60, (), generator=source))
        prompt = torch.randint(3, VOCABULARY, (size,), generator=source).tolist()
        speculator.generate(prompt, max_new_tokens=2, ignore_eos=True)
        held.append((texts._held, len(texts._ended)))
    assert max(size for size, _ in held) <= 600
    assert max(count for _, count in held) <= 6
