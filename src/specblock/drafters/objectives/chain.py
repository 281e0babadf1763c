"""Losses along a chain of steps, each predicting one token further from the same pair.

For drafters without blocks. Step 0 is trained at every start position; the later ones at a sample
of them. Every usable row counts, whether the steps before were right or not; only the figures for
the log follow the chain, because decoding gets to a step no other way.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specblock.drafters.objectives.batch import Batch, Tally
from specblock.drafters.objectives.head_loss import head_loss
from specblock.drafters.objectives.losses import Targets
from specblock.drafters.objectives.noise import keyed_noise
from specblock.drafters.objectives.reduction import Means


class ChainLoss:
    """What the steps of a batch add to while the loss is put together.

    Args:
        positions: start positions per sequence that go beyond step 0; 0 takes all of them.
        decay: step j weighs ``decay ** j``.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        steps: int,
        decay: float,
        positions: int,
        generator: torch.Generator,
    ):
        self._model, self._batch, self._decay = model, batch, decay
        self._tally, self._means = Tally.empty(1, steps), Means()
        length = batch.tokens.shape[1]
        noise = keyed_noise(batch.sequence_keys(), length, 1, generator)[..., 0]
        score = noise.to(batch.start.device).masked_fill(~batch.start, -1.0)
        order = score.topk(min(positions or length, length), dim=-1).indices.sort(dim=-1).values
        self.chosen = order  # int64 [B, M], pair indices in rising order
        self.live = batch.start.gather(1, order)  # bool [B, M]; False fills a short sequence up
        self._chain = self.live

    def first(self, hidden: Tensor) -> None:
        """Step 0 of all pairs, ``hidden [B, S, H]`` (before the final norm)."""
        length = self._batch.tokens.shape[1]
        targets = self._batch.targets
        usable = self._batch.start & targets.usable[:, :length]
        picked = usable.nonzero(as_tuple=True)
        terms, hit = self._heads(hidden[picked], targets.at(picked))
        self._means.add(1.0, terms)
        right = torch.zeros_like(usable)
        right[picked] = hit
        self._record(0, terms, hit)
        self._follow(right.gather(1, self.chosen), usable.gather(1, self.chosen))

    def step(self, step: int, hidden: Tensor) -> None:
        """A later step at the chosen pairs, ``hidden [B, M, H]``; pair i asks row ``i + step``."""
        targets, chosen = self._batch.targets, self.chosen
        rows = torch.arange(len(chosen), device=chosen.device)[:, None].expand_as(chosen)
        usable = targets.usable[rows, chosen + step] & self.live
        picked = usable.nonzero(as_tuple=True)
        asked = rows[picked], (chosen + step)[picked]
        terms, hit = self._heads(hidden[picked], targets.at(asked))
        self._means.add(self._decay**step, terms)
        on_chain = self._chain[picked]
        self._record(step, terms[on_chain], hit[on_chain])
        self._tally.live_rows[0, step] += float(self.live.sum())
        self._tally.live_hits[0, step] += float(hit[on_chain].sum())
        right = torch.zeros_like(usable)
        right[picked] = hit
        self._follow(right, usable)

    def total(self) -> tuple[Tensor, Tally]:
        """The loss and what to log of it."""
        self._tally.terms = self._means.terms()
        return torch.stack(self._tally.terms).sum(), self._tally

    def _heads(self, hidden: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        normed = self._model.norm(hidden)
        output = head_loss(normed, self._model.lm_head.weight, targets, top=1)
        return output.terms, output.ranks == 1

    def _record(self, step: int, terms: Tensor, hit: Tensor) -> None:
        self._tally.rows[0, step] += terms.numel()
        self._tally.hits[0, step] += float(hit.sum())
        self._tally.loss[0, step] += float(terms.detach().sum())

    def _follow(self, right: Tensor, usable: Tensor) -> None:
        # an unusable step leaves the chain as it was, a wrong one ends it
        self._chain = self._chain & (right | ~usable)
