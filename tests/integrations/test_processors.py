"""Every logits processor of transformers, and anybody's own, through the doorway."""

import copy
import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    SynthIDTextWatermarkingConfig,
    TemperatureLogitsWarper,
    WatermarkingConfig,
)

from specblock.errors import ConfigError, ModelError
from tests.integrations.doorway_case import Doorway
from tests.tiny import VOCABULARY

PROMPT = torch.tensor([[7, 8, 9, 12, 19, 52, 31]])
END = 2

# Each changes the greedy text of the tiny model (the last test of this file says so).
GREEDY = {
    "bad words": {"bad_words_ids": [[27], [21, 21], [40]]},
    "n-grams": {"no_repeat_ngram_size": 1},
    "n-grams of the prompt": {"encoder_no_repeat_ngram_size": 1},
    "repetition": {"repetition_penalty": 1.7},
    "repetition of the prompt": {"encoder_repetition_penalty": 3.0},
    "suppressed": {"suppress_tokens": list(range(10, 60))},
    "suppressed at the beginning": {"begin_suppress_tokens": list(range(10, 60))},
    "bias": {"sequence_bias": [[[11], 9.0], [[12, 13], 20.0]]},
    "forced end": {"forced_eos_token_id": END},
    "longer": {"exponential_decay_length_penalty": (3, 1.6)},
    "watermark": {"watermarking_config": WatermarkingConfig(bias=6.0)},
    "only some": {"prefix_allowed_tokens_fn": lambda batch, ids: [4, 5, 6, int(ids[-1]) + 1]},
}
# Change nothing of this text, or only what else happens.
QUIET = {
    "normalised": {"renormalize_logits": True},
    "invalid values": {"remove_invalid_values": True},
    "shortest": {"min_new_tokens": 12},
    "shortest with prompt": {"min_length": 18},
    "forced beginning": {"forced_bos_token_id": 40},
}
SAMPLED = {
    **GREEDY,
    **QUIET,
    "typical": {"typical_p": 0.6},
    "epsilon": {"epsilon_cutoff": 0.02},
    "eta": {"eta_cutoff": 0.05},
    "top-h": {"top_h": 0.5},
    "SynthID": {
        "watermarking_config": SynthIDTextWatermarkingConfig(ngram_len=3, keys=[11, 23, 5])
    },
    "filters": {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05},
    "everything": {
        "temperature": 1.4,
        "top_p": 0.95,
        "typical_p": 0.9,
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 2,
        "renormalize_logits": True,
    },
}


@pytest.fixture
def doorway(monkeypatch):
    return Doorway(monkeypatch)


def settings(**more):
    return {"max_new_tokens": 24, "eos_token_id": END, **more}


@pytest.mark.parametrize("name", [*GREEDY, *QUIET])
def test_greedy_text_is_generates(doorway, name):
    arguments = settings(do_sample=False, **{**GREEDY, **QUIET}[name])
    expected = doorway.plain(PROMPT, **arguments)
    assert doorway(PROMPT, known=expected, **arguments).tolist() == expected.tolist()
    assert doorway(PROMPT, **arguments).tolist() == expected.tolist()


def follow(monkeypatch, tokens):
    """Let generate sample these tokens, one list a step."""
    remaining = iter(tokens)
    monkeypatch.setattr(
        torch, "multinomial", lambda probs, num_samples: torch.tensor(next(remaining))[:, None]
    )


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_text_is_plain_decodings_from_generates_distribution(doorway, monkeypatch, name):
    arguments = settings(do_sample=True, **{"top_k": 0, **SAMPLED[name]})
    ours = doorway(PROMPT, seed=3, **arguments)
    kept = doorway(
        PROMPT, known=ours, seed=3, return_dict_in_generate=True, output_scores=True, **arguments
    )
    assert kept.sequences.tolist() == ours.tolist()
    assert doorway(PROMPT, known=ours, seed=3, **arguments).tolist() == ours.tolist()
    follow(monkeypatch, ours[0, PROMPT.shape[1] :, None].tolist())
    theirs = doorway.plain(PROMPT, return_dict_in_generate=True, output_scores=True, **arguments)
    assert theirs.sequences.tolist() == ours.tolist()
    assert len(kept.scores) == len(theirs.scores)
    for mine, its in zip(kept.scores, theirs.scores, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-4)


