"""Running methods against each other, interleaved prompt by prompt.

Speeds drift with the machine's temperature and its other work, so the methods answer every prompt
one right after the other, in an order drawn anew for each; a warm-up is discarded. Results are
saved after every prompt: an interrupted run keeps what it has, and can go on.
"""

from __future__ import annotations

import json
import random
import resource
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from specblock.bench.environment import describe_environment
from specblock.bench.measure.contender import Answer, Method
from specblock.bench.measure.divergence import Divergence, classify, near_tie_limit
from specblock.bench.measure.journal import Journal, digest_of
from specblock.bench.measure.methods import PLAIN
from specblock.bench.measure.rows import Row
from specblock.bench.report.intervals import RESAMPLES
from specblock.bench.report.summary import TAU, Summary
from specblock.bench.suites.prompts import BenchPrompt, Message
from specblock.budget.costs import CostTable
from specblock.config import GenerationConfig
from specblock.errors import ConfigError, ContextError
from specblock.storage import write_atomically

__all__ = ["Progress", "run"]

# Told the user's text before the methods answer it.
Announce = Callable[[str], None]
# Told after every prompt: how many are done, of how many, and the report so far, which has no
# intervals before the end.
Progress = Callable[[int, int, dict[str, Any]], None]

WARM_UP_TOKENS = 16


