"""Many texts at once: every one is what it is alone, whoever comes and goes."""

import asyncio
import functools
import gc
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specblock.budget.costs import CostTable
from specblock.drafters.base import BudgetController, FixedBudget
from specblock.drafters.lookup.copies import TextCopies
from specblock.drafters.lookup.propose import LookupDrafter
from specblock.engine.speculator import Speculator
from specblock.errors import ConfigError, ContextError, SpecBlockError
from specblock.target.model import Target
from tests.engine.test_lossless import SAMPLERS
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import ARCHITECTURES, make_drafter, make_target

LENGTH = {"max_new_tokens": 24, "ignore_eos": True}
FAMILIES = ["llama", "qwen2-sliding", "gemma3", "phi3-sliding", "mistral-sliding"]


def make(name="llama", kind="lookup", dtype=torch.float32, **overrides) -> Speculator:
    network = make_target(name, **overrides).to(dtype)
    costs = CostTable({1: 1.0, 4: 1.1, 64: 2.0}, {1: 0.1}, {1: 0.1})
    if kind == "plain":
        return Speculator(Target(network), make_tokenizer())
    if kind == "lookup":
        target, drafter, budget = Target(network), LookupDrafter(()), FixedBudget(12, 4)
    else:
        drafter = make_drafter()
        drafter.model.to(dtype)
        target = Target(network, drafter.feature_layers)
        budget = FixedBudget(12, 4) if kind == "network" else BudgetController(costs)
    return Speculator(target, make_tokenizer(), drafter, budget, copies=TextCopies())


def prompts(count, seed=0, longest=40):
    source = random.Random(seed)
    return [
        [source.randrange(3, 97) for _ in range(source.randrange(1, longest))] for _ in range(count)
    ]


def tokens_of(text):
    return [token for chunk in text for token in chunk.token_ids]


def alone(speculator, asked):
    return [speculator.generate(prompt, **LENGTH).token_ids for prompt in asked]


@pytest.mark.parametrize("kind", ["plain", "lookup", "network", "measured"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_list_of_prompts_is_answered_as_each_alone(name, kind):
    speculator, asked = make(name, kind), prompts(5)
    assert speculator.target.packs
    together = [answer.token_ids for answer in speculator.generate(asked, **LENGTH)]
    assert together == alone(make(name, kind), asked)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_in_half_precision_company_changes_no_bit(name):
    speculator, asked = make(name, "network", torch.bfloat16), prompts(4, seed=3)
    seen = []
    speculator.target.watch = lambda rows, _seconds: seen.append(rows)
    together = [answer.token_ids for answer in speculator.generate(asked, **LENGTH)]
    assert max(seen) > 13, "several trees in one forward"
    assert together == alone(make(name, "network", torch.bfloat16), asked)


def mixed(speculator, prompt, number, **more):
    sampler = list(SAMPLERS.values())[number % len(SAMPLERS)]
    own = {
        name: getattr(sampler, name)
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty",
                     "frequency_penalty", "presence_penalty", "seed")
    }  # fmt: skip
    return speculator.stream(prompt, **{**LENGTH, **own, **more})


@functools.cache
def busy_speculator():
    """One for all examples: what one left behind would show in the next."""
    return make("gemma3", "network")


@functools.cache
def mixed_alone(seed, number):
    return tokens_of(mixed(make("gemma3", "network"), prompts(6, seed)[number], number))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    order=st.lists(st.tuples(st.integers(0, 5), st.sampled_from("nnnnc")), max_size=40),
    seed=st.integers(0, 1),
)
def test_arrivals_and_departures_change_nobodys_answer(order, seed):
    """Texts are begun, read and left in any order, with samplers of all kinds."""
    speculator, asked = busy_speculator(), prompts(6, seed)
    texts = [mixed(speculator, prompt, number) for number, prompt in enumerate(asked)]
    found: list[list[int]] = [[] for _ in asked]
    left = set()
    for number, action in order:
        if action == "c":
            texts[number].close()
            left.add(number)
        elif number not in left:
            found[number] += next(texts[number], None).token_ids if texts[number] else []
            if len(found[number]) >= LENGTH["max_new_tokens"]:
                left.add(number)
    for number, text in enumerate(texts):
        expected = mixed_alone(seed, number)
        if number not in left:
            found[number] += tokens_of(text)
            assert found[number] == expected
        assert found[number] == expected[: len(found[number])]
    assert not speculator.engine.busy


def test_threads_read_at_the_same_time():
    speculator, asked = make(kind="network"), prompts(12)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda p: speculator.generate(p, **LENGTH).token_ids, asked))
    assert found == alone(make(kind="network"), asked)


def test_asyncio_reads_several():
    speculator, asked = make(kind="network"), prompts(4)

    async def read(prompt):
        answer = speculator.ask(prompt, **LENGTH)
        return [token async for chunk in answer for token in chunk.token_ids]

    async def read_all():
        return await asyncio.gather(*(read(prompt) for prompt in asked))

    assert asyncio.run(read_all()) == alone(make(kind="network"), asked)


def test_two_open_texts_in_one_thread_take_turns():
    speculator, asked = make(), prompts(2)
    first, second = (speculator.stream(prompt, **LENGTH) for prompt in asked)
    found = [list(next(first).token_ids), list(next(second).token_ids)]
    found[1] += tokens_of(second)
    found[0] += tokens_of(first)
    assert found == alone(make(), asked)


