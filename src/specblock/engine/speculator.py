"""The object a program holds: a target, maybe a drafter, and how to generate with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, TypeVar

import torch

from specblock.budget.costs import CostTable
from specblock.config import GenerationConfig
from specblock.drafters.base import Budget, Drafter
from specblock.drafters.lookup.copies import TextCopies
from specblock.engine.answer import Answer, Chunk, Generation, Learner
from specblock.engine.engine import Engine, Handle
from specblock.engine.seats import Seats
from specblock.engine.sequence import Seat
from specblock.engine.stateful import one_for_each
from specblock.engine.text import TextStream
from specblock.errors import ContextError
from specblock.target.chat.ends import end_tokens
from specblock.target.chat.messages import checked_ids, checked_messages
from specblock.target.chat.template import chat_tokens
from specblock.target.model import Target
from specblock.tree.sampling import Processor, SamplingParams

Asked = TypeVar("Asked", bound=Answer)
Prompt = str | list[dict[str, str]] | list[int] | torch.Tensor


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
        copies: TextCopies | None = None,
    ):
        if drafter is not None and budget is None:
            raise ValueError("a drafter needs a budget")
        self.target, self.tokenizer = target, tokenizer
        self.drafter, self.budget, self.costs = drafter, budget, costs
        self.sampling_budget = sampling_budget or budget
        self.copies = copies
        # learns from every answer that the drafter helps with (specblock.adaptation.doorway.adapt)
        self.adaptation: Learner | None = None
        self.engine = Engine(target)
        self.seats = Seats(Seat(drafter, budget, self.sampling_budget, copies))

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        generation_config: GenerationConfig | None = None,
        *,
        use_drafter: bool = True,
        logits_processor: Sequence[Processor] = (),
        **settings,
    ) -> Generation | list[Generation]:
        """Generate to the end. ``settings`` override single fields of ``generation_config``.

        Args:
            prompt: text (put into the chat template as a user turn), messages, or token ids
                (taken as they are): a list, or a tensor of one row. A list of such prompts is
                answered together, each as it would be alone.
            logits_processor: transformers' ``LogitsProcessor`` or anything that is called like it;
                applied between penalties and temperature, once per token of the text, in order.
                Of several prompts each gets a copy of what may keep a state.

        Returns:
            A generation, or one for each prompt of a list, in its order.

        Raises:
            ContextError: the prompt is empty or too long. ConfigError: a setting is wrong.
            ModelError: no token is possible, or there is no chat template.
            RefusedByTemplateError: the chat template refuses the messages.
        """
        several = _is_several(prompt)
        prompts = list(prompt) if several else [prompt]
        processors = one_for_each(len(prompts), logits_processor, self.target.model)
        asked = [
            self._answer(one, generation_config, settings, use_drafter, own)
            for one, own in zip(prompts, processors, strict=True)
        ]
        with ExitStack() as stack:
            handles = [self.engine.add(answer).until_closed(stack) for answer in asked]
            answers = [_whole(list(handle)) for handle in handles]
        return answers if several else answers[0]

    def stream(
        self,
        prompt: Prompt,
        generation_config: GenerationConfig | None = None,
        *,
        use_drafter: bool = True,
        logits_processor: Sequence[Processor] = (),
        **settings,
    ) -> Iterator[Chunk]:
        """Like :meth:`generate`, round by round. Several may be open at a time, in any threads."""
        return self._chunks(
            self._answer(prompt, generation_config, settings, use_drafter, logits_processor)
        )

    def ask(
        self,
        prompt: Prompt,
        generation_config: GenerationConfig | None = None,
        *,
        use_drafter: bool = True,
        logits_processor: Sequence[Processor] = (),
        **settings,
    ) -> Handle[Chunk]:
        """Like :meth:`stream`, for ``async for`` as well, and to be cancelled by who leaves it."""
        return self.engine.add(
            self._answer(prompt, generation_config, settings, use_drafter, logits_processor)
        )

    def _answer(
        self,
        prompt: Prompt,
        config: GenerationConfig | None,
        settings: dict[str, Any],
        drafting: bool,
        processors: Sequence[Processor],
        kind: type[Answer] = Answer,
    ) -> Answer:
        config = (config or GenerationConfig()).replace(**settings)
        ids = self.encode(prompt)
        params = replace(config.sampling(), processors=tuple(processors))
        drafting = drafting and self.drafter is not None
        ends = frozenset() if config.ignore_eos else self._end_tokens(config)
        return kind(
            ids, config, params, self.seats if drafting else None,
            TextStream(self.tokenizer, config.stop_strings), ends,
            self.adaptation if drafting else None,
        )  # fmt: skip

    def request(
        self,
        prompt: Prompt,
        generation_config: GenerationConfig,
        logits_processor: Sequence[Processor] = (),
        kind: type[Asked] = Answer,
    ) -> Asked:
        """What :meth:`ask` adds to the engine, as one of the caller's own ``kind``."""
        return self._answer(prompt, generation_config, {}, True, logits_processor, kind)

    def _chunks(self, answer: Answer) -> Iterator[Chunk]:
        handle = self.engine.add(answer)
        try:
            yield from handle
        finally:
            handle.cancel()

    def close(self) -> None:
        """Finish what an adaptation does in the background, and save it."""
        if self.adaptation is not None:
            self.adaptation.close()

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
        if not isinstance(prompt, list | tuple):
            raise ContextError(
                f"A prompt is a text, a list of messages or a list of token ids, not "
                f"{type(prompt).__name__}; of a tokenizer's output give its input_ids."
            )
        if prompt and isinstance(prompt[0], dict):
            if not self.tokenizer.chat_template:
                raise ContextError(
                    "This model has no chat template; give plain text with --raw, or token ids."
                )
            prompt = chat_tokens(self.tokenizer, checked_messages(prompt))
        if not prompt:
            raise ContextError("The prompt is empty; write something to answer.")
        return checked_ids(prompt, self.target.vocab_size)

    def _end_tokens(self, config: GenerationConfig) -> frozenset[int]:
        if config.eos_token_id is not None:
            return frozenset(config.eos_token_id)
        return self.end_tokens()

    def end_tokens(self) -> frozenset[int]:
        """The tokens at which the model ends an answer."""
        return end_tokens(self.target.model, self.tokenizer)


def _is_several(prompt: Prompt | Sequence[Prompt]) -> bool:
    """Whether it is a list of prompts, not one: its items are texts, lists or tensors."""
    if not isinstance(prompt, list | tuple) or not prompt:
        return False
    return isinstance(prompt[0], str | list | tuple | torch.Tensor)


def _whole(chunks: list[Chunk]) -> Generation:
    last = chunks[-1]
    text = "".join(chunk.text for chunk in chunks)
    ids = [token for chunk in chunks for token in chunk.token_ids]
    return Generation(text, ids, last.finish_reason, last.stats.prompt_tokens, last.stats)
