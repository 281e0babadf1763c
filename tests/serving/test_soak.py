"""Many clients for a long time: nothing is lost, nothing grows."""

import asyncio
import random
import time

import httpx
import psutil
import pytest

from tests.serving.conftest import asked
from tests.serving.test_process import until_idle

MOST_REQUESTS = 20_000
CLIENTS = 8
GROWTH = 96 * 2**20  # bytes, after half of the time: what allocators keep, no leak of requests
WORDS = ["sky", "tea", "river", "night", "garden", "window", "music", "letter", "stone", "bread"]


def values(source):
    """A request of some kind, and how many of its pieces are read; None: all."""
    content = " ".join(source.choices(WORDS, k=source.randrange(1, 60)))
    found = asked(content, max_tokens=source.randrange(1, 60), seed=source.randrange(100))
    found["temperature"] = source.choice([0, 0, 0.8, 1.0])
    found["stream"] = source.random() < 0.6
    if source.random() < 0.2:
        found["n"] = source.randrange(2, 4)
    if source.random() < 0.2:
        found |= {"logprobs": True, "top_logprobs": source.randrange(5)}
    if source.random() < 0.1:
        found["response_format"] = {"type": "json_object"}
    if found["stream"] and source.random() < 0.3:
        found["stream_options"] = {"include_usage": True, "include_rounds": True}
    if source.random() < 0.1:
        found[source.choice(["tools", "n", "temperature"])] = "wrong"
    leaves = found["stream"] and source.random() < 0.2
    return found, source.randrange(1, 6) if leaves else None


async def client(address, number, until, counts):
    source = random.Random(number)
    async with httpx.AsyncClient(base_url=address, timeout=120) as session:
        while time.monotonic() < until and counts["requests"] < MOST_REQUESTS:
            given, pieces = values(source)
            counts["requests"] += 1
            async with session.stream("POST", "/v1/chat/completions", json=given) as answer:
                counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
                assert answer.status_code in (200, 400, 429)
                text, lines = "", 0
                async for line in answer.aiter_lines():
                    text, lines = line or text, lines + bool(line)
                    if lines == pieces:
                        counts["left"] += 1
                        break
                else:
                    ended = text == "data: [DONE]" if given["stream"] is True else text
                    assert ended or answer.status_code != 200, text


@pytest.mark.slow
def test_soak(program, pytestconfig):
    seconds = pytestconfig.getoption("--soak-seconds")
    server, begun = program("--max-running", 4, "--memory", 128), time.monotonic()
    until, counts, sizes = begun + seconds, {"requests": 0, "left": 0}, []
    process = psutil.Process(server.process.pid)

    async def watch():
        while time.monotonic() < until:
            await asyncio.sleep(min(10, seconds / 20))
            sizes.append(process.memory_info().rss)

    async def talk():
        clients = (client(server.address, n, until, counts) for n in range(CLIENTS))
        await asyncio.gather(watch(), *clients)

    asyncio.run(talk())
    status, quarter = until_idle(server, 60), len(sizes) // 4
    early, late = max(sizes[: 2 * quarter + 1]), max(sizes[-quarter:])
    threads, files = process.num_threads(), process.num_fds()
    print(f"\n{counts} {status['generated_tokens']} tokens; memory {early >> 20} MiB in the first "
          f"half, {late >> 20} in the last quarter; {threads} threads, {files} files")  # fmt: skip
    assert late < early + GROWTH
    assert files < 60
    code, said = server.stop()
    assert code == 0
    assert "Traceback" not in said, said