def run(
    speculator: Any,
    prompts: Sequence[BenchPrompt],
    *,
    methods: Mapping[str, Callable] | None = None,
    config: GenerationConfig | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    costs: Mapping[str, CostTable] | None = None,
    about: Mapping[str, Any] | None = None,
    kept: Mapping[str, Any] | None = None,
    announce: Announce | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure methods on prompts and compare their outputs with plain decoding's.

    Args:
        speculator: encodes the prompts, and its target judges divergences.
        prompts: what to answer. Later turns of a conversation continue plain decoding's answers
            (the first method's, where plain is not measured), so that all methods see the same.
        methods: functions of token ids and a config by name, that return a generation or an
            Answer; the speculator with and without its drafter, where they are left out.
        config: how to generate; greedy by default.
        seed: of the order of methods and of the bootstrap.
        out: JSON file, replaced after every prompt. resume: go on with what its journal has.
        costs: measured tables by method, ``""`` for all others: for the physical limit.
        about: added to the report, and what a resumed run must have in common with the first.
        kept: what a resumed run takes over from the first (see :class:`Journal`).
        announce, progress: called before every turn, and after every prompt.

    Returns the report; docs/benchmarks.md lists its fields.

    Raises ConfigError for no method, or for ``resume`` of another run.
    """
    config = config or GenerationConfig()
    methods = of_speculator(speculator) if methods is None else dict(methods)
    if not methods:
        raise ConfigError("Name at least one method to measure.")
    bench = _Bench(speculator, methods, config, seed, announce)
    bench.costs, bench.about = dict(costs or {}), dict(about or {})
    journal = None
    if out is not None:
        journal = Journal(out, bench.identity(prompts), kept)
        bench.take_over(journal.resume() if resume else journal.start())
    _measure_rest(bench, prompts, journal, out, progress)
    report = bench.report()
    if out is not None:
        write_report(out, report)
    return report


def _measure_rest(
    bench: _Bench,
    prompts: Sequence[BenchPrompt],
    journal: Journal | None,
    out: str | Path | None,
    progress: Progress | None,
) -> None:
    """The prompts that are not done yet, saved one by one."""
    start = bench.prompts_done
    if start < len(prompts):
        bench.warm_up(prompts[start])
    for index in range(start, len(prompts)):
        entry = bench.measure(index, prompts[index])
        report = bench.report(resamples=0)
        if journal is not None:
            journal.add(entry)
            write_report(out, report)
        if progress is not None:
            progress(index + 1, len(prompts), report)


def write_report(path: str | Path, report: Mapping[str, Any], rows: str = "rows") -> None:
    """Replace a report on the disk; every one of its ``rows`` takes one line."""
    figures = {name: value for name, value in report.items() if name != rows}
    head = json.dumps(figures, indent=1, allow_nan=False).removesuffix("\n}")
    lines = ",\n  ".join(json.dumps(row, allow_nan=False) for row in report[rows])
    write_atomically(path, f'{head},\n "{rows}": [\n  {lines}\n ]\n}}\n')


def of_speculator(speculator: Any) -> dict[str, Callable]:
    """A speculator without its drafter, and with it where it has one."""

    def method(use_drafter: bool) -> Callable:
        return lambda ids, config: speculator.generate(list(ids), config, use_drafter=use_drafter)

    return {PLAIN: method(False), **({"specblock": method(True)} if speculator.drafter else {})}


class _Bench:
    """The rows measured so far, and how the next ones are measured."""

    def __init__(
        self,
        speculator: Any,
        methods: Mapping[str, Callable],
        config: GenerationConfig,
        seed: int,
        announce: Announce | None,
    ):
        self.speculator, self.config, self.seed = speculator, config, seed
        self.methods: dict[str, Method] = {name: _answering(m) for name, m in methods.items()}
        self.announce = announce or (lambda text: None)
        self.rows: list[Row] = []
        self.divergences: list[dict[str, Any]] = []
        self.skipped: list[dict[str, str]] = []
        self.prompts_done = 0
        self.environment = describe_environment(speculator)
        self.costs: dict[str, CostTable] = {}
        self.about: dict[str, Any] = {}

    def identity(self, prompts: Sequence[BenchPrompt]) -> dict[str, Any]:
        """What two runs must have in common for one to go on with the other's results."""
        machine = ("model", "dtype", "device", "threads", "cpu", "gpu")
        return {
            "methods": list(self.methods),
            "generation": self.config.to_dict(),
            "seed": self.seed,
            "prompts": digest_of(prompts),
            **{name: self.environment.get(name) for name in machine},
            **self.about,
        }

    def take_over(self, entries: Sequence[Mapping[str, Any]] | None) -> None:
        """Results of an earlier run, in the order of its prompts."""
        for entry in entries or ():
            self.rows += [Row.from_dict(row) for row in entry["rows"]]
            self.divergences += entry["divergences"]
            self.skipped += entry["skipped"]
            self.prompts_done += 1

    def warm_up(self, prompt: BenchPrompt) -> None:
        short = self.config.replace(max_new_tokens=min(WARM_UP_TOKENS, self.config.max_new_tokens))
        # A prompt that does not fit is told of when it is measured.
        with suppress(ContextError):
            ids = self._encode(list(prompt.lead), prompt.turns[0])
            for method in self.methods.values():
                method(ids, short)

    def measure(self, index: int, prompt: BenchPrompt) -> dict[str, Any]:
        """Let every method answer every turn of one prompt; what is new, as JSON values."""
        before = len(self.rows), len(self.divergences), len(self.skipped)
        order = list(self.methods)
        random.Random(f"{self.seed}:{index}").shuffle(order)
        history: list[Message] = list(prompt.lead)
        for turn, text in enumerate(prompt.turns):
            self.announce(text)
            try:
                ids = self._encode(history, text)
                answers = {name: self.methods[name](ids, self.config) for name in order}
            except ContextError as error:
                self.skipped.append({"id": prompt.id, "turn": str(turn), "reason": str(error)})
                break
            self._record(prompt, turn, ids, order, answers)
            reference = answers.get(PLAIN, answers[next(iter(self.methods))])
            history += [
                {"role": "user", "content": text},
                {"role": "assistant", "content": reference.generation.text},
            ]
        self.prompts_done += 1
        rows, divergences, skipped = before
        return {
            "id": prompt.id,
            "rows": [row.to_dict() for row in self.rows[rows:]],
            "divergences": self.divergences[divergences:],
            "skipped": self.skipped[skipped:],
        }

    def _encode(self, history: list[Message], text: str) -> list[int]:
        return self.speculator.encode([*history, {"role": "user", "content": text}])

    def _record(
        self,
        prompt: BenchPrompt,
        turn: int,
        ids: list[int],
        order: list[str],
        answers: Mapping[str, Answer],
    ) -> None:
        plain = answers.get(PLAIN)
        name = prompt.id if turn == 0 else f"{prompt.id}#{turn + 1}"
        for method in self.methods:
            found: Divergence | None = None
            if plain is not None and method != PLAIN:
                pair = plain.generation, answers[method].generation
                found = classify(self.speculator, ids, *pair, self.config, id=name, method=method)
            if found is not None:
                self.divergences.append(found.to_dict())
            same = None if plain is None else found is None
            self.rows.append(
                Row.of(prompt, turn, method, order.index(method), answers[method], same)
            )

    def report(self, resamples: int = RESAMPLES) -> dict[str, Any]:
        """Everything measured so far, as JSON values."""
        dtype = self.environment.get("dtype", "float32")
        summary = Summary(self.rows, self.costs, self.seed, resamples)
        return {
            "methods": summary.methods(list(self.methods)),
            "divergences": self.divergences,
            "environment": {**self.environment, "process_peak_bytes": _process_peak_bytes()},
            "settings": {"generation": self.config.to_dict(), "seed": self.seed, **self.about},
            "accepted_length_is": TAU,
            "near_tie_thresholds": {"dtype": dtype, "logits": near_tie_limit(dtype)},
            "costs": {name: table.to_dict() for name, table in self.costs.items()},
            "skipped": self.skipped,
            "rows": [row.to_dict() for row in self.rows],
        }


def _process_peak_bytes() -> int:
    """The most memory that this process has had resident, everything loaded included."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _answering(method: Callable) -> Method:
    """The method, its generation wrapped where it is bare."""

    def answer(ids: Sequence[int], config: GenerationConfig) -> Answer:
        given = method(ids, config)
        return given if isinstance(given, Answer) else Answer(given)

    return answer
