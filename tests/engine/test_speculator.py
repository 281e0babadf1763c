"""The object that programs use."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from specblock.drafters.base import FixedBudget
from specblock.engine.speculator import Speculator
from specblock.errors import ConfigError, ContextError
from specblock.target.model import Target
from tests.tiny import VOCABULARY, make_drafter, make_target


def make_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{index}": index for index in range(VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="w2", unk_token="w0")
    tokenizer.chat_template = "{% for m in messages %}w3 {{ m['content'] }} w4 {% endfor %}"
    return tokenizer


@pytest.fixture(scope="module")
def speculator():
    target = Target(make_target("llama"), (0, 2, 4))
    return Speculator(target, make_tokenizer(), make_drafter(), FixedBudget(12, 4))


def test_text_messages_and_ids_are_the_same_prompt(speculator):
    ids = speculator.encode("w7 w8")
    assert ids == speculator.encode([{"role": "user", "content": "w7 w8"}]) == [3, 7, 8, 4]
    assert speculator.encode(torch.tensor(ids)) == speculator.encode(ids) == ids


def test_streaming_is_generating(speculator):
    whole = speculator.generate("w7 w8", max_new_tokens=20, ignore_eos=True)
    chunks = list(speculator.stream("w7 w8", max_new_tokens=20, ignore_eos=True))
    assert [token for chunk in chunks for token in chunk.token_ids] == whole.token_ids
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == whole.finish_reason == "length"
    assert len(whole.token_ids) == whole.stats.new_tokens == 20
    assert whole.prompt_tokens == 4


def test_drafter_or_not_makes_no_difference(speculator):
    for settings in ({}, {"temperature": 0.9, "seed": 4}):
        ours = speculator.generate("w9", max_new_tokens=30, **settings)
        plain = speculator.generate("w9", max_new_tokens=30, use_drafter=False, **settings)
        assert ours.token_ids == plain.token_ids
        assert ours.finish_reason == plain.finish_reason
        assert plain.stats.accepted_length in (0.0, 1.0)


def test_an_end_token_ends_the_answer_in_the_middle_of_a_round(speculator):
    free = speculator.generate("w7", max_new_tokens=24, ignore_eos=True).token_ids
    end = free[9]
    first = free.index(end)
    for use_drafter in (True, False):
        cut = speculator.generate(
            "w7", max_new_tokens=24, eos_token_id=(end,), use_drafter=use_drafter
        )
        assert cut.token_ids == free[: first + 1]
        assert cut.finish_reason == "stop"
        assert cut.stats.new_tokens == first + 1


def test_a_stop_string_ends_both_ways_of_decoding_at_the_same_token(speculator):
    free = speculator.generate("w7", max_new_tokens=24, ignore_eos=True)
    word = speculator.tokenizer.decode([free.token_ids[8]])
    cuts = [
        speculator.generate(
            "w7", max_new_tokens=24, ignore_eos=True, stop_strings=(word,), use_drafter=use
        )
        for use in (True, False)
    ]
    assert cuts[0].token_ids == cuts[1].token_ids
    assert cuts[0].text == cuts[1].text
    assert word not in cuts[0].text
    assert cuts[0].finish_reason == "stop"


def test_bad_prompts_are_refused_in_a_sentence(speculator):
    for prompt in ("", "  ", [], torch.tensor([])):
        with pytest.raises(ContextError, match="empty"):
            speculator.generate(prompt)
    with pytest.raises(ContextError, match="outside the model's vocabulary of 97"):
        speculator.generate([5, 97])
    with pytest.raises(ContextError, match="shorten"):
        speculator.generate([5] * 256)
    with pytest.raises(ConfigError, match="max_new_tokens"):
        speculator.generate("w7", max_new_token=3)


def test_statistics_add_up(speculator):
    stats = speculator.generate("w7", max_new_tokens=20, ignore_eos=True).stats
    assert stats.round_tokens >= 19
    assert stats.rounds >= 1
    assert stats.accepted_length == pytest.approx(stats.round_tokens / stats.rounds)
    assert sum(stats.accepted_by_depth) == stats.round_tokens - stats.rounds
    assert 0 < stats.draft_seconds + stats.verify_seconds + stats.prefill_seconds <= stats.seconds
