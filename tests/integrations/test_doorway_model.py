"""A model that went through the doorway is its program's own."""

import functools
import gc
import weakref

import pytest
import torch
from transformers import GenerationConfig

from specblock import custom_generate
from specblock.errors import ConfigError
from tests.integrations.doorway_case import Doorway
from tests.integrations.test_processors import letters_tokenizer
from tests.tiny import make_target

PROMPT = torch.tensor([[5, 6, 7, 8, 9, 5, 6]])
GREEDY = {"do_sample": False, "max_new_tokens": 24}


@pytest.fixture
def doorway(monkeypatch):
    return Doorway(monkeypatch)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def through(model, ids=PROMPT, drafter="lookup", **arguments):
    return model.generate(
        ids, custom_generate=custom_generate, drafter=drafter, **{**GREEDY, **arguments}
    )


def test_stop_strings_end_where_generate_does(doorway):
    tokenizer = letters_tokenizer()
    for model in (doorway.model, doorway.target.model):
        model.name_or_path = ""
    free = doorway.plain(PROMPT, **GREEDY, eos_token_id=None)
    text = tokenizer.decode(free[0, PROMPT.shape[1] :])
    arguments = {**GREEDY, "eos_token_id": None, "stop_strings": [text[8:11]]}
    theirs = doorway.plain(PROMPT, tokenizer=tokenizer, **arguments)
    assert theirs.shape[1] < free.shape[1]
    bound = functools.partial(custom_generate, tokenizer=tokenizer)
    assert doorway(PROMPT, known=free, custom=bound, **arguments).tolist() == theirs.tolist()
    told = doorway(PROMPT, known=free, tokenizer=tokenizer, **arguments)
    assert told.tolist() == theirs.tolist()


def test_a_model_that_is_forgotten_gives_its_memory_back():
    model = make_target("llama")
    through(model)
    gone = weakref.ref(model)
    weight = weakref.ref(model.get_decoder().layers[0].mlp.down_proj.weight)
    del model
    gc.collect()
    assert gone() is None
    assert weight() is None


def noise(model):
    generator = torch.Generator().manual_seed(0)
    for layer in model.get_decoder().layers:
        weight = layer.mlp.down_proj.weight
        weight.data += 0.5 * torch.randn(weight.shape, generator=generator)


def halve(model):
    model.bfloat16()


@pytest.mark.parametrize("change", [noise, halve])
def test_what_is_done_to_a_model_between_two_calls_is_seen(change):
    model, fresh = make_target("llama"), make_target("llama")
    for each in (model, fresh):
        each.generation_config.eos_token_id = None
    before = through(model)
    assert before.tolist() == fresh.generate(PROMPT, **GREEDY).tolist()
    change(model)
    change(fresh)
    assert model.generate(PROMPT, **GREEDY).tolist() == fresh.generate(PROMPT, **GREEDY).tolist()
    ours = through(model)
    if change is noise:
        assert ours.tolist() == fresh.generate(PROMPT, **GREEDY).tolist() != before.tolist()
    assert ours.shape == before.shape


def ids_of(*lengths):
    longest = max(lengths)
    ids = torch.zeros(len(lengths), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, longest - length :] = torch.arange(3, 3 + length)
        mask[row, longest - length :] = 1
    return ids, mask


DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
           "max_position_embeddings": 24}  # fmt: skip


def test_rows_of_several_lengths_are_refused_where_positions_depend_on_the_longest():
    model = make_target("llama", **DYNAMIC)
    ids, mask = ids_of(10, 20)
    settings = {"max_new_tokens": 16, "do_sample": False, "custom_generate": custom_generate}
    with pytest.raises(ConfigError, match="depends on the longest row of a batch"):
        model.generate(ids, attention_mask=mask, drafter="lookup", **settings)
    ids, mask = ids_of(10, 10)
    found = model.generate(ids, attention_mask=mask, drafter="lookup", **settings)
    settings.pop("custom_generate")
    assert found.tolist() == model.generate(ids, attention_mask=mask, **settings).tolist()


def test_an_embedding_that_remembers_long_texts_goes_on_remembering_them():
    def after(between):
        model = make_target("llama", **DYNAMIC)
        model.generate(ids_of(60)[0], max_new_tokens=4, do_sample=False)
        if between:
            settings = {"custom_generate": custom_generate, "drafter": "lookup"}
            model.generate(ids_of(10)[0], max_new_tokens=4, do_sample=False, **settings)
        return {name: buffer.clone() for name, buffer in model.named_buffers()}

    used, unused = after(True), after(False)
    assert used.keys() == unused.keys()
    assert all(torch.equal(used[name], unused[name]) for name in used)


def test_inputs_that_somebody_else_prepares_are_refused():
    model = make_target("llama")
    own = model.prepare_inputs_for_generation
    model.prepare_inputs_for_generation = lambda *args, **kwargs: own(*args, **kwargs)
    with pytest.raises(ConfigError, match="prepare_inputs_for_generation was replaced"):
        through(model, ids_of(5)[0])


def test_an_empty_argument_that_transformers_fills_in_is_none():
    model, ids = make_target("llama"), ids_of(5)[0]
    settings = {"max_new_tokens": 4, "do_sample": False}
    found = custom_generate_with(model, ids, mm_encoder_outputs={}, **settings)
    assert found.tolist() == model.generate(ids, **settings).tolist()
    with pytest.raises(ConfigError, match="attention_mask is"):
        custom_generate_with(model, ids, attention_mask=torch.ones(1, 3), **settings)


def custom_generate_with(model, ids, max_new_tokens, do_sample, **kwargs):
    config = GenerationConfig(max_length=ids.shape[1] + max_new_tokens, do_sample=do_sample)
    return custom_generate(model, ids, generation_config=config, drafter="lookup", **kwargs)


def test_a_model_whose_attention_was_exchanged_is_another_one():
    model, ids = make_target("llama").to(torch.bfloat16), ids_of(9)[0]
    settings = {"max_new_tokens": 8, "do_sample": False}
    ours = {"custom_generate": custom_generate, "drafter": "lookup"}
    model.generate(ids, **settings, **ours)
    model.set_attn_implementation("eager")
    assert model.generate(ids, **settings, **ours).shape == (1, 17)
