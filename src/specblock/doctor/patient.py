"""Who is examined, and what the checks find out about it for each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from specblock.data import OWN_PROMPTS
from specblock.doctor.reading import Reading
from specblock.drafters.base import Drafter
from specblock.drafters.config import StoredConfig
from specblock.engine.answer import Generation
from specblock.engine.speculator import Speculator
from specblock.errors import FeatureLayersError, VocabularyMapError
from specblock.target.architecture.structure import text_config
from specblock.target.model import Target
from specblock.training.data.conversation import conversation
from specblock.training.data.prompts import read_prompts, user_turns
from specblock.training.data.rows import read_rows

__all__ = ["Answered", "Patient", "Request"]

MOST_PROMPT_TOKENS = 512


@dataclass(frozen=True)
class Request:
    """What is examined and how.

    Attributes:
        folder: the drafter's, in our layout or a published one. model: the target's name.
        load: loads it: network and tokenizer.
        prompts: JSONL; None takes our own. limit: how many are answered, with ``max_new_tokens``
            each.
        cache_dir: where calibrations are kept.
        on_step: is told what is being done.
    """

    folder: Path
    model: str
    load: Callable[[], tuple[nn.Module, Any]]
    prompts: Path | None = None
    limit: int = 4
    max_new_tokens: int = 48
    cache_dir: Path | None = None
    on_step: Callable[[str], None] = lambda step: None


@dataclass(frozen=True)
class Answered:
    """A prompt's token ids and its two answers, plain decoding's and the speculative one."""

    prompt: list[int]
    plain: Generation
    speculative: Generation


@dataclass
class Patient:
    """The request, and what checks leave for later ones.

    Attributes:
        workplace: a folder for what is converted; removed afterwards.
        network, tokenizer: the target as loaded. target: the same, ready to verify.
        folder: of the drafter in our layout. published: it was converted for this examination;
            named_layers: the ids in its own config.
        config, tensors: what it holds.
        refused: why a published folder could not be converted, where another check names it.
        drafter: ready to draft. speculator: both. answered: what they said.
        readings: what drafter and target say of the plain answers.
        tau: accepted length of the drafter alone, with a fixed budget.
    """

    request: Request
    workplace: Path
    network: Any = None
    tokenizer: Any = None
    folder: Path = field(init=False)
    published: bool = False
    named_layers: list[int] | None = None
    config: StoredConfig | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    refused: VocabularyMapError | FeatureLayersError | None = None
    drafter: Drafter | None = None
    speculator: Speculator | None = None
    answered: list[Answered] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    tau: float | None = None

    def __post_init__(self) -> None:
        self.folder = self.request.folder

    @property
    def layers(self) -> int:
        """Of the target."""
        return text_config(self.network).num_hidden_layers

    @property
    def vocabulary(self) -> int:
        """Rows of the target's input embeddings."""
        return text_config(self.network).vocab_size

    @cached_property
    def target(self) -> Target:
        """The target by itself. Raises ModelError where it cannot verify a tree."""
        layers = () if self.drafter is None else self.drafter.feature_layers
        return Target(self.network, layers, owned=True)

    @cached_property
    def prompts(self) -> list[list[int]]:
        """Token ids of the prompts, as conversations where there is a chat template, else as text.

        Raises :class:`specblock.errors.SpecBlockError` for a row that cannot be used.
        """
        path, limit = self.request.prompts or OWN_PROMPTS, self.request.limit
        most = min(MOST_PROMPT_TOKENS, self.target.context_length // 2)  # the answer needs room too
        if getattr(self.tokenizer, "chat_template", None):
            rows = read_prompts(
                path, self.tokenizer, limit=limit, max_tokens=most,
                vocabulary=self.vocabulary,
            )  # fmt: skip
            return [row.ids for row in rows]
        ids = []
        for row in read_rows(path):
            turns = user_turns(conversation(row.values))
            text = "\n".join(message["content"] for turn in turns[:1] for message in turn)
            ids.append(self.tokenizer(text)["input_ids"])
        return [one for one in ids if 0 < len(one) <= most][:limit]
