"""How a first contact goes on this machine: ``python -m tests.contact``, on an idle one.

Two tables for docs/machines.md: seconds from a cold start to the first token, with nothing measured
before, and tokens a second while other processes spin. Each row is a process of its own.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT = "Why is the sky blue? Explain it to a child in a few sentences."
COLD = (
    (), ("--dtype", "bfloat16"), ("--dtype", "float16"), ("--exact",), ("--drafter", "lookup"),
    ("--drafter", "none"), ("--dtype", "float16", "--drafter", "none"),
)  # fmt: skip
SPINNING = (0, 1)
SETTINGS = {
    "plain, 1 thread": ("--drafter", "none", "--threads", "1"),
    "plain, all threads": ("--drafter", "none", "--threads", str(os.cpu_count())),
    "plain, governed": ("--drafter", "none"),
    "specblock, 1 thread": ("--threads", "1"),
    "specblock, all threads": ("--threads", str(os.cpu_count())),
    "specblock, governed": (),
}
TURNS, TOKENS = 3, 48


def generate(*arguments: str, cache: Path | None = None) -> subprocess.Popen:
    environment = {**os.environ, **({} if cache is None else {"XDG_CACHE_HOME": str(cache)})}
    command = [sys.executable, "-m", "specblock", "generate", PROMPT, *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )


def seconds_to_first_token(models: Path, *arguments: str) -> float:
    """Of a process that finds the converted model and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "specblock").mkdir()
        (Path(folder) / "specblock" / "models").symlink_to(models)
        started = time.perf_counter()
        with generate("--max-new-tokens", "8", *arguments, cache=Path(folder)) as process:
            process.stdout.read(1)
            seconds = time.perf_counter() - started
            process.kill()
    return seconds


def tokens_per_second(*arguments: str) -> float:
    with generate("--max-new-tokens", str(TOKENS), "--json", *arguments) as process:
        answer = json.loads(process.stdout.read())
    return answer["decode_tokens_per_second"]


def beside(spinning: int) -> dict[str, float]:
    """Medians over turns, the settings one after the other in each."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(spinning)]
    try:
        turns = [
            {name: tokens_per_second(*arguments) for name, arguments in SETTINGS.items()}
            for _ in range(TURNS)
        ]
    finally:
        for other in others:
            other.kill()
            other.wait()
    return {name: statistics.median(turn[name] for turn in turns) for name in SETTINGS}


def main() -> None:
    from specblock.bench.environment import describe_environment
    from specblock.storage import cache_folder
    from specblock.target.loading.zoo import locate_model

    models = locate_model("smollm2-135m-instruct").parent
    assert models == cache_folder() / "models"
    print(json.dumps(describe_environment(), indent=1) + "\n", flush=True)
    print("| cold start | seconds to the first token |\n| --- | --- |")
    for arguments in COLD:
        seconds = seconds_to_first_token(models, *arguments)
        name = " ".join(arguments) or "float32, the drafter that ships"
        print(f"| {name} | {seconds:.1f} |", flush=True)
    for arguments in SETTINGS.values():  # everything is measured before it is timed
        tokens_per_second(*arguments)
    print("\n| tokens/s | " + " | ".join(SETTINGS) + " |\n| --- |" + " --- |" * len(SETTINGS))
    for spinning in SPINNING:
        found = beside(spinning)
        cells = " | ".join(f"{found[name]:.1f}" for name in SETTINGS)
        print(f"| beside {spinning} spinning processes | {cells} |", flush=True)


if __name__ == "__main__":
    main()
