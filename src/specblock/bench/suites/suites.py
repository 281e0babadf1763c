"""Suites of prompts: our own, any JSONL file, and public sets by name, a sample of each task."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specblock.bench.suites.prompts import BenchPrompt, load_prompts
from specblock.data import OWN_PROMPTS
from specblock.errors import SpecBlockError
from specblock.training.data.conversation import RowError

__all__ = ["OWN", "PUBLIC", "PublicSet", "load_suite", "sample_per_task"]

OWN = "own"


@dataclass(frozen=True)
class PublicSet:
    """Where a public set is, as ``datasets.load_dataset`` wants it, and how a row is read."""

    arguments: tuple[str, ...]
    split: str
    read: Callable[[Mapping[str, Any]], Mapping[str, Any]]  # to {"turns", "task"?, "id"?}
    task: str
    options: Mapping[str, Any] = field(default_factory=dict)


def _text(template: str) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    return lambda row: {"turns": [template.format(**row).strip()]}


_SPEC_BENCH = "https://raw.githubusercontent.com/hemingkx/Spec-Bench/main/data/spec_bench/"
# Spec-Bench splits its conversations by subject: they are one task of six.
_TASKS = {"translation", "summarization", "qa", "math_reasoning", "rag"}
_SOLVE = "{problem}\nReason step by step and put the final answer in \\boxed{{}}."

PUBLIC = {
    "spec-bench": PublicSet(
        ("json",),
        "train",
        lambda row: {
            "turns": row["turns"],
            "id": f"spec_bench-{row['question_id']}",
            "task": row["category"] if row["category"] in _TASKS else "multi_turn_conversation",
        },
        "",
        {"data_files": _SPEC_BENCH + "question.jsonl"},
    ),
    "mt-bench": PublicSet(
        ("HuggingFaceH4/mt_bench_prompts",), "train", lambda row: {"turns": row["prompt"]},
        "conversation",
    ),
    "humaneval": PublicSet(
        ("openai/openai_humaneval",), "test",
        _text("Complete the following Python function.\n\n{prompt}"), "code",
    ),
    "gsm8k": PublicSet(("openai/gsm8k", "main"), "test", _text("{question}"), "mathematics"),
    "math-500": PublicSet(("HuggingFaceH4/MATH-500",), "test", _text(_SOLVE), "mathematics"),
    "alpaca": PublicSet(
        ("tatsu-lab/alpaca",), "train", _text("{instruction}\n\n{input}"), "instruction"
    ),
}  # fmt: skip


def load_suite(
    source: str | Path | None = None,
    *,
    limit: int | None = None,
    per_task: int | None = None,
    seed: int = 0,
) -> list[BenchPrompt]:
    """The prompts of a suite.

    Args:
        source: a JSONL file (``.zst`` too), a name out of ``PUBLIC`` (needs a network and the
            package datasets), or ``"own"`` or None for the set that ships.
        limit: take the first N, after sampling.
        per_task: draw N prompts of every task, the same for the same seed, in the file's order.

    Raises:
        SpecBlockError: the source cannot be read, or is not reachable.
    """
    name = str(source or OWN)
    if name == OWN:
        prompts = load_prompts(OWN_PROMPTS)
    elif name.lower() in PUBLIC and not Path(name).exists():
        prompts = _fetch(name.lower())
    else:
        # without a sample there is no need to read all of a large file
        prompts = load_prompts(name, None if per_task else limit)
    if per_task is not None:
        prompts = sample_per_task(prompts, per_task, seed)
    return prompts[:limit]


def sample_per_task(prompts: Sequence[BenchPrompt], count: int, seed: int) -> list[BenchPrompt]:
    """``count`` prompts of every task (all where there are fewer), in their order."""
    chosen: set[int] = set()
    for task in sorted({prompt.task for prompt in prompts}):
        own = [index for index, prompt in enumerate(prompts) if prompt.task == task]
        chosen.update(random.Random(f"{seed}:{task}").sample(own, min(count, len(own))))
    return [prompts[index] for index in sorted(chosen)]


def _fetch(name: str) -> list[BenchPrompt]:
    try:
        import datasets
    except ImportError:
        raise SpecBlockError(
            f"Fetching '{name}' needs the package datasets: pip install 'specblock[train]', or "
            "give a JSONL file."
        ) from None
    public = PUBLIC[name]
    try:
        rows = datasets.load_dataset(*public.arguments, split=public.split, **public.options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        cause = str(error).strip().partition("\n")[0]
        raise SpecBlockError(
            f"'{name}' cannot be fetched ({cause}): check the network, or give a JSONL file."
        ) from None
    prompts: list[BenchPrompt] = []
    for number, row in enumerate(rows, 1):
        where, own = f"{name}, row {number}", f"{name}-{number}"
        try:
            read = {"task": public.task, **public.read(row)}
            prompts.append(BenchPrompt.from_row(read, own, where))
        except (RowError, KeyError) as error:
            raise SpecBlockError(
                f"{where} cannot be used ({error}): the set has changed; give a JSONL file."
            ) from None
    return prompts
