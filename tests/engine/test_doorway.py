"""What a program sees of the doorway beside the text: settings, scores, streams, its own model."""

import functools
import gc
import threading
import weakref

import pytest
import torch
from transformers import GenerationConfig, StoppingCriteria, TextIteratorStreamer

from specblock import custom_generate
from specblock.engine.doorway import settings as known
from specblock.errors import ConfigError
from tests.engine.doorway_case import Doorway
from tests.engine.test_processors import letters_tokenizer
from tests.tiny import make_target

PROMPT = torch.tensor([[5, 6, 7, 8, 9, 5, 6]])
BATCH = torch.tensor([[0, 0, 5, 6, 7, 8], [5, 6, 7, 8, 9, 10], [0, 3, 4, 5, 6, 7]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
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


def test_every_setting_of_generate_is_honoured_harmless_or_refused():
    fields = set(vars(GenerationConfig()))
    sorts = (known.HONOURED, known.WITHOUT_EFFECT, set(known.REFUSED))
    assert fields <= set().union(*sorts), "a setting that nobody has thought about"
    assert sum(map(len, sorts)) == len(set().union(*sorts)), "a setting is of two sorts"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_beams": 2}, "num_beams=2"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states"),
        ({"prompt_lookup_num_tokens": 3}, "lookup"),
    ],
)
def test_what_would_change_the_output_is_refused_by_name(arguments, named):
    with pytest.raises(ConfigError, match=named):
        through(make_target("llama"), **arguments)


def test_embeddings_instead_of_tokens_are_refused_by_name():
    model = make_target("llama")
    embeddings = model.get_input_embeddings()(PROMPT)
    with pytest.raises(ConfigError, match="input_ids"):
        model.generate(
            inputs_embeds=embeddings, custom_generate=custom_generate, drafter="lookup", **GREEDY
        )


@pytest.mark.parametrize("ids", [PROMPT, BATCH], ids=["one", "batch"])
def test_scores_and_logits_are_generates(doorway, ids):
    arguments = {
        **GREEDY, "return_dict_in_generate": True, "output_scores": True, "output_logits": True,
        "repetition_penalty": 1.3, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    if len(ids) > 1:
        arguments["attention_mask"] = MASK
    theirs = doorway.plain(ids, **arguments)
    ours = doorway(ids, known=theirs.sequences, **arguments)
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    for name in ("scores", "logits"):
        assert len(ours[name]) == len(theirs[name])
        for mine, its in zip(ours[name], theirs[name], strict=True):
            assert mine.dtype == its.dtype
            # rows that have ended hold what generate computes of padding: nothing to compare
            going = mine.isfinite().sum(-1) > 1
            torch.testing.assert_close(mine[going], its[going], atol=2e-3, rtol=1e-3)


def test_a_batch_is_padded_as_generate_pads_it(doorway):
    doorway.model.generation_config.pad_token_id = None
    doorway.target.model.generation_config.pad_token_id = None
    lengths = {**GREEDY, "attention_mask": MASK, "max_new_tokens": 40}
    free = doorway.plain(BATCH, **{**lengths, "eos_token_id": None, "pad_token_id": 0})
    end = int(free[1, BATCH.shape[1] + 3])  # the second row ends early
    theirs = doorway.plain(BATCH, **lengths, eos_token_id=[end, 96])
    ours = doorway(BATCH, known=theirs, **lengths, eos_token_id=[end, 96])
    assert ours.tolist() == theirs.tolist()


def test_several_samples_of_a_prompt_differ_and_repeat(doorway):
    arguments = {"do_sample": True, "top_k": 0, "max_new_tokens": 12, "num_return_sequences": 3}
    ours = doorway(PROMPT, seed=4, **arguments)
    assert ours.shape == (3, PROMPT.shape[1] + 12)
    assert len({tuple(row) for row in ours.tolist()}) == 3
    assert doorway(PROMPT, seed=4, **arguments).tolist() == ours.tolist()


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


class After(StoppingCriteria):
    """A program's own criterion."""

    def __init__(self, count):
        self.count, self.seen = count, 0

    def __call__(self, ids, scores, **_):
        self.seen += 1
        return torch.full((len(ids),), self.seen >= self.count)


def test_a_programs_own_criterion_sees_every_token_once(doorway):
    theirs = doorway.plain(PROMPT, **GREEDY, stopping_criteria=[After(9)])
    criterion = After(9)
    ours = doorway(PROMPT, known=theirs, **GREEDY, stopping_criteria=[criterion])
    assert ours.tolist() == theirs.tolist()
    assert criterion.seen == 9


def test_a_streamer_gets_the_answer_and_its_end(doorway):
    tokenizer = letters_tokenizer()
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    expected = doorway.plain(PROMPT, **GREEDY)
    thread = threading.Thread(
        target=doorway, args=(PROMPT,), kwargs={"known": expected, "streamer": streamer, **GREEDY}
    )
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == tokenizer.decode(expected[0, PROMPT.shape[1] :])


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


def test_a_models_own_generation_config_is_honoured():
    model, plain = make_target("llama"), make_target("llama")
    for each in (model, plain):
        each.generation_config.no_repeat_ngram_size = 2
        each.generation_config.suppress_tokens = list(range(10, 40))
    assert through(model).tolist() == plain.generate(PROMPT, **GREEDY).tolist()
