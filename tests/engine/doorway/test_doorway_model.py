"""A model that went through the doorway is its program's own."""

import functools
import gc
import weakref

import pytest
import torch

from specblock import custom_generate
from tests.engine.doorway.doorway_case import Doorway
from tests.engine.doorway.test_processors import letters_tokenizer
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
