"""Readers that are interrupted, cut off or forgotten: nothing is lost in silence, nothing stays."""

import asyncio
import gc

import pytest
import torch

from specblock.engine.engine import Engine
from specblock.engine.text import TextStream
from specblock.errors import SpecBlockError
from tests.engine.test_engine import LENGTH, make, prompts, tokens_of


def test_a_forgotten_handle_is_cancelled():
    speculator = make()
    handle = speculator.ask(prompts(1)[0], **LENGTH)
    next(handle)
    assert speculator.engine.busy
    del handle
    gc.collect()
    assert not speculator.engine.busy


def test_an_asyncio_reader_that_is_cut_off_loses_no_piece():
    speculator, prompt = make(), prompts(1)[0]
    whole = speculator.generate(prompt, **LENGTH).token_ids

    async def read():
        handle, got, cuts = speculator.ask(prompt, **LENGTH), [], 0
        while True:
            try:
                async with asyncio.timeout(0.003):
                    async for chunk in handle:
                        got.extend(chunk.token_ids)
                return got, cuts
            except TimeoutError:
                cuts += 1

    got, cuts = asyncio.run(read())
    assert cuts > 2
    assert got == whole


def interrupt_once(monkeypatch, owner, name, when=lambda *_: True):
    real, done = getattr(owner, name), []

    def interrupted(*given, **more):
        if not done and when(*given):
            done.append(1)
            raise KeyboardInterrupt
        return real(*given, **more)

    monkeypatch.setattr(owner, name, interrupted)


def test_an_interrupt_while_pieces_are_handed_out_leaves_no_hole(monkeypatch):
    speculator = make()
    asked = prompts(3)
    expected = [speculator.generate(prompt, **LENGTH).token_ids for prompt in asked]
    handles = [speculator.ask(prompt, **LENGTH) for prompt in asked]
    got = [list(next(handle).token_ids) for handle in handles]
    interrupt_once(monkeypatch, TextStream, "push")
    with pytest.raises(KeyboardInterrupt):
        tokens_of(handles[0])
    for handle, known, whole in zip(handles[1:], got[1:], expected[1:], strict=True):
        with pytest.raises(SpecBlockError, match="interrupted"):
            known.extend(token for chunk in handle for token in chunk.token_ids)
        assert known == whole[: len(known)], "no hole"
    assert not speculator.engine.busy
    assert speculator.generate(asked[0], **LENGTH).token_ids == expected[0]


def test_an_interrupt_while_a_request_is_let_in_ends_it(monkeypatch):
    speculator, prompt = make(), prompts(1)[0]
    whole = speculator.generate(prompt, **LENGTH).token_ids
    free = list(speculator.seats._free)
    interrupt_once(monkeypatch, type(speculator.target), "open")
    handle = speculator.ask(prompt, **LENGTH)
    with pytest.raises(KeyboardInterrupt):
        next(handle)
    handle.cancel()
    assert not speculator.engine.busy
    assert speculator.seats._free == free
    assert speculator.generate(prompt, **LENGTH).token_ids == whole


def test_a_limit_holds_with_prefixes_too():
    network = make().target.model
    from specblock.engine.loading import assemble

    speculator = assemble(network, make().tokenizer, "lookup", calibrate="never", owned=True)
    common = prompts(1, longest=40)[0] * 2
    settings = {"max_new_tokens": 8, "ignore_eos": True}
    speculator.generate(common, **settings)
    texts = speculator.target.texts
    bytes_each = texts._position_bytes
    speculator.engine = Engine(speculator.target, memory=bytes_each * (len(common) + 140))
    for number in range(4):
        speculator.generate([*common, 5 + number], **settings)
        assert texts._held <= texts.most_positions
    assert texts.hits > 0


def test_a_trial_at_the_start_keeps_no_room():
    target = make(dtype=torch.bfloat16).target
    from specblock.engine.machine.exactness import give_up_unless_exact

    give_up_unless_exact([target])
    assert target.texts._opened == 0
