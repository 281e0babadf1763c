"""A drafter for a target that nobody trained one for: empty until served answers fill it.

Copies of the text and the memory of answers draft from the first token on. The network has the
target's last layers, where these can be lent, and an input layer that knows nothing; so the budgets
do not ask it. What is served leaves features and tokens, and once they are enough the closed form
(:mod:`specblock.drafters.specblock.start`) is tried. When held-out answers say that drafted
rounds then pay, the budgets may ask, and the network learns as any other does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from specblock.adaptation.learning.beginning import Beginning, cost_of_a_round
from specblock.drafters.base import Budget
from specblock.drafters.light import route_drafter
from specblock.drafters.specblock.propose import SpecBlockDrafter
from specblock.drafters.specblock.start import start_layers
from specblock.target.model import Target
from specblock.training.data.answers import draft_vocabulary
from specblock.training.kinds import drafter_config, new_drafter
from specblock.training.recipe import DrafterRecipe

__all__ = ["beginning_for", "empty_drafter"]


@torch.no_grad()
def empty_drafter(network: nn.Module, tokenizer, *, blocks: int = 2) -> SpecBlockDrafter:
    """A drafter of the shape that training gives one for ``network``; always the same weights."""
    config = drafter_config(
        network, DrafterRecipe(), tokenizer, getattr(network, "name_or_path", "")
    )
    d2t, t2d, _ = draft_vocabulary(
        torch.zeros(config.vocab_size, dtype=torch.int64), config.draft_vocab_size
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = new_drafter(network, config, d2t, t2d)
        start_layers(model, network)
    embeddings = network.get_input_embeddings().weight
    model = model.to(device=network.device, dtype=network.dtype)
    model.input_layer.embed_tokens.weight = embeddings
    if network.device.type == "cpu":
        route_drafter(model)
    return SpecBlockDrafter(model.requires_grad_(False), blocks=blocks, untrained=True)


def beginning_for(target: Target, budgets: Sequence[Budget]) -> Beginning:
    """How an empty drafter of ``target`` begins; what a round costs is what its budgets know."""
    head = target.model.get_output_embeddings().weight
    return Beginning(head, partial(_round_cost, budgets[0]), partial(_break_even, budgets[0]))


def _round_cost(budget: Budget) -> float:
    return cost_of_a_round(getattr(budget, "costs", None))


def _break_even(budget: Budget) -> float:
    """Tokens of a round that pays where copies already bring so many times the plain speed.

    Copies and a network share the rounds: what the network must bring beside copies that bring S is
    between 1 (they serve other rounds) and S (the same ones): their geometric mean is taken.
    """
    costs = getattr(budget, "costs", None)
    speedup = 1.0 if costs is None else max(1.0, budget.price * costs.target_seconds(1))
    return _round_cost(budget) * math.sqrt(speedup)
