"""A server program with the model that ships, and clients of all kinds."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time

import httpx
import openai
import pytest

from tests.serving.conftest import Process, asked

QUESTION = [{"role": "user", "content": "Name three colours."}]
READER = """
import sys, httpx
values = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1000, "ignore_eos": True,
          "stream": True}
with httpx.stream("POST", sys.argv[1], json=values, timeout=60) as answer:
    for line in answer.iter_lines():
        print("got", flush=True)
"""
LONG = {"max_tokens": 1000, "ignore_eos": True, "temperature": 0}


def connected(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def request(values, extra=""):
    body = json.dumps(values).encode()
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n{extra}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def until_idle(server, seconds=30):
    deadline = time.monotonic() + seconds
    while True:
        status = server.get("/status").json()
        if status["running"] == status["waiting"] == 0:
            return status
        assert time.monotonic() < deadline, status
        time.sleep(0.1)


def test_the_official_client(process):
    client = openai.OpenAI(base_url=f"{process.address}/v1", api_key="none", max_retries=0)
    assert [own.id for own in client.models.list()] == ["smollm2-135m-instruct"]
    more = {"model": "smollm2-135m-instruct", "messages": QUESTION, "temperature": 0}
    whole = client.chat.completions.create(**more, max_completion_tokens=24, user="me")
    text = whole.choices[0].message.content
    assert whole.usage.completion_tokens <= 24
    assert whole.usage.prompt_tokens_details.cached_tokens >= 0
    stream = client.chat.completions.create(
        **more, max_completion_tokens=24, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(own.choices[0].delta.content for own in chunks[:-1]) == text
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    again = [{"role": "assistant", **whole.choices[0].message.model_dump()}]
    more["messages"] = QUESTION + again + [{"role": "user", "content": "Thanks."}]
    assert client.chat.completions.create(**more, max_tokens=4).choices[0].message.content
    found = client.completions.create(model=more["model"], prompt="The sky is", max_tokens=4)
    assert found.choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        client.chat.completions.create(
            **more, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.chat.completions.create(model="gpt-7", messages=QUESTION)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_curl(process):
    done = subprocess.run(
        ["curl", "-sN", f"{process.address}/v1/chat/completions", "-H",
         "Content-Type: application/json", "-d", json.dumps(asked("Hello", stream=True))],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.endswith("data: [DONE]\n\n")


def test_clients_that_are_killed_leave_nothing(process):
    address = f"{process.address}/v1/chat/completions"
    clients = [
        subprocess.Popen([sys.executable, "-c", READER, address], stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    for client in clients:
        assert client.stdout.readline() == b"got\n"
    for client in clients:
        client.send_signal(signal.SIGKILL)
        client.communicate()
    until_idle(process)


def test_connections_that_vanish_in_the_middle_of_anything(process):
    whole = request(asked("Hello", **LONG))
    for size in (0, 1, 20, 100, len(whole) - 1, len(whole)):
        with connected(process) as client:
            client.sendall(whole[:size])
            time.sleep(0.05)
    until_idle(process)


def test_half_requests_are_waited_for_no_longer_than_told(process):
    whole = request(asked("Hello"))
    for size in (0, 30, len(whole) - 5):
        with connected(process) as client:
            client.sendall(whole[:size])
            begun = time.monotonic()
            told = client.recv(1000)
            assert time.monotonic() - begun < 10
            assert told == b"" or told.startswith(b"HTTP/1.1 408")
    assert process.get("/health").json() == {"status": "ok"}


def test_a_slow_reader_is_left(process):
    """Who asks for much and reads nothing loses the connection, and no room is held for long."""
    options = {"include_rounds": True, "include_usage": True}
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(("127.0.0.1", process.port))
        values = asked("Hello", n=4, logprobs=True, top_logprobs=20, stream=True,
                       stream_options=options, **{**LONG, "max_tokens": 2000})  # fmt: skip
        client.sendall(request(values))
        time.sleep(3)
    until_idle(process, 60)


def test_a_large_body_is_refused_unread(process):
    with connected(process) as client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 52428800\r\n\r\n" + b" " * 1000
        )
        assert client.recv(1000).startswith(b"HTTP/1.1 413")
    with connected(process) as client:  # without saying how much
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        sent = 0
        try:
            while sent < 50 * 2**20:
                client.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
                sent += 65536
        except OSError:
            pass
        assert sent < 20 * 2**20


@pytest.mark.parametrize(
    "data",
    [b"\x00" * 100, b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01",
     b"GET " + b"a" * 200_000,
     b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
     b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
)  # fmt: skip
def test_bytes_that_are_no_request(process, data):
    with connected(process) as client:
        client.settimeout(5)
        try:
            client.sendall(data)
            assert client.recv(100)[9:12] in (b"", b"400", b"403")
        except ConnectionError:
            pass
    assert process.get("/health").status_code == 200


def test_many_connections(process):
    clients = [connected(process) for _ in range(200)]
    for client in clients:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert all(client.recv(12) == b"HTTP/1.1 200" for client in clients)
    for client in clients:
        client.close()
    assert process.get("/health").status_code == 200


def test_sigterm_in_the_middle_ends_streams_with_a_reason(program):
    server = program("--grace-seconds", 1)
    with httpx.stream(
        "POST", f"{server.address}/v1/chat/completions", timeout=60,
        json=asked("Tell a story.", stream=True, **{**LONG, "max_tokens": 2000}),
    ) as answer:  # fmt: skip
        lines = (line for line in answer.iter_lines() if line)
        next(lines)
        idle = connected(server)
        begun = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        last = list(lines)[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "server_stopping"
    code, said = server.stop()
    assert code == 0
    assert time.monotonic() - begun < 10
    assert "Traceback" not in said
    idle.close()


def test_ctrl_c_ends_it_as_any_verb(program):
    code, said = program().stop(signal.SIGINT)
    assert code == 130
    assert "Traceback" not in said


def test_what_was_learned_is_saved_and_the_folder_is_one_servers(program, tmp_path):
    server = program("--adapt", tmp_path, "--adapt-memory", 1)
    httpx.post(f"{server.address}/v1/chat/completions", json=asked("Hello"), timeout=60)
    with pytest.raises(AssertionError, match="Another program adapts in"):
        Process("--adapt", tmp_path)
    assert server.stop()[0] == 0
    again = program("--adapt", tmp_path, "--adapt-memory", 1)
    assert again.get("/status").json()["adaptation"]["memory_tokens"] > 0
    again.stop(signal.SIGKILL)


def test_keys_of_a_file(program, tmp_path):
    (tmp_path / "keys").write_text("a-secret-key\n")
    server = program("--api-key-file", tmp_path / "keys", "--host", "0.0.0.0")
    assert server.get("/status").status_code == 401
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="a-secret-key", max_retries=0)
    assert client.models.list().data
    code, said = server.stop()
    assert code == 0
    assert "a-secret-key" not in said


def test_an_address_that_is_taken_is_a_sentence(process):
    with pytest.raises(AssertionError, match=f"port {process.port} cannot be used"):
        Process("--port", process.port)
