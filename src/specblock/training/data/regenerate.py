"""The target answers every training prompt: the drafter learns what the target would say.

Answers are drawn at a mixture of temperatures (paper's scripts: 40 % greedy, 30 % at 1.0, the
rest between) and appended to shards as they are finished, so a killed run resumes where it was.
They are written by the engine, so many at a time; where one ends, the next begins. Later turns of
a conversation are asked with the target's own answers to the earlier ones.

The draws of an answer are keyed by its conversation and turn. Where the target is exact (half
precision on the CPU) an answer is a function of these and the settings alone; elsewhere its company
may decide a near-tie.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from specblock.drafters.fingerprint import target_digest
from specblock.engine.engine import Engine, Handle, Request
from specblock.engine.loading import assemble
from specblock.engine.sequence import Seat, Sequence
from specblock.engine.statistics import GenerationStats
from specblock.errors import ModelError
from specblock.target.architecture.structure import text_config
from specblock.target.model import Target
from specblock.training.data import turns
from specblock.training.data.prompts import Prompt, check_ids
from specblock.training.data.shards import AnswerStore
from specblock.training.data.turns import Progress, Turn, answer_row, keyed_seed, turn_of
from specblock.tree.sampling import SamplingParams

__all__ = ["Question", "RegenerateConfig", "answers", "regenerate"]


@dataclass(frozen=True)
class RegenerateConfig:
    """How answers are drawn. Temperatures are (value, share) pairs; shares sum to 1."""

    max_new_tokens: int = 256
    max_prompt_tokens: int | None = 256  # a conversation ends before a longer turn
    batch_size: int = 64
    temperatures: tuple[tuple[float, float], ...] = turns.TEMPERATURES
    top_p: float = 0.95
    shard_rows: int = 20_000
    seed: int = 0


class Question(Request[list[int]]):
    """A turn whose answer is wanted.

    Args:
        ends: tokens that end an answer.

    Attributes:
        answer: its token ids so far, an end token included.
    """

    def __init__(self, turn: Turn, config: RegenerateConfig, ends: frozenset[int]):
        super().__init__(turn.ids, config.max_new_tokens)
        self.turn, self.answer, self._ends = turn, [], ends
        self.temperature = turns.temperature_of(turn.id, config.seed, config.temperatures)
        seed = keyed_seed(config.seed, turn)
        self._params = SamplingParams(self.temperature, top_p=config.top_p, seed=seed)

    def begin(self, target: Target) -> Sequence:
        """Decode plainly, up to an end token."""
        return Sequence(
            target, Seat(None, None, None), self.prompt, self._params, self.room,
            GenerationStats(), until=self._ends.__contains__,
        )  # fmt: skip

    def push(self, tokens: list[int]) -> tuple[list[int], bool]:
        """The sequence itself says where it ends."""
        self.answer += tokens
        return tokens, False

    def end(self, complete: bool) -> None:
        """Nothing is left to say."""

    def row(self, target: str | None) -> dict:
        """The row of an answer file."""
        stopped = self.answer[-1] in self._ends
        return answer_row(self.turn, self.answer, self.temperature, stopped, target)


def answers(
    model: nn.Module,
    asked: Iterator[Turn],
    ends: frozenset[int],
    config: RegenerateConfig,
    follow: Callable[[Question], Turn | None] = lambda question: None,
) -> Iterator[list[Question]]:
    """Answer turns, ``config.batch_size`` at a time; yields those that a step has ended.

    ``follow`` is told of every ended one and may give another turn, which is asked next.

    Raises:
        ModelError: no token is possible, or the architecture cannot be verified.
    """
    engine = Engine(assemble(model, None, None, owned=True).target, config.batch_size)
    open_questions: dict[Question, Handle] = {}

    def ask(turn: Turn) -> None:
        question = Question(turn, config, ends)
        open_questions[question] = engine.add(question)

    while True:
        while len(open_questions) < config.batch_size:
            turn = next(asked, None)
            if turn is None:
                break
            ask(turn)
        if not open_questions:
            return
        engine.step()
        ended = [question for question in open_questions if question.ended]
        for question in ended:
            del open_questions[question]
            if question.error is not None:
                raise ModelError(f"{_name(question.turn)}: {question.error}") from question.error
        if ended:
            yield ended
        for question in ended:
            turn = follow(question)
            if turn is not None:
                ask(turn)


def _name(turn: Turn) -> str:
    return f"Conversation '{turn.id}', turn {turn.number}"


def regenerate(
    model: nn.Module,
    prompts: list[Prompt],
    out: Path,
    ends: frozenset[int],
    config: RegenerateConfig,
    on_answers: Callable[[Progress], None] = lambda progress: None,
    max_seconds: float | None = None,
    tokenizer=None,
) -> int:
    """Append an answer for every turn without one; returns the number of new answers.

    ``out`` is a ``.jsonl`` file or a folder of shards. Rows: ``{"id", "turn", "prompt_ids",
    "answer_ids", "temperature", "finish_reason", "target"}``. ``tokenizer`` renders later turns;
    it may be left out where no conversation has any.

    Raises:
        ModelError: the target's trees cannot be verified, or it gives no possible token.
        SpecBlockError: ``out`` has answers of another target, or a prompt has a token that this
            one does not know.
    """
    started = time.monotonic()
    target = target_digest(model)
    with AnswerStore(out, config.shard_rows, turns.multi_turn_ids(prompts), target) as store:
        progress = Progress(turns.missing_answers(prompts, store))
        work = _Conversations(prompts, store, tokenizer, config, text_config(model).vocab_size)
        for ended in answers(model, work.first_turns(), ends, config, work.after):
            store.append([question.row(target) for question in ended])
            progress.answers += len(ended)
            progress.tokens += sum(len(question.answer) for question in ended)
            progress.seconds = time.monotonic() - started
            on_answers(progress)
            if max_seconds is not None and progress.seconds > max_seconds:
                break
    return progress.answers


class _Conversations:
    """Which turns lack an answer, one of a conversation at a time."""

    def __init__(
        self,
        prompts: list[Prompt],
        store: AnswerStore,
        tokenizer,
        config: RegenerateConfig,
        vocabulary: int,
    ):
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self._store, self._tokenizer = store, tokenizer
        self._limit, self._vocabulary = config.max_prompt_tokens, vocabulary

    def first_turns(self) -> Iterator[Turn]:
        """Of every conversation the first turn without an answer."""
        for prompt in self._prompts.values():
            turn = self._next(prompt, 0)
            if turn is not None:
                yield turn

    def after(self, question: Question) -> Turn | None:
        """The turn that follows an answered one."""
        return self._next(self._prompts[question.turn.id], question.turn.number + 1)

    def _next(self, prompt: Prompt, number: int) -> Turn | None:
        while number <= len(prompt.later) and self._store.has(prompt.id, number):
            number += 1
        turn = turn_of(prompt, number, self._store, self._tokenizer, self._limit)
        if turn is not None:
            check_ids(turn.ids, self._vocabulary, _name(turn))
        return turn
