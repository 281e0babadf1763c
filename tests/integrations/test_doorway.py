"""Every argument of ``generate`` through the doorway: honoured, or refused by its name."""

import functools
import time
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation import EosTokenCriteria, MaxLengthCriteria

from specblock import custom_generate
from specblock.errors import ConfigError, ContextError
from specblock.integrations.transformers import settings as classified
from tests.integrations.doorway_case import Doorway
from tests.integrations.test_processors import (
    BATCH,
    END,
    MASK,
    PROMPT,
    letters_tokenizer,
    settings,
)

GREEDY = settings(do_sample=False)


@pytest.fixture
def doorway(monkeypatch):
    return Doorway(monkeypatch)


# Settings


def test_every_setting_of_transformers_is_classified_once():
    known = {name for name in vars(GenerationConfig()) if name != "_original_object_hash"}
    kinds = [classified.HONOURED, classified.WITHOUT_EFFECT, set(classified.REFUSED)]
    named = [name for kind in kinds for name in kind]
    assert len(named) == len(set(named))
    assert known <= set(named), f"say what the doorway makes of {known - set(named)}"


ODD = {
    "assistant_early_exit": 2,
    "cache_implementation": "quantized",
    "constraints": [1],
    "diversity_penalty": 0.5,
    "dola_layers": "high",
    "force_words_ids": [[3]],
    "guidance_scale": 1.5,
    "is_assistant": True,
    "num_beam_groups": 2,
    "num_beams": 2,
    "output_attentions": True,
    "output_hidden_states": True,
    "penalty_alpha": 0.6,
    "prompt_lookup_num_tokens": 3,
    "speculation_type": "dflash",
    "token_healing": True,
    "use_mtp": True,
}


