"""The object a program holds: a target, maybe a drafter, and how to generate with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from specblock.config import GenerationConfig
from specblock.drafters.base import Budget, Drafter
from specblock.drafters.lookup.copies import TextCopies
from specblock.engine.rounds import decode
from specblock.engine.statistics import GenerationStats
from specblock.engine.text import TextStream
from specblock.engine.turns import turn_of
from specblock.errors import ContextError
from specblock.target.chat.template import chat_tokens
from specblock.target.model import Target
from specblock.tree.cost import CostTable
from specblock.tree.sampling import Processor, SamplingParams

if TYPE_CHECKING:
    from specblock.adaptation.config import AdaptationConfig
    from specblock.adaptation.feedback.observer import FeedbackObserver

Prompt = str | list[dict[str, str]] | list[int] | torch.Tensor


@dataclass(frozen=True)
class Chunk:
    """A piece of a generation: new ``text`` and ``token_ids``; the last has a ``finish_reason``.

    Text lags behind tokens where a character or a stop string may be incomplete.
    """

    text: str
    token_ids: list[int]
    finish_reason: str | None
    stats: GenerationStats


@dataclass(frozen=True)
class Generation:
    """A finished generation. ``token_ids`` are the new tokens, an end-of-turn token included;
    ``finish_reason`` is ``"stop"`` (end token or stop string) or ``"length"``."""

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int
    stats: GenerationStats


class Speculator:
    """Generates with a target and a drafter; the output is the target's alone.

    Args:
        target: the model being accelerated.
        tokenizer: its tokenizer, with a chat template for conversations.
        drafter: None decodes plainly.
        budget: how much to draft; required with a drafter.
        costs: the measured cost table, if there is one.
        sampling_budget: the same for sampled decoding, where the drafter's probabilities mean
            something else; the greedy one where it is left out.
        adapt: let the drafter learn from what it serves; :meth:`close` saves what it learned. Only
            a SpecBlock drafter learns; answers are remembered for all.
        copies: also draft what followed the same words earlier in the text, and where the drafter
            adapts in earlier answers; only with a drafter.
    """

    def __init__(
        self,
        target: Target,
        tokenizer,
        drafter: Drafter | None = None,
        budget: Budget | None = None,
        costs: CostTable | None = None,
        sampling_budget: Budget | None = None,
        adapt: AdaptationConfig | None = None,
        copies: TextCopies | None = None,
    ):
        if drafter is not None and budget is None:
            raise ValueError("a drafter needs a budget")
        self.target, self.tokenizer = target, tokenizer
        self.drafter, self.budget, self.costs = drafter, budget, costs
        self.sampling_budget = sampling_budget or budget
        self.copies = copies
        self.adaptation = None
        if adapt is not None:
            from specblock.adaptation.doorway import adaptation_of  # only where it is wanted

            budgets = budget, self.sampling_budget
            self.adaptation = adaptation_of(drafter, adapt, budgets, target.vocab_size)
            if copies is not None:
                copies.memory = self.adaptation.memory

    def generate(
        self,
        prompt: Prompt,
        generation_config: GenerationConfig | None = None,
        *,
        use_drafter: bool = True,
        logits_processor: Sequence[Processor] = (),
        **settings,
    ) -> Generation:
        """Generate to the end. ``settings`` override single fields of ``generation_config``.

        Args:
            prompt: text (put into the chat template as a user turn), messages, or token ids
                (taken as they are): a list, or a tensor of one row.
            logits_processor: transformers' ``LogitsProcessor`` or anything that is called like it;
                applied between penalties and temperature, once per token of the text, in order.

        Raises:
            ContextError: the prompt is empty or too long. ConfigError: a setting is wrong.
            ModelError: no token is possible, or there is no chat template.
            RefusedByTemplateError: the chat template refuses the messages.
            BusyError: this thread has not finished another text of this model. Those of other
                threads are waited for.
        """
        text, ids, last = [], [], None
        for chunk in self.stream(
            prompt, generation_config, use_drafter=use_drafter, logits_processor=logits_processor,
            **settings,
        ):  # fmt: skip
            text.append(chunk.text)
            ids += chunk.token_ids
            last = chunk
        return Generation(
            "".join(text), ids, last.finish_reason, last.stats.prompt_tokens, last.stats
        )

    def stream(
        self,
        prompt: Prompt,
        generation_config: GenerationConfig | None = None,
        *,
        use_drafter: bool = True,
        logits_processor: Sequence[Processor] = (),
        **settings,
    ) -> Iterator[Chunk]:
        """Like :meth:`generate`, round by round."""
        config = generation_config or GenerationConfig()
        config = config.replace(**settings) if settings else config
        ids = self.encode(prompt)
        drafter = self.drafter if use_drafter else None
        stats = GenerationStats()
        params = replace(config.sampling(), processors=tuple(logits_processor))
        adapting = self.adaptation is not None and drafter is not None
        observer = self.adaptation.observer(ids) if adapting else None
        rounds = decode(
            self.target,
            drafter,
            self.budget_for(params),
            ids,
            params,
            config.max_new_tokens,
            stats,
            observer,
            self.copies,
        )
        ends = frozenset() if config.ignore_eos else self._end_tokens(config)
        text = TextStream(self.tokenizer, config.stop_strings)
        chunks = self._chunks(rounds, text, ends, stats)
        return self._in_turn(
            chunks if observer is None else self._learning(chunks, observer, stats)
        )

    def _in_turn(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """The same chunks, and nobody else's meanwhile."""
        with turn_of(self.target.model):
            yield from chunks

    def _learning(
        self, chunks: Iterator[Chunk], observer: FeedbackObserver, stats: GenerationStats
    ) -> Iterator[Chunk]:
        """The same chunks; when the request has ended, what it taught is put to use."""
        complete = False
        try:
            yield from chunks
            complete = True
        finally:
            self.adaptation.finished(observer, stats, complete=complete)

    def close(self) -> None:
        """Finish what an adaptation does in the background, and save it."""
        if self.adaptation is not None:
            self.adaptation.close()

    def _chunks(
        self,
        rounds: Iterator[list[int]],
        text: TextStream,
        ends: frozenset[int],
        stats: GenerationStats,
    ) -> Iterator[Chunk]:
        reason = None
        for tokens in rounds:
            end = next((place for place, token in enumerate(tokens) if token in ends), None)
            if end is not None:
                stats.new_tokens -= len(tokens) - end - 1
                tokens, reason = tokens[: end + 1], "stop"
            piece, used = text.push_until_stop(tokens)
            if piece.stopped:
                stats.new_tokens -= len(tokens) - used
                tokens, reason = tokens[:used], "stop"
            if reason is not None:
                tail = "" if piece.stopped else text.flush()
                yield Chunk(piece.text + tail, tokens, reason, stats)
                return
            yield Chunk(piece.text, tokens, None, stats)
        yield Chunk(text.flush(), [], "length", stats)

    def budget_for(self, params: SamplingParams) -> Budget | None:
        """The budget that has learned from decoding of this kind."""
        return self.budget if params.greedy else self.sampling_budget

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; raises as :meth:`generate` does."""
        if isinstance(prompt, torch.Tensor):
            if prompt.dim() > 1 and prompt.numel() != prompt.shape[-1]:
                raise ContextError(
                    f"A prompt is one row of token ids, not a tensor of shape {[*prompt.shape]}; "
                    "generate for one row at a time."
                )
            prompt = prompt.flatten().tolist()
        if isinstance(prompt, str):
            if not prompt.strip():
                raise ContextError("The prompt is empty; write something to answer.")
            prompt = [{"role": "user", "content": prompt}]
        if prompt and isinstance(prompt[0], dict):
            if not self.tokenizer.chat_template:
                raise ContextError(
                    "This model has no chat template; give plain text with --raw, or token ids."
                )
            prompt = chat_tokens(self.tokenizer, prompt)
        if not prompt:
            raise ContextError("The prompt is empty; write something to answer.")
        vocabulary = self.target.vocab_size
        wrong = next((token for token in prompt if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise ContextError(
                f"Token id {wrong} is outside the model's vocabulary of {vocabulary}; "
                "encode the prompt with this model's tokenizer."
            )
        return list(prompt)

    def _end_tokens(self, config: GenerationConfig) -> frozenset[int]:
        if config.eos_token_id is not None:
            return frozenset(config.eos_token_id)
        return self.end_tokens()

    def end_tokens(self) -> frozenset[int]:
        """The tokens at which the model ends an answer."""
        ends = self.target.model.generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        if self.tokenizer is not None and self.tokenizer.eos_token_id is not None:
            ends.append(self.tokenizer.eos_token_id)
        return frozenset(ends)
