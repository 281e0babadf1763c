"""A server in this process, with a tiny model or the embedded one, and one of its own."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import specblock
from specblock.serving.app import make_app
from specblock.serving.http.guards import Keys
from specblock.serving.service import Service
from specblock.serving.settings import ServingConfig
from tests.engine.test_engine import make

ROOT = Path(__file__).parents[2]
HOST = "http://127.0.0.1"


class Local:
    """A server in this process; the thread that computes is its own."""

    def __init__(self, speculator, keys=None, **limits):
        self.speculator = speculator
        self.service = Service(speculator, "tiny", ServingConfig(**limits))
        self.app = make_app(self.service, Keys(keys))
        self.service.start()

    def run(self, talk):
        """What a coroutine function of an asynchronous client gives."""

        async def within():
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=HOST, timeout=60) as client:
                return await talk(client)

        return asyncio.run(within())

    def get(self, path, **more):
        return self.run(lambda client: client.get(path, **more))

    def post(self, path, values, **more):
        return self.run(lambda client: client.post(path, json=values, **more))

    def chat(self, content="w5 w6 w7", **more):
        """The answer to a message, which must be one."""
        found = self.post("/v1/chat/completions", asked(content, **more))
        assert found.status_code == 200, found.text
        return found.json()

    def complete(self, prompt, **more):
        found = self.post("/v1/completions", {"prompt": prompt, "temperature": 0, **more})
        assert found.status_code == 200, found.text
        return found.json()

    def refused(self, path, values, status=400):
        """The error object of a request that must be refused."""
        found = self.post(path, values)
        assert found.status_code == status, found.text
        error = found.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


def asked(content="w5 w6 w7", **more):
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 12, **more}


def events(text):
    """The objects of a stream, which must end as the API says."""
    lines = [line for line in text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@pytest.fixture
def started():
    """Start servers in this process; they are stopped after the test."""
    servers = []

    def start(speculator=None, **more):
        servers.append(Local(speculator or make(kind="network"), **more))
        return servers[-1]

    yield start
    for server in servers:
        assert server.service.stop()
        assert not server.speculator.engine.busy


@pytest.fixture(scope="module")
def tiny():
    """A server with a tiny random model and a drafter."""
    server = Local(make(kind="network"))
    yield server
    assert server.service.stop()
    assert not server.speculator.engine.busy


@pytest.fixture(scope="session")
def embedded():
    """A server in this process with the model that ships."""
    server = Local(specblock.load())
    yield server
    assert server.service.stop()
    assert not server.speculator.engine.busy


class Process:
    """``specblock serve`` with the embedded model, as a program of its own."""

    def __init__(self, *options):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "specblock", "serve", "--port", "0", *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        )
        ready = self.process.stdout.readline()
        found = re.search(r"http://\S+:(\d+)", ready)
        if found is None:
            self.process.kill()
            raise AssertionError(ready + self.process.communicate()[1])
        self.port = int(found[1])
        self.address = f"http://127.0.0.1:{self.port}"

    def get(self, path):
        return httpx.get(self.address + path, timeout=30)

    def stop(self, number=signal.SIGTERM):
        """The exit code and what was said on standard error."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        said = self.process.communicate(timeout=20)[1]
        return self.process.returncode, said


@pytest.fixture(scope="session")
def process():
    """One server program for all tests that leave it running."""
    server = Process("--stalled-seconds", 2)
    yield server
    code, said = server.stop()
    assert code == 0, said
    assert "Traceback" not in said


@pytest.fixture
def program():
    """Start further server programs."""
    started = []

    def start(*options):
        started.append(Process(*options))
        return started[-1]

    yield start
    for server in started:
        server.stop(signal.SIGKILL)
