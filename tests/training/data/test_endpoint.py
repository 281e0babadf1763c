"""Answers from an OpenAI-compatible endpoint that stumbles, refuses and dies."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tests.training.data.test_chat_mask import chat_tokenizer
from tests.training.data.test_regenerate import by_turn, rows_of

from specblock.errors import SpecBlockError
from specblock.target.chat.template import chat_tokens as render
from specblock.training.data.prompts import read_prompts

pytest.importorskip("openai")

from specblock.training.data.endpoint import EndpointConfig, regenerate_at


class Server:
    """Answers "re: QUESTION"; ``fail(number, body)`` may give (status, body) for a request."""

    def __init__(self):
        self.asked, self.fail, self.busy, self.busiest = [], lambda number, body: None, 0, 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, reply = server.reply(body)
                data = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def reply(self, body):
        with self._lock:
            self.asked.append(body)
            number, self.busy = len(self.asked), self.busy + 1
            self.busiest = max(self.busiest, self.busy)
        try:
            failure = self.fail(number, body)
            if failure is not None:
                return failure
            threading.Event().wait(0.01)
            text = f"re: {body['messages'][-1]['content']}"
            finish = "length" if text.endswith("7") else "stop"
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": finish}
            return 200, {"id": "x", "object": "chat.completion", "created": 0,
                         "model": body["model"], "choices": [choice]}  # fmt: skip
        finally:
            with self._lock:
                self.busy -= 1

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.close()


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokenizer()


@pytest.fixture(scope="module")
def prompts(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    turns = [[{"role": "user", "content": f"q{i}"} for _ in range(1 + i % 2)] for i in range(12)]
    rows = [{"id": f"p{i}", "messages": messages} for i, messages in enumerate(turns)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_prompts(path, tokenizer, limit=None, max_tokens=99)


def config(server, **options):
    return EndpointConfig(**{"url": server.url, "model": "m", "concurrency": 3, "retries": 2,
                             "timeout": 20.0, **options})  # fmt: skip


def test_answers_come_back_as_tokens_of_the_template(server, tokenizer, prompts, tmp_path):
    out, seen = tmp_path / "answers", []
    assert regenerate_at(prompts, out, tokenizer, config(server), seen.append) == 18
    rows = by_turn(out)
    assert seen[-1].answers == seen[-1].of == 18
    assert seen[-1].tokens == sum(len(row["answer_ids"]) for row in rows.values())
    assert server.busiest <= 3
    row = rows["p3", 1]
    talk = [{"role": "user", "content": "q3"}, {"role": "assistant", "content": "re: q3"}] * 2
    assert row["prompt_ids"] == render(tokenizer, talk[:3])
    assert tokenizer.decode(row["answer_ids"]) == "re: q3<|im_end|>"
    assert row["finish_reason"] == "stop"
    cut = rows["p7", 0]
    assert tokenizer.decode(cut["answer_ids"]) == "re: q7"
    assert cut["finish_reason"] == "length"
    asked = {(b["messages"][0]["content"], len(b["messages"])): b for b in server.asked}
    assert asked["q3", 3]["messages"] == talk[:3]
    assert {b["max_tokens"] for b in server.asked} == {256}
    assert {b["temperature"] for b in server.asked} <= {0.0, 0.3, 0.5, 0.7, 1.0}
    assert len({b["seed"] for b in server.asked}) == 18
    assert regenerate_at(prompts, out, tokenizer, config(server)) == 0
    assert len(server.asked) == 18, "nothing was asked again"


def test_a_server_error_is_tried_again(server, tokenizer, prompts, tmp_path):
    server.fail = lambda number, body: (500, {"error": "oh"}) if number in (2, 5) else None
    out = tmp_path / "answers.jsonl"
    assert regenerate_at(prompts, out, tokenizer, config(server)) == 18
    assert len(by_turn(out)) == 18
    assert len(server.asked) == 20


def test_a_lost_endpoint_ends_in_a_sentence_and_loses_nothing(server, tokenizer, prompts, tmp_path):
    server.fail = lambda number, body: (503, {"error": "gone"}) if number > 7 else None
    out = tmp_path / "answers.jsonl"
    with pytest.raises(SpecBlockError, match="gave up answering.*start again"):
        regenerate_at(prompts, out, tokenizer, config(server, retries=1))
    before = rows_of(out)
    assert 5 <= len(before) <= 7
    server.fail = lambda number, body: None
    regenerate_at(prompts, out, tokenizer, config(server))
    assert rows_of(out)[: len(before)] == before
    assert len(by_turn(out)) == 18


def test_nobody_there_is_the_same_sentence(tokenizer, prompts, tmp_path):
    server = Server()
    server.close()
    with pytest.raises(SpecBlockError, match="gave up answering"):
        regenerate_at(prompts, tmp_path / "a", tokenizer, config(server, retries=0))


def test_refused_prompts_are_left_out(server, tokenizer, prompts, tmp_path):
    def refuse(number, body):
        return (400, {"error": {"message": "too long"}}) if "q5" in str(body) else None

    server.fail = refuse
    assert regenerate_at(prompts, tmp_path / "a", tokenizer, config(server)) == 16
    server.fail = lambda number, body: (400, {"error": {"message": "no such thing"}})
    with pytest.raises(SpecBlockError, match="refused every prompt.*no such thing"):
        regenerate_at(prompts, tmp_path / "b", tokenizer, config(server))
