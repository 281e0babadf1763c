"""Clients that go, full queues, answers that take too long, drafters that fail, the end."""

import asyncio
import json
import threading
import time

import pytest

from specblock.engine import engine
from specblock.engine.engine import Engine
from tests.engine.test_engine import prompts
from tests.engine.test_failing_drafter import broken
from tests.serving.conftest import asked, events

CHAT = "/v1/chat/completions"
LONG = {"max_tokens": 200, "ignore_eos": True, "temperature": 0}


@pytest.fixture
def held(monkeypatch):
    """Steps wait until the test lets them go on."""
    gate, step = threading.Event(), Engine.step

    def waiting(engine):
        assert gate.wait(60)
        time.sleep(0.002)
        step(engine)

    monkeypatch.setattr(Engine, "step", waiting)
    yield gate
    gate.set()


async def leave(app, values, parts=1):
    """Ask, read ``parts`` of the answer, and go without a word."""
    body, got, gone = json.dumps(values).encode(), [], asyncio.Event()
    scope = {
        "type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")],
        "http_version": "1.1", "scheme": "http", "server": ("localhost", 80), "client": ("x", 1),
        "root_path": "", "asgi": {"version": "3.0"}, "extensions": {},
    }  # fmt: skip
    asking = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        if asking:
            return asking.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        got.append(message)
        if len(got) > parts:
            gone.set()

    if not parts:
        asyncio.get_running_loop().call_later(0.2, gone.set)
    await asyncio.wait_for(app(scope, receive, send), 30)
    return got


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_leaves_nothing_behind(started, held, stream):
    server = started()
    if stream:
        held.set()
    else:
        threading.Timer(0.5, held.set).start()
    asyncio.run(leave(server.app, asked(stream=stream, **LONG), parts=2 if stream else 0))
    until(lambda: not server.speculator.engine.busy)
    assert not server.service._readings
    assert 'finished_reason="abort"} 1.0' in server.get("/metrics").text
    assert len(server.chat(temperature=0)["choices"]) == 1


def test_a_client_that_goes_while_it_waits_never_enters(started, held):
    server = started(max_running=1)

    async def both():
        first = asyncio.create_task(leave(server.app, asked(stream=True, **LONG), parts=10**6))
        await asyncio.sleep(0.1)
        await leave(server.app, asked(**LONG), parts=0)
        held.set()
        return await first

    answered = asyncio.run(both())
    assert b"[DONE]" in answered[-2]["body"]
    assert "generation_tokens_total 200.0" in server.get("/metrics").text


def test_what_does_not_fit_the_queue_is_told_to_come_again(started, held):
    server = started(max_running=1, max_waiting=2)

    async def many(client):
        tasks = [asyncio.create_task(client.post(CHAT, json=asked(**LONG))) for _ in range(3)]
        await asyncio.sleep(0.5)
        refused = await client.post(CHAT, json=asked(n=1))
        held.set()
        return refused, await asyncio.gather(*tasks)

    refused, answered = server.run(many)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    assert refused.json()["error"]["code"] == "queue_full"
    assert [own.status_code for own in answered] == [200] * 3


def test_more_choices_than_ever_fit_are_refused(started):
    error = started(max_running=1, max_waiting=2).refused(CHAT, asked(n=4), 429)
    assert error["code"] == "queue_full"


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_takes_too_long_is_broken_off(started, monkeypatch, stream):
    server, step = started(max_seconds=0.5), Engine.step
    monkeypatch.setattr(Engine, "step", lambda engine: (time.sleep(0.05), step(engine)))
    found = server.post(CHAT, asked(stream=stream, **LONG))
    if stream:
        assert found.status_code == 200
        error = json.loads(found.text.strip().split("\n\n")[-1].removeprefix("data: "))["error"]
    else:
        assert found.status_code == 504
        error = found.json()["error"]
    assert error["code"] == "timeout"
    until(lambda: not server.speculator.engine.busy)


@pytest.mark.parametrize("part", ["drafting", "observe", "prefill"])
def test_a_drafter_that_fails_costs_nobody_an_answer(started, monkeypatch, part):
    server = started()
    expected = server.chat(temperature=0, ignore_eos=True)
    broken(monkeypatch, server.speculator.drafter, part)

    async def many(client):
        values = asked(temperature=0, ignore_eos=True)
        return await asyncio.gather(*(client.post(CHAT, json=values) for _ in range(4)))

    for own in server.run(many):
        assert own.json()["choices"] == expected["choices"]


def test_a_step_that_fails_is_told_and_the_next_request_served(started, monkeypatch, caplog):
    server, calls, step = started(), [], engine.step

    def failing(*given):
        calls.append(given)
        if len(calls) in (3, 4):
            raise MemoryError("of the machine")
        return step(*given)

    monkeypatch.setattr(engine, "step", failing)
    stream = server.post(CHAT, asked(stream=True, **LONG)).text
    failed = server.post(CHAT, asked(**LONG))
    assert failed.status_code == 500
    for told in (stream, failed.text):
        assert "server_error" in told
        assert "of the machine" not in told
    assert "a step failed" in caplog.text
    assert server.chat()["choices"]


def test_stopping_ends_streams_with_a_reason(started, monkeypatch):
    server, step = started(grace_seconds=1.0), Engine.step
    monkeypatch.setattr(Engine, "step", lambda engine: (time.sleep(0.1), step(engine)))

    async def stop(client):
        long = asyncio.create_task(client.post(CHAT, json=asked(stream=True, **LONG)))
        await asyncio.sleep(0.3)
        short = asyncio.create_task(client.post(CHAT, json=asked(max_tokens=2)))
        await asyncio.sleep(0.05)
        server.service.begin_stop()
        late = await client.post(CHAT, json=asked())
        health = await client.get("/health")
        return await long, await short, late, health

    long, short, late, health = server.run(stop)
    assert short.status_code == 200
    assert (late.status_code, health.status_code) == (503, 503)
    assert late.headers["retry-after"]
    last = json.loads(long.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["code"] == "server_stopping"


def test_many_at_once_are_each_what_they_are_alone(started):
    server, texts = started(max_running=4), prompts(12, seed=5)
    expected = [
        server.complete(ids, max_tokens=16, ignore_eos=True)["choices"][0]["text"] for ids in texts
    ]

    async def many(client):
        return await asyncio.gather(
            *(
                client.post(
                    "/v1/completions",
                    json={
                        "prompt": ids, "max_tokens": 16, "ignore_eos": True, "temperature": 0,
                        "stream": number % 2 == 0,
                    },
                )
                for number, ids in enumerate(texts)
            )
        )  # fmt: skip

    for number, found in enumerate(server.run(many)):
        if number % 2 == 0:
            text = "".join(own["choices"][0]["text"] for own in events(found.text))
        else:
            text = found.json()["choices"][0]["text"]
        assert text == expected[number]


def test_what_is_learned_is_kept_when_the_disk_is_full(started, tmp_path, monkeypatch, caplog):
    import errno

    from specblock.adaptation import state
    from tests.adaptation.world import config, make_speculator

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(state, "save_next", full)
    server = started(make_speculator(config(folder=tmp_path, policy="always-heads")))
    for number in range(6):
        server.complete([number + 5] * 6, max_tokens=12, ignore_eos=True)
    server.speculator.close()
    assert "saving the adaptation's state failed" in caplog.text
