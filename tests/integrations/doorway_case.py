"""The doorway beside transformers' own generate, with a drafter whose trees get walked deep."""

from __future__ import annotations

import torch

from specblock import custom_generate
from specblock.drafters.base import FixedBudget
from specblock.engine.speculator import Speculator
from specblock.integrations.transformers import hf
from specblock.target.model import Target
from tests.tiny import OracleDrafter, make_target


class Oracles(OracleDrafter):
    """Knows the continuation of every prompt, by the prompt's length."""

    def __init__(self, sequences: dict[int, list[int]]):
        super().__init__([], 0)
        self.sequences = sequences

    def another(self):
        return Oracles(self.sequences)

    def prefill(self, features, tokens):
        self.prompt_length = len(tokens)
        self.continuation = self.sequences[len(tokens)]
        super().prefill(features, tokens)


class Doorway:
    """``plain`` is transformers' generate; calling it is the same through ours."""

    def __init__(self, monkeypatch, architecture="llama", **overrides):
        self.model = make_target(architecture, **overrides)
        self.target = Target(make_target(architecture, **overrides), (0, 2, 4))
        self.monkeypatch = monkeypatch
        self.speculator = None

    def plain(self, ids, **arguments):
        return self.model.generate(ids, **arguments)

    def __call__(self, ids, known=None, custom=custom_generate, **arguments):
        """``known``: sequences as generate returns them, which the drafter then proposes."""
        drafter = None
        if known is not None:
            mask = arguments.get("attention_mask")
            mask = torch.ones_like(ids) if mask is None else mask
            lengths = mask.sum(dim=1).tolist()
            rows = [row[ids.shape[1] :].tolist() for row in known]
            drafter = Oracles(dict(zip(lengths, rows, strict=True)))
        self.speculator = Speculator(self.target, None, drafter, FixedBudget(12, 4))
        self.monkeypatch.setattr(hf, "speculator_for", lambda *_: self.speculator)
        return self.target.model.generate(ids, custom_generate=custom, **arguments)
