"""Running methods against each other, interleaved prompt by prompt.

Speeds drift with the machine's temperature and its other work, so the methods answer every prompt
one right after the other, in an order drawn anew for each; a warm-up is discarded. The report is
written after every prompt: an interrupted run keeps what it has.
"""

from __future__ import annotations

import difflib
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from specblock.bench.divergence import Divergence, classify, thresholds_for
from specblock.bench.environment import describe_environment
from specblock.bench.prompts import BenchPrompt, Message
from specblock.bench.report import PLAIN, Row, summarise
from specblock.config import GenerationConfig
from specblock.errors import ConfigError, ContextError
from specblock.storage import write_atomically

__all__ = ["METHODS", "Method", "Progress", "run"]

# A method answers token ids under a config with a Generation.
Method = Callable[[Sequence[int], GenerationConfig], Any]
# Told the user's text before the methods answer it.
Announce = Callable[[str], None]
# Told after every prompt: how many are done, of how many, and the report so far.
Progress = Callable[[int, int, dict[str, Any]], None]

METHODS = (PLAIN, "specblock")
WARM_UP_TOKENS = 16


def run(
    speculator: Any,
    prompts: Sequence[BenchPrompt],
    *,
    methods: Sequence[str] | Mapping[str, Method] = METHODS,
    config: GenerationConfig | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    announce: Announce | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure methods on prompts and compare their outputs with plain decoding's.

    Args:
        speculator: a loaded Speculator; ``plain`` is its own loop without the drafter.
        prompts: what to answer. Later turns of a conversation continue plain decoding's answers
            (the first method's, where plain is not measured), so that all methods see the same.
        methods: names out of ``METHODS``, or names with callables.
        config: how to generate; greedy by default.
        seed: of the order of methods and of the bootstrap.
        out: JSON file, replaced after every prompt.
        announce: called before every turn.
        progress: called after every prompt.

    Returns:
        The report: ``methods``, ``divergences``, ``environment``, ``settings``,
        ``near_tie_thresholds``, ``skipped`` and ``rows``.

    Raises:
        ConfigError: an unknown method, or one that needs a drafter where there is none.
        SpecBlockError: the report cannot be written.
    """
    config = config or GenerationConfig()
    bench = _Bench(speculator, _resolve(speculator, methods), config, seed, announce)
    if prompts:
        bench.warm_up(prompts[0])
    for index, prompt in enumerate(prompts):
        bench.measure(index, prompt)
        report = bench.report()
        if out is not None:
            write_atomically(out, json.dumps(report, indent=1, allow_nan=False) + "\n")
        if progress is not None:
            progress(index + 1, len(prompts), report)
    return bench.report()


class _Bench:
    """The rows measured so far, and how the next ones are measured."""

    def __init__(
        self,
        speculator: Any,
        methods: dict[str, Method],
        config: GenerationConfig,
        seed: int,
        announce: Announce | None,
    ):
        self.speculator = speculator
        self.methods = methods
        self.config = config
        self.seed = seed
        self.announce = announce or (lambda text: None)
        self.rows: list[Row] = []
        self.divergences: list[Divergence] = []
        self.skipped: list[dict[str, str]] = []
        self.environment = describe_environment(speculator)

    def warm_up(self, prompt: BenchPrompt) -> None:
        short = self.config.replace(max_new_tokens=min(WARM_UP_TOKENS, self.config.max_new_tokens))
        # A prompt that does not fit is told of when it is measured.
        with suppress(ContextError):
            ids = self._encode(list(prompt.lead), prompt.turns[0])
            for method in self.methods.values():
                method(ids, short)

    def measure(self, index: int, prompt: BenchPrompt) -> None:
        """Let every method answer every turn of one prompt."""
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
                return
            self._record(prompt, turn, ids, order, answers)
            reference = answers.get(PLAIN, answers[next(iter(self.methods))])
            history += [
                {"role": "user", "content": text},
                {"role": "assistant", "content": reference.text},
            ]

    def _encode(self, history: list[Message], text: str) -> list[int]:
        return self.speculator.encode([*history, {"role": "user", "content": text}])

    def _record(
        self,
        prompt: BenchPrompt,
        turn: int,
        ids: list[int],
        order: list[str],
        answers: dict[str, Any],
    ) -> None:
        plain = answers.get(PLAIN)
        name = prompt.id if turn == 0 else f"{prompt.id}#{turn + 1}"
        for method in self.methods:
            answer = answers[method]
            found = None
            if plain is not None and method != PLAIN:
                found = classify(
                    self.speculator, ids, plain, answer, self.config, id=name, method=method
                )
            if found is not None:
                self.divergences.append(found)
            same = None if plain is None else found is None
            self.rows.append(_row(prompt, turn, method, order.index(method), answer, same))

    def report(self) -> dict[str, Any]:
        """Everything measured so far, as JSON values."""
        thresholds = thresholds_for(self.environment.get("dtype", "float32"))
        return {
            "methods": summarise(self.rows, list(self.methods), self.seed),
            "divergences": [item.to_dict() for item in self.divergences],
            "environment": self.environment,
            "settings": {"generation": self.config.to_dict(), "seed": self.seed},
            "near_tie_thresholds": vars(thresholds),
            "skipped": self.skipped,
            "rows": [row.to_dict() for row in self.rows],
        }


def _resolve(speculator: Any, methods: Sequence[str] | Mapping[str, Method]) -> dict[str, Method]:
    """Callables by name, in the order given."""
    if isinstance(methods, Mapping):
        return dict(methods)
    chosen: dict[str, Method] = {}
    for name in methods:
        if name not in METHODS:
            near = difflib.get_close_matches(name, METHODS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(METHODS)}."
            raise ConfigError(f"There is no method '{name}'; {hint}")
        if name != PLAIN and speculator.drafter is None:
            raise ConfigError(f"The method '{name}' needs a drafter: load one, or leave it out.")
        chosen[name] = _method(speculator, use_drafter=name != PLAIN)
    if not chosen:
        raise ConfigError(f"Name at least one method out of {', '.join(METHODS)}.")
    return chosen


def _method(speculator: Any, *, use_drafter: bool) -> Method:
    def answer(ids: Sequence[int], config: GenerationConfig) -> Any:
        return speculator.generate(list(ids), config, use_drafter=use_drafter)

    return answer


def _row(
    prompt: BenchPrompt, turn: int, method: str, order: int, answer: Any, identical: bool | None
) -> Row:
    stats = answer.stats
    accepted = stats.accepted_length
    return Row(
        id=prompt.id,
        turn=turn,
        task=prompt.task,
        method=method,
        order=order,
        prompt_tokens=answer.prompt_tokens,
        new_tokens=stats.new_tokens,
        finish_reason=answer.finish_reason,
        rounds=stats.rounds,
        accepted_length=accepted if accepted is not None and math.isfinite(accepted) else None,
        seconds=stats.seconds,
        prefill_seconds=stats.prefill_seconds,
        draft_seconds=stats.draft_seconds,
        verify_seconds=stats.verify_seconds,
        identical=identical,
    )
