"""What the target answers, plainly and greedily: the texts that rounds are played on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from specblock.bench.suites.prompts import BenchPrompt, Message
from specblock.config import GenerationConfig
from specblock.errors import ContextError

__all__ = ["Asked", "ask"]


@dataclass(frozen=True)
class Asked:
    """One turn of a prompt and the target's answer, as token ids."""

    id: str  # of the prompt; turns of one conversation share it
    turn: int
    task: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        lists = {name: list(getattr(self, name)) for name in ("prompt_ids", "answer_ids")}
        return {**asdict(self), **lists}

    @staticmethod
    def from_dict(state: dict[str, Any]) -> Asked:
        ids = (tuple(state[name]) for name in ("prompt_ids", "answer_ids"))
        return Asked(state["id"], state["turn"], state["task"], *ids)


def ask(
    speculator: Any,
    prompts: Sequence[BenchPrompt],
    max_new_tokens: int,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Asked]:
    """Answers of at least two tokens (the first comes with the prompt) at temperature 0.

    Later turns continue the answers. A turn that does not fit the context ends its conversation.
    """
    config, found = GenerationConfig(max_new_tokens=max_new_tokens), []
    for number, prompt in enumerate(prompts):
        history: list[Message] = list(prompt.lead)
        for turn, text in enumerate(prompt.turns):
            history.append({"role": "user", "content": text})
            try:
                ids = speculator.encode(history)
                answer = speculator.generate(ids, config, use_drafter=False)
            except ContextError:
                break
            if len(answer.token_ids) > 1:
                own = tuple(ids), tuple(answer.token_ids)
                found.append(Asked(prompt.id, turn, prompt.task, *own))
            history.append({"role": "assistant", "content": answer.text})
        progress(number + 1, len(prompts))
    return found