@pytest.mark.parametrize("name", classified.REFUSED)
def test_what_is_refused_is_refused_by_name(name):
    config = SimpleNamespace(**{name: ODD[name]})
    with pytest.raises(ConfigError, match=name):
        classified.refuse_settings(config, LogitsProcessorList())
    for harmless in (None, *classified.REFUSED[name]):
        classified.refuse_settings(SimpleNamespace(**{name: harmless}), LogitsProcessorList())


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_beams": 2},
        {"guidance_scale": 1.5},
        {"output_attentions": True, "return_dict_in_generate": True},
        {"output_hidden_states": True, "return_dict_in_generate": True},
        {"prompt_lookup_num_tokens": 3},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"dola_layers": "high"},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_generate_hands_refused_settings_on_to_us(doorway, arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        doorway(PROMPT, **GREEDY, **arguments)


HARMLESS = {
    "use_cache": False,
    "disable_compile": True,
    "prefill_chunk_size": 3,
    "cache_implementation": "static",
    "length_penalty": 2.0,
    "logits_to_keep": 1,
}


def test_what_has_no_effect_has_none(doorway):
    expected = doorway.plain(PROMPT, **GREEDY).tolist()
    assert doorway(PROMPT, **GREEDY, **HARMLESS).tolist() == expected


def test_the_models_own_generation_config_is_honoured(doorway):
    for model in (doorway.model, doorway.target.model):
        model.generation_config.suppress_tokens = [27, 21]
        model.generation_config.repetition_penalty = 1.3
        model.generation_config.eos_token_id = [END, 19]
    arguments = {"max_new_tokens": 20, "do_sample": False}
    expected = doorway.plain(PROMPT, **arguments)
    assert doorway(PROMPT, known=expected, **arguments).tolist() == expected.tolist()


# Inputs


def test_inputs_that_are_not_passed_on_are_refused_by_name(doorway):
    embeds = doorway.target.model.get_input_embeddings()(PROMPT)
    with pytest.raises(ConfigError, match="inputs_embeds"):
        doorway(None, inputs_embeds=embeds, **GREEDY)
    with pytest.raises(ConfigError, match="position_ids"):
        doorway(PROMPT, position_ids=torch.arange(3, 10)[None], **GREEDY)
    with pytest.raises(ConfigError, match="past_key_values"):
        doorway(PROMPT, past_key_values=DynamicCache(), **GREEDY)
    with pytest.raises(ConfigError, match="assistant_model"):
        doorway(PROMPT, assistant_model=doorway.model, **GREEDY)
    with pytest.raises(ConfigError, match="synced_gpus"):
        doorway(PROMPT, synced_gpus=True, **GREEDY)
    with pytest.raises(ConfigError, match="pad on the left"):
        doorway(BATCH, attention_mask=MASK.flip(1), **GREEDY)
    with pytest.raises(ContextError, match="empty"):
        doorway(PROMPT[:, :0], attention_mask=torch.ones(1, 0), **GREEDY)


def test_usual_positions_may_be_given(doorway):
    expected = doorway.plain(PROMPT, **GREEDY).tolist()
    assert doorway(PROMPT, position_ids=torch.arange(7)[None], **GREEDY).tolist() == expected
    positions = (MASK.cumsum(1) - 1).clamp(min=0)
    batch = doorway.plain(BATCH, attention_mask=MASK, **GREEDY).tolist()
    ours = doorway(BATCH, attention_mask=MASK, position_ids=positions, **GREEDY)
    assert ours.tolist() == batch


def test_tokens_that_the_mask_hides_inside_a_prompt_are_not_seen(doorway):
    mask = torch.tensor([[1, 1, 0, 1, 1, 0, 1]])
    expected = doorway.plain(PROMPT, attention_mask=mask, **GREEDY)
    assert doorway(PROMPT, attention_mask=mask, **GREEDY).tolist() == expected.tolist()


# Ends


@pytest.mark.parametrize("pad", [None, 3])
def test_a_batch_is_padded_as_generate_pads(monkeypatch, pad):
    doorway = Doorway(monkeypatch, pad_token_id=pad)
    arguments = {"max_new_tokens": 24, "do_sample": False, "attention_mask": MASK}
    free = doorway.plain(BATCH, **arguments, eos_token_id=96)
    # tokens that end the rows at different places
    ends = [int(free[0, 10]), int(free[1, 14])]
    expected = doorway.plain(BATCH, **arguments, eos_token_id=ends)
    assert (expected[:, -1] == (ends[0] if pad is None else pad)).any(), "something is padded"
    ours = doorway(BATCH, known=expected, **arguments, eos_token_id=ends)
    assert ours.tolist() == expected.tolist()


def test_the_callers_own_end_and_length_come_before_the_configs(doorway):
    free = doorway.plain(PROMPT, **GREEDY)
    own = StoppingCriteriaList([EosTokenCriteria([int(free[0, 12])]), MaxLengthCriteria(20)])
    expected = doorway.plain(PROMPT, stopping_criteria=own, **GREEDY)
    assert expected.shape[1] < free.shape[1]
    assert (
        doorway(PROMPT, known=free, stopping_criteria=own, **GREEDY).tolist() == expected.tolist()
    )


class ScoresBelow(StoppingCriteria):
    """Ends where the best score of a step is below a limit; counts how often it was asked."""

    def __init__(self, limit):
        self.limit, self.asked = limit, 0

    def __call__(self, ids, scores, **kwargs):
        self.asked += 1
        assert len(scores) == self.asked
        return torch.tensor([bool(row.max() < self.limit) for row in scores[-1]])


def test_criteria_may_look_at_the_scores(doorway):
    kept = {"return_dict_in_generate": True, "output_scores": True, **GREEDY}
    heights = [float(step.max()) for step in doorway.plain(PROMPT, **kept).scores]
    limit = sorted(heights)[2] + 1e-3
    theirs, ours = ScoresBelow(limit), ScoresBelow(limit)
    expected = doorway.plain(PROMPT, stopping_criteria=[theirs], **kept).sequences
    free = doorway.plain(PROMPT, **GREEDY)
    got = doorway(PROMPT, known=free, stopping_criteria=[ours], **kept).sequences
    assert got.tolist() == expected.tolist() != free.tolist()
    assert ours.asked == theirs.asked, "once a token, and never after the end"


def test_a_time_limit_ends_the_answer(doorway):
    started = time.time()
    ours = doorway(PROMPT, max_new_tokens=200, do_sample=False, eos_token_id=None, max_time=0.05)
    assert PROMPT.shape[1] < ours.shape[1] < 207
    assert time.time() - started < 5


def test_the_end_of_the_context_is_said(doorway, caplog):
    ours = doorway(PROMPT, max_new_tokens=400, do_sample=False, eos_token_id=None)
    assert ours.shape[1] == 256
    assert "context of 256 tokens is full" in caplog.text


# Stop strings and streamers, whose arguments generate keeps to itself


def test_stop_strings_with_a_bound_tokenizer(doorway):
    tokenizer = letters_tokenizer()
    free = doorway.plain(PROMPT, **GREEDY)
    text = tokenizer.decode(free[0, 7:])
    arguments = {"stop_strings": [text[4:7], "zzz"], **GREEDY}
    expected = doorway.plain(PROMPT, tokenizer=tokenizer, **arguments)
    assert expected.shape[1] < free.shape[1]
    bound = functools.partial(custom_generate, tokenizer=tokenizer)
    ours = doorway(PROMPT, known=free, custom=bound, **arguments)
    assert ours.tolist() == expected.tolist()


def test_stop_strings_with_the_tokenizer_of_the_models_folder(doorway, tmp_path):
    tokenizer = letters_tokenizer()
    arguments = {"stop_strings": "zzz", **GREEDY}
    with pytest.raises(ConfigError, match="give tokenizer="):
        doorway(PROMPT, **arguments)
    tokenizer.save_pretrained(tmp_path)
    doorway.model.config.save_pretrained(tmp_path)
    doorway.target.model.name_or_path = str(tmp_path)
    expected = doorway.plain(PROMPT, tokenizer=tokenizer, **arguments)
    assert doorway(PROMPT, **arguments).tolist() == expected.tolist()
