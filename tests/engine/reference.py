"""transformers' own ``generate`` as the reference, greedy or with our seeded draws."""

from __future__ import annotations

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from specblock.tree.sampling import SamplingParams, draw


class SeededDraw(LogitsProcessor):
    """Leaves the token that our sampler draws, so that ``generate`` samples as we do."""

    def __init__(self, params: SamplingParams, prompt_length: int):
        self.params, self.prompt_length = params, prompt_length

    def __call__(self, input_ids, scores):
        context = input_ids[0].tolist()
        token = draw(scores[0], self.params, context, self.prompt_length, len(context))
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([token]), 0.0)


def generate(model, tokens: list[int], params: SamplingParams, length: int) -> list[int]:
    """The new tokens of plain ``model.generate``, one after the other from a cache of its own."""
    output = model.generate(
        torch.tensor([tokens]),
        max_new_tokens=length,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        logits_processor=LogitsProcessorList([SeededDraw(params, len(tokens))]),
    )
    return output[0, len(tokens) :].tolist()