@pytest.mark.parametrize("leave", ["close", "forget"])
def test_a_text_that_is_left_gives_its_room_back(leave):
    speculator, asked = make(), prompts(2)
    first = speculator.stream(asked[0], **LENGTH)
    next(first)
    assert speculator.engine.busy
    if leave == "close":
        first.close()
    del first
    gc.collect()
    assert not speculator.engine.busy
    assert speculator.generate(asked[1], **LENGTH).token_ids == alone(make(), asked[1:])[0]


def test_what_a_texts_own_processor_raises_is_its_own():
    speculator, asked = make(), prompts(3)

    def broken(ids, scores):
        if ids.shape[-1] > len(asked[1]) + 5:
            raise ZeroDivisionError("mine")
        return scores

    texts = [
        speculator.stream(prompt, logits_processor=[broken] if number == 1 else [], **LENGTH)
        for number, prompt in enumerate(asked)
    ]
    found = [list(next(text).token_ids) for text in texts]
    with pytest.raises(ZeroDivisionError, match="mine"):
        list(texts[1])
    found[0] += tokens_of(texts[0])
    found[2] += tokens_of(texts[2])
    assert [found[0], found[2]] == alone(make(), [asked[0], asked[2]])
    assert not speculator.engine.busy


def test_a_wrong_prompt_among_others_is_refused_before_any_begins():
    speculator = make()
    with pytest.raises(ContextError, match="outside the model's vocabulary"):
        speculator.generate([[5, 6], [9999]], **LENGTH)
    assert not speculator.engine.busy
    with pytest.raises(ContextError, match="nothing can follow"):
        speculator.generate([[5, 6], [5] * 300], **LENGTH)
    assert not speculator.engine.busy


def test_no_more_run_than_may_and_all_are_served():
    speculator, asked = make(), prompts(9)
    speculator.engine.most_running = 2
    counts = []
    step, engine = speculator.engine.step, speculator.engine
    engine.step = lambda: (step(), counts.append(len(engine._running)))
    found = [answer.token_ids for answer in speculator.generate(asked, **LENGTH)]
    assert max(counts) == 2
    assert found == alone(make(), asked)


def test_memory_is_a_limit_and_what_never_fits_is_refused_with_the_numbers():
    speculator = make()
    asked, used = prompts(6, longest=20), []
    speculator.generate(asked[0], **LENGTH)  # now it is known how much a position takes
    texts, engine = speculator.target.texts, speculator.engine
    texts.most_bytes = 200 * texts._position_bytes
    step = engine.step
    engine.step = lambda: (step(), used.append(texts._held))
    found = [answer.token_ids for answer in speculator.generate(asked, **LENGTH)]
    assert max(used) <= 200
    assert found == alone(make(), asked)
    with pytest.raises(SpecBlockError, match=r"needs \d+ positions and .* memory holds 200"):
        speculator.generate([5] * 170, **LENGTH)


class Alternating:
    """Forbids another half of the vocabulary each time it is called."""

    def __init__(self):
        self.calls = 0

    def __call__(self, ids, scores):
        self.calls += 1
        scores = scores.clone()
        scores[:, self.calls % 2 :: 2] = -torch.inf
        return scores


def test_a_processor_with_a_state_has_one_for_every_prompt_of_a_list():
    asked = prompts(3)
    together = make().generate(asked, logits_processor=[Alternating()], **LENGTH)
    for answer, prompt in zip(together, asked, strict=True):
        own = make().generate(prompt, logits_processor=[Alternating()], **LENGTH)
        assert answer.token_ids == own.token_ids
    locked = Alternating()
    locked.lock = threading.Lock()
    with pytest.raises(ConfigError, match="Alternating cannot be copied for each row"):
        make().generate(asked, logits_processor=[locked], **LENGTH)


def tensors():
    """How many there are; some modules' lazy attributes warn when they are asked more."""
    return sum(type(thing) is torch.Tensor for thing in gc.get_objects())


def test_hundreds_of_requests_leave_nothing_behind():
    speculator, asked = make(kind="network", num_hidden_layers=5), prompts(10, longest=4)
    for number in range(40):
        texts = [speculator.stream(p, max_new_tokens=2, ignore_eos=True) for p in asked]
        for text in texts[number % 3 :]:
            next(text)
        for text in texts:
            text.close()
        if number == 3:
            gc.collect()
            before = tensors()
    del texts, text
    gc.collect()
    assert tensors() <= before + 20
    assert not speculator.engine.busy
    assert len(speculator.seats._free) <= 10


def test_a_long_prompt_enters_in_pieces_beside_others():
    speculator = make(max_position_embeddings=1024)
    short, long = prompts(1)[0], [random.Random(1).randrange(3, 97) for _ in range(700)]
    first = speculator.stream(short, **LENGTH)
    found = list(next(first).token_ids)
    second = speculator.stream(long, **LENGTH)
    thread_tokens: list[int] = []
    reader = threading.Thread(target=lambda: thread_tokens.extend(tokens_of(second)))
    reader.start()
    found += tokens_of(first)
    reader.join()
    plain = make(max_position_embeddings=1024)
    assert [found, thread_tokens] == alone(plain, [short, long])
