"""One row of a batch: what transformers' processors and criteria see while it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation import EosTokenCriteria, MaxLengthCriteria

from specblock.engine.stateful import one_for_each

# The filters that `tree.sampling` has too, in its order, which is transformers'.
_OWN_FILTERS = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)


def split_filters(
    processors: Sequence[Any], config: GenerationConfig
) -> tuple[list[Any], dict[str, float]]:
    """For sampling: the processors to be called, and what stands for the filters at their end.

    Our filters keep the same tokens and need no sort of the whole vocabulary; only where the scores
    that they leave are asked for, they are called too.
    """
    rest, settings, place = list(processors), {"temperature": 1.0}, len(_OWN_FILTERS)
    if _keeps(config, config.output_scores):
        return rest, settings
    while rest and type(rest[-1]) in _OWN_FILTERS[:place] and _is_plain(rest[-1]):
        last = rest.pop()
        place = _OWN_FILTERS.index(type(last))
        name = ("temperature", "top_k", "top_p", "min_p")[place]
        settings[name] = getattr(last, name)
    return rest, settings


def _is_plain(warper: Any) -> bool:
    """Whether it takes other tokens away altogether, and may leave a single one."""
    removes = getattr(warper, "filter_value", -torch.inf) == -torch.inf
    return removes and getattr(warper, "min_tokens_to_keep", 1) == 1


@dataclass
class Row:
    """A row that is being written; the engine calls it as a processor and asks it for the end.

    Attributes:
        ids: [length] the row as it was given, padding included.
        prompt: those of its ids that the model sees.
        index, rows: its place in the batch.
        criteria, ends: what ends it, and the tokens that do.
        keep_scores, keep_logits: whether to keep, per token, the scores after and before the
            processors, float32 [1, V].
    """

    ids: Tensor
    prompt: list[int]
    index: int
    rows: int
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    ends: frozenset[int]
    keep_scores: bool = False
    keep_logits: bool = False
    new: list[int] = field(default_factory=list)
    stopped: bool = False
    scores: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    @property
    def processes(self) -> bool:
        """Whether the engine has to call it before each draw."""
        return bool(self.processors) or self.keep_scores or self.keep_logits

    def process(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [1, V] after the processors, which see padding and batch as generate shows them.

        Args:
            ids: [1, n] prompt without padding, and the new tokens.
            scores: float32 [1, V].
        """
        if self.keep_logits:
            self.logits.append(scores.clone())
        seen = torch.cat((self.ids[None], ids[:, len(self.prompt) :]), dim=1)
        if self.processors and self.rows > 1:
            # as many rows as a processor expects that holds something for each
            every = self.processors(seen.repeat(self.rows, 1), scores.repeat(self.rows, 1))
            scores = every[self.index : self.index + 1]
        else:
            scores = self.processors(seen, scores)
        if self.keep_scores:
            self.scores.append(scores)
        return scores

    def ended(self, token: int) -> bool:
        """Add a token; whether it is the last."""
        self.new.append(token)
        self.stopped = token in self.ends
        if self.criteria:
            so_far = torch.cat((self.ids, self.ids.new_tensor(self.new)))[None]
            scores = tuple(self.scores) if self.keep_scores else None
            self.stopped |= bool(self.criteria(so_far, scores).all())
        return self.stopped


def make_rows(
    model: Any,
    input_ids: Tensor,
    mask: Tensor | None,
    config: GenerationConfig,
    processors: Sequence[Any],
    criteria: Sequence[Any],
) -> list[Row]:
    """A row for each of ``input_ids [batch, length]``, shown by ``mask`` where there is one."""
    ends = frozenset(
        int(token)
        for criterion in criteria
        if isinstance(criterion, EosTokenCriteria)
        for token in criterion.eos_token_id.flatten()
    )
    asked = [c for c in criteria if not isinstance(c, EosTokenCriteria | MaxLengthCriteria)]
    count = len(input_ids)
    of_rows = one_for_each(count, processors, model), one_for_each(count, asked, model)
    return [
        Row(
            ids=ids,
            prompt=(ids if mask is None else ids[mask[index] != 0]).tolist(),
            index=index,
            rows=count,
            processors=LogitsProcessorList(own_processors),
            criteria=StoppingCriteriaList(own_criteria),
            ends=ends,
            keep_scores=_keeps(config, config.output_scores),
            keep_logits=_keeps(config, config.output_logits),
        )
        for index, (ids, own_processors, own_criteria) in enumerate(
            zip(input_ids, *of_rows, strict=True)
        )
    ]


def _keeps(config: GenerationConfig, asked: bool | None) -> bool:
    """Whether what is asked for is returned at all."""
    return bool(config.return_dict_in_generate and asked)


def steps(rows: Sequence[Row], kept: str, pad: int) -> tuple[Tensor, ...]:
    """What was kept of every token, ``[batch, V]`` a step, as generate returns it.

    After its end a row is padded: there the pad token is certain.
    """
    tensors = [getattr(row, kept) for row in rows]
    certain = torch.full_like(tensors[0][0], -torch.inf)
    certain[0, pad] = 0.0
    longest = max(len(of_row) for of_row in tensors)
    return tuple(
        torch.cat([of_row[step] if step < len(of_row) else certain for of_row in tensors])
        for step in range(longest)
    )