class Spelling(LogitsProcessor):
    """A processor with a state: lets the text be only its own letters, each once, in turn."""

    def __init__(self, letters):
        self.letters, self.seen, self.start = letters, [], None

    def __call__(self, ids, scores):
        self.start = ids.shape[1] if self.start is None else self.start
        assert ids.shape[1] == self.start + len(self.seen), "called twice, or not in order"
        if len(self.seen):
            assert int(ids[0, -1]) in self.letters[len(self.seen) - 1]
        allowed = self.letters[len(self.seen) % len(self.letters)]
        self.seen.append(allowed)
        scores[:, [token for token in range(VOCABULARY) if token not in allowed]] = -torch.inf
        return scores


@pytest.mark.parametrize("sampled", [False, True])
def test_a_state_sees_every_token_once_in_order_and_nothing_after_the_end(doorway, sampled):
    letters = [{10 + n, 40 + n, 60 + n} for n in range(30)]
    letters[17] = {END}
    arguments = settings(do_sample=sampled)
    if sampled:
        arguments |= {"seed": 5, "temperature": 2.0}
    plain, drafted = Spelling(letters), Spelling(letters)
    expected = doorway(PROMPT, logits_processor=[plain], **arguments)
    if not sampled:
        own = doorway.plain(PROMPT, logits_processor=[Spelling(letters)], **arguments)
        assert expected.tolist() == own.tolist()
    ours = doorway(PROMPT, known=expected, logits_processor=[drafted], **arguments)
    assert ours.tolist() == expected.tolist()
    assert ours[0, -1] == END
    assert len(plain.seen) == len(drafted.seen) == 18
    assert doorway.speculator.drafter.pairs, "the drafter was asked"


def test_a_processor_may_have_the_type_of_a_filter_and_other_settings(doorway):
    """What it is asked by is the object, not what the configuration says."""
    arguments = settings(do_sample=True, seed=1, top_k=0, temperature=1.0)
    mild = doorway(PROMPT, **arguments)
    own = [TemperatureLogitsWarper(0.001)]
    sharp = doorway(PROMPT, logits_processor=LogitsProcessorList(own), **arguments)
    greedy = doorway(PROMPT, **settings(do_sample=False))
    assert sharp.tolist() == greedy.tolist() != mild.tolist()


def test_filters_of_our_own_are_those_of_transformers(doorway):
    """Called as they are (the scores are asked for) or replaced: the same text."""
    for seed in range(6):
        arguments = settings(do_sample=True, seed=seed, temperature=1.3, top_k=30, top_p=0.9)
        fast = doorway(PROMPT, min_p=0.01, **arguments)
        slow = doorway(
            PROMPT, min_p=0.01, return_dict_in_generate=True, output_scores=True, **arguments
        )
        assert slow.sequences.tolist() == fast.tolist()


BATCH = torch.tensor([[0, 0, 5, 6, 7, 8], [5, 6, 7, 8, 9, 10], [0, 3, 4, 5, 6, 7]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])


@pytest.mark.parametrize("name", [*GREEDY, *QUIET])
def test_a_batch_is_generates(doorway, name):
    arguments = settings(do_sample=False, attention_mask=MASK, **{**GREEDY, **QUIET}[name])
    expected = doorway.plain(BATCH, **arguments)
    assert doorway(BATCH, known=expected, **arguments).tolist() == expected.tolist()


class OwnWords(LogitsProcessor):
    """Allows each row of the batch other words, and keeps count."""

    def __init__(self):
        self.calls = 0

    def __call__(self, ids, scores):
        self.calls += 1
        for row in range(len(scores)):
            scores[row, : 20 + 20 * row + self.calls % 7] = -torch.inf
        return scores


