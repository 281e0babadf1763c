"""The folder that transformers loads and serves, through transformers' own doors."""

import functools
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
import torch

from specblock.errors import CheckpointError, ConfigError
from specblock.integrations.export.folder import export_folder
from tests.integrations.export.world import save_drafter, save_target

PROMPT = [3, 7, 8, 4]
START_SECONDS, ANSWER_SECONDS = 240, 240  # a busy machine; the server alone imports for a while


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def folder(request, tmp_path_factory):
    home = tmp_path_factory.mktemp(request.param)
    target = save_target(home / "target", request.param)
    save_drafter(home / "drafter", target)
    notes = export_folder(home / "drafter", home / "out", copy=request.param == "llama")
    assert bool(notes) == (request.param == "qwen3")
    return home / "out"


def plain(folder, **options):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder.parent / "target")
    return model.generate(torch.tensor([PROMPT]), **options)


def test_a_loaded_folder_decodes_with_its_drafter(folder, monkeypatch):
    from transformers import AutoModelForCausalLM

    import specblock

    seen = []

    @functools.wraps(specblock.custom_generate)
    def watched(*args, **kwargs):
        seen.append(kwargs["drafter"])
        return specblock_generate(*args, **kwargs)

    specblock_generate = specblock.custom_generate
    monkeypatch.setattr(specblock, "custom_generate", watched, raising=False)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    found = model.generate(torch.tensor([PROMPT]), max_new_tokens=20, do_sample=False)
    assert torch.equal(found, plain(folder, max_new_tokens=20, do_sample=False))
    assert seen == [folder / "drafter"]


def test_without_trust_the_folder_is_the_target(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert "partial" not in type(model.generate).__name__
    assert AutoTokenizer.from_pretrained(folder)("w7 w8").input_ids == [7, 8]


def test_what_is_in_the_way_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="not an empty folder"):
        export_folder(folder / "drafter", folder)
    with pytest.raises(CheckpointError, match="no drafter"):
        export_folder(folder.parent / "target" / "none", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@contextmanager
def served(folder):
    """The address of ``transformers serve``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    command += ["--trust-remote-code", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    log = (folder.parent / "serve.log").open("w")
    server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and server.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def ask(address, folder, **more):
    body = {
        "model": str(folder),
        "messages": [{"role": "user", "content": "w7 w8"}],
        "max_tokens": 16,
        "temperature": 0,
        **more,
    }
    request = urllib.request.Request(
        f"{address}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
        return answer.read().decode()


@pytest.mark.slow
def test_the_real_server_answers_and_streams_the_targets_tokens(folder):
    pytest.importorskip("fastapi")
    from transformers import AutoTokenizer

    options = {"max_new_tokens": 16, "do_sample": False}
    tokens = plain(folder, **options)[0, len(PROMPT) :]
    wanted = AutoTokenizer.from_pretrained(folder).decode(tokens, skip_special_tokens=True)
    with served(folder) as address:
        answer = json.loads(ask(address, folder))
        content = answer["choices"][0]["message"]["content"]
        lines = [line[6:] for line in ask(address, folder, stream=True).splitlines() if line]
    pieces = [json.loads(line) for line in lines if line.startswith("{")]
    deltas = [one["choices"][0]["delta"] for one in pieces if one["choices"]]
    # the server puts the prompt of a template without generation prompt in front
    assert content.endswith(wanted)
    assert "".join(delta.get("content") or "" for delta in deltas).endswith(wanted)
    assert sum(bool(delta.get("content")) for delta in deltas) > 3  # it came in pieces
