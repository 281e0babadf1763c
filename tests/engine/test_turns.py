"""Two texts at once: the second one waits, or is refused; none is wrong."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from specblock import custom_generate
from specblock.drafters.base import FixedBudget
from specblock.drafters.lookup.copies import TextCopies
from specblock.drafters.lookup.drafter import LookupDrafter
from specblock.engine.speculator import Speculator
from specblock.engine.turns import turn_of
from specblock.errors import BusyError
from specblock.target.model import Target
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import make_target

PROMPTS = [[5, 6, 7, 5, 6], [9, 8, 7, 6], [4, 4, 4], [10, 11, 12, 10, 11]]
LENGTH = {"max_new_tokens": 24, "ignore_eos": True}


def make() -> Speculator:
    target = Target(make_target("llama"))
    return Speculator(
        target, make_tokenizer(), LookupDrafter(()), FixedBudget(12, 4), copies=TextCopies()
    )


def alone(prompt):
    return make().generate(prompt, **LENGTH).token_ids


def test_threads_wait_for_each_other():
    speculator = make()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda p: speculator.generate(p, **LENGTH).token_ids, PROMPTS * 4))
    assert found == [alone(prompt) for prompt in PROMPTS] * 4


def test_a_second_text_in_the_same_thread_is_refused_and_the_first_goes_on():
    speculator = make()
    first = speculator.stream(PROMPTS[0], **LENGTH)
    tokens = list(next(first).token_ids)
    with pytest.raises(BusyError, match="close its iterator"):
        speculator.generate(PROMPTS[1], **LENGTH)
    tokens += [token for chunk in first for token in chunk.token_ids]
    assert tokens == alone(PROMPTS[0])
    assert speculator.generate(PROMPTS[1], **LENGTH).token_ids == alone(PROMPTS[1])


@pytest.mark.parametrize("leave", ["close", "forget"])
def test_a_text_that_is_left_makes_room(leave):
    speculator = make()
    first = speculator.stream(PROMPTS[0], **LENGTH)
    next(first)
    if leave == "close":
        first.close()
    del first
    gc.collect()
    assert speculator.generate(PROMPTS[1], **LENGTH).token_ids == alone(PROMPTS[1])


def test_a_text_that_was_not_begun_holds_nobody_up():
    speculator = make()
    waiting = speculator.stream(PROMPTS[0], **LENGTH)
    assert speculator.generate(PROMPTS[1], **LENGTH).token_ids == alone(PROMPTS[1])
    assert [token for chunk in waiting for token in chunk.token_ids] == alone(PROMPTS[0])


def test_a_text_may_be_read_by_another_thread_than_began_it():
    speculator = make()
    text = speculator.stream(PROMPTS[0], **LENGTH)
    tokens = list(next(text).token_ids)
    with ThreadPoolExecutor(1) as pool:
        for chunk in iter(lambda: pool.submit(next, text, None).result(), None):
            tokens += chunk.token_ids
    assert tokens == alone(PROMPTS[0])
    assert speculator.generate(PROMPTS[1], **LENGTH).token_ids == alone(PROMPTS[1])


def test_an_error_gives_the_turn_back():
    speculator = make()

    def broken(ids, scores):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        speculator.generate(PROMPTS[0], logits_processor=[broken], **LENGTH)
    assert speculator.generate(PROMPTS[1], **LENGTH).token_ids == alone(PROMPTS[1])


def test_the_doorway_and_speculators_of_one_model_queue_together():
    model = make_target("llama")
    settings = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    ids = [torch.tensor([prompt]) for prompt in PROMPTS]
    expected = [model.generate(one, **settings).tolist() for one in ids]
    doorway = {**settings, "custom_generate": custom_generate, "drafter": "lookup"}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: model.generate(one, **doorway).tolist(), ids * 2))
    assert found == expected * 2
    entered = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with turn_of(model):
            later = pool.submit(lambda: (entered.set(), model.generate(ids[0], **doorway))[1])
            assert entered.wait(10)
            with pytest.raises(BusyError):
                model.generate(ids[0], **doorway)
            assert not later.done()
        assert later.result().tolist() == expected[0]