def test_in_a_batch_a_state_is_every_rows_own(doorway):
    arguments = settings(do_sample=False, attention_mask=MASK)
    expected = doorway.plain(BATCH, logits_processor=[OwnWords()], **arguments)
    ours = doorway(BATCH, known=expected, logits_processor=[OwnWords()], **arguments)
    assert ours.tolist() == expected.tolist()


def test_a_state_that_cannot_be_copied_is_refused_in_a_batch_alone(doorway):
    class Stubborn(OwnWords):
        def __init__(self):
            super().__init__()
            self.generator = (number for number in range(9))

    arguments = settings(do_sample=False)
    with pytest.raises(ConfigError, match="Stubborn cannot be copied for each row"):
        doorway(BATCH, attention_mask=MASK, logits_processor=[Stubborn()], **arguments)
    assert doorway(PROMPT, logits_processor=[Stubborn()], **arguments).shape[1] > 7


def test_nothing_possible_is_a_sentence(doorway):
    for sampled in (False, True):
        with pytest.raises(ModelError, match="no possible token"):
            doorway(
                PROMPT,
                logits_processor=[lambda ids, scores: scores * torch.nan],
                **settings(do_sample=sampled),
            )


def letters_tokenizer():
    """Every token is a printable ASCII character; 0 to 2 are special."""
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2}
    words |= {chr(code): 3 + code - 33 for code in range(33, 127)}
    inner = Tokenizer(models.BPE(words, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{2,8}$"},
        "age": {"type": "integer", "minimum": 10, "maximum": 99},
        "likes": {"type": "array", "items": {"enum": ["tea", "trees"]}, "maxItems": 2},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}


class JsonGrammar(LogitsProcessor):
    """Lets nothing but JSON of a schema be written."""

    def __init__(self, tokenizer, schema):
        import llguidance.hf

        # no blanks: the tokenizer has none
        grammar = llguidance.LLMatcher.grammar_from_json_schema(
            schema, overrides={"whitespace_flexible": False}
        )
        self.matcher = llguidance.LLMatcher(llguidance.hf.from_tokenizer(tokenizer), grammar)
        assert not self.matcher.is_error(), self.matcher.get_error()
        self.length = None

    def __call__(self, ids, scores):
        from llguidance import numpy as masks  # its torch module compiles

        if self.length is not None:
            assert ids.shape[1] == self.length + 1
            assert self.matcher.consume_token(int(ids[0, -1])), self.matcher.get_error()
        self.length = ids.shape[1]
        mask = masks.allocate_token_bitmask(1, scores.shape[-1])
        masks.fill_next_token_bitmask(self.matcher, mask)
        scores = scores.clone()
        masks.apply_token_bitmask_inplace(scores.numpy(), mask)
        return scores


@pytest.mark.parametrize("sampled", [False, True])
def test_a_json_grammar(doorway, sampled):
    tokenizer = letters_tokenizer()
    arguments = settings(do_sample=sampled, max_new_tokens=90)
    if sampled:
        arguments |= {"seed": 2, "temperature": 1.5, "top_k": 0}
    expected = doorway(PROMPT, logits_processor=[JsonGrammar(tokenizer, SCHEMA)], **arguments)
    if not sampled:
        own = doorway.plain(PROMPT, logits_processor=[JsonGrammar(tokenizer, SCHEMA)], **arguments)
        assert own.tolist() == expected.tolist()
    ours = doorway(
        PROMPT, known=expected, logits_processor=[JsonGrammar(tokenizer, SCHEMA)], **arguments
    )
    assert ours.tolist() == expected.tolist()
    person = json.loads(tokenizer.decode(ours[0, 7:], skip_special_tokens=True))
    assert set(person) == {"name", "age", "likes"}
    assert 10 <= person["age"] <= 99


def test_the_cases_above_change_something(doorway):
    free = doorway.plain(PROMPT, **settings(do_sample=False)).tolist()
    for name, arguments in GREEDY.items():
        changed = doorway.plain(PROMPT, **settings(do_sample=False, **copy.deepcopy(arguments)))
        assert changed.tolist() != free, name
