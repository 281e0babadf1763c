"""A server that keeps the page's side of the contract and plays answers written down beforehand."""

from __future__ import annotations

import json
import random
import re
import threading
from base64 import b64encode
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import specblock

PAGE = Path(specblock.__file__).parent / "serving" / "page" / "index.html"
RECORDED = Path(__file__).with_name("recorded.jsonl")  # what ``specblock serve`` once sent
CUT = "cut"  # the connection ends here
STATUS = {
    "model": "smollm2-135m-instruct", "drafter": "specblock", "running": 0, "waiting": 0,
    "max_running": 16, "tokens_per_second": 41.5, "plain_tokens_per_second": 20.0,
    "accepted_length": 2.75, "generated_tokens": 5210, "cached_tokens": 1234, "requests": 40,
    "uptime_seconds": 321.0, "adaptation": None,
}  # fmt: skip
ADAPTATION = {
    "updates": 7, "rolled_back": 2, "memory_tokens": 4096, "gain": 0.07,
    "decisions": {"skip": 31, "heads": 7}, "update_seconds": 12.5,
}  # fmt: skip


def policy(html: str) -> str:
    """The strictest Content-Security-Policy under which the page's own style and script may run."""

    def hashes(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
        digests = (b64encode(sha256(text.encode()).digest()).decode() for text in found)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def node(text, parent=-1, accepted=True, source="network", log_prob=0.0):
    return {
        "text": text, "parent": parent, "accepted": accepted, "source": source, "log_prob": log_prob
    }  # fmt: skip


def round_of(number, nodes, bonus):
    accepted = sum(one["accepted"] for one in nodes) - 1
    return {"number": number, "bonus": bonus, "accepted": accepted, "nodes": nodes}


def chunk(text, told=None, finish=None):
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    event = {"object": "chat.completion.chunk", "choices": [choice]}
    return event | ({} if told is None else {"round": told})


def usage(tokens, cached=0, speed=44.0):
    return {
        "object": "chat.completion.chunk", "choices": [],
        "usage": {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": 9 + tokens,
                  "prompt_tokens_details": {"cached_tokens": cached}},
        "timings": {"predicted_n": tokens, "predicted_per_second": speed},
    }  # fmt: skip


def answer(rounds, first="The", cached=0):
    """The events of a whole answer: what was accepted and the bonus of every round are its text."""
    events = [chunk(first)]
    for told in rounds:
        path = [one["text"] for one in told["nodes"][1:] if one["accepted"]]
        events.append(chunk("".join([*path, told["bonus"]]), told))
    tokens = 1 + sum(told["accepted"] + 1 for told in rounds)
    return [*events, chunk("", finish="stop"), usage(tokens, cached)]


def recorded():
    return [json.loads(line) for line in RECORDED.read_text(encoding="utf-8").splitlines()]


def big_round(number=1, nodes=60, depth=12, seed=0):
    """A tree of ``nodes`` proposals with one path of ``depth``, with every sign that is awkward."""
    odd = ["\n", "  ", "\ufffd", "\t", "\u200b", " incomprehensibilities of it all", "", " 東京"]
    plain = [" the", " cat", " sat", " on", " a", " mat", ",", " and", " purred", "ing", ".", " It"]
    chance = random.Random(seed)
    made, depths, deepest_path = [node(" once")], [0], [0]
    while len(made) <= nodes:
        if len(made) <= depth:
            parent = len(made) - 1
            deepest_path.append(len(made))
        else:
            parent = chance.choice([at for at, deep in enumerate(depths) if deep < depth])
        text = odd[len(made) // 4 % 8] if len(made) % 4 == 3 else chance.choice(plain)
        source = chance.choice(["network", "network", "text", "memory"])
        made.append(node(text, parent, len(made) <= 7, source, -chance.random() * 3))
        depths.append(depths[parent] + 1)
    return round_of(number, made, "!")


class Contract(ThreadingHTTPServer):
    """``script`` is what the next answers are: events, events to wait for, or :data:`CUT`.

    ``refusal`` is a status and a message for what is asked of ``/v1/chat/completions``.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.html = PAGE.read_text(encoding="utf-8")
        self.status, self.status_refusal = dict(STATUS), None
        self.script: list = []
        self.refusal: tuple[int, str] | None = None
        self.asked: list[dict] = []
        self.keys: list[str | None] = []
        self.polls, self.aborted = 0, threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"

    def handle_error(self, request, client_address):
        """A browser that hangs up is part of the game."""


class _Handler(BaseHTTPRequestHandler):
    server: Contract

    def log_message(self, *_args):
        pass

    def whole(self, status, kind, text, **headers):
        content = text.encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": len(content)}.items():
            self.send_header(name, str(value))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def refused(self, status, message):
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        self.whole(status, "application/json", json.dumps({"error": error}))

    def do_GET(self):
        if self.path == "/":
            html = self.server.html
            self.whole(200, "text/html; charset=utf-8", html, Content_Security_Policy=policy(html))
        elif self.path == "/status":
            self.server.polls += 1
            if self.server.status_refusal:
                self.refused(*self.server.status_refusal)
            else:
                self.whole(200, "application/json", json.dumps(self.server.status))
        else:
            self.refused(404, "There is nothing here.")

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        self.server.asked.append(json.loads(self.rfile.read(length)))
        self.server.keys.append(self.headers["Authorization"])
        if self.server.refusal:
            return self.refused(*self.server.refusal)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            self.play()
        except OSError:
            self.server.aborted.set()

    def play(self):
        for step in self.server.script:
            if step == CUT:
                return
            if isinstance(step, threading.Event):
                while not step.wait(0.05):  # a comment now and then tells whether anybody listens
                    self.wfile.write(b": waiting\n\n")
            else:
                self.wfile.write(f"data: {json.dumps(step)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")
