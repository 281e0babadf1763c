"""The drafter's total loss on a batch: trunk, block 1, and later blocks from earlier slots."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from specblock.drafters.objectives.batch import Batch, Tally
from specblock.drafters.objectives.head_loss import head_loss
from specblock.drafters.objectives.losses import Targets, rank_bucket, rank_terms
from specblock.drafters.objectives.noise import keyed_noise
from specblock.drafters.objectives.reduction import Means
from specblock.drafters.specblock.forward import Block, Trunk, run_block, run_trunk
from specblock.drafters.specblock.network import RANK_TOP, SpecBlockModel
from specblock.drafters.specblock.objective_config import ObjectiveConfig


@dataclass(frozen=True)
class SpecBlockObjective:
    """The paper's loss as an :class:`specblock.drafters.objectives.batch.Objective`.

    ``block_size``: the drafter's K.
    """

    config: ObjectiveConfig
    block_size: int

    @property
    def pad_rows(self) -> int:
        return (self.config.blocks + 1) * self.block_size

    def __call__(
        self, model: SpecBlockModel, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tally]:
        return total_loss(model, batch, self.config, generator)


@dataclass
class _Ledger:
    """What the slots of a batch add to while the loss is put together."""

    config: ObjectiveConfig
    tally: Tally
    means: Means = field(default_factory=Means)

    def add(
        self, block: int, slot: int, heads: _Heads, live: Tensor | None, usable: Tensor | None
    ) -> None:
        """One slot's rows: their shares of the loss, and what to log of them.

        ``live``: bool, the positions that the slot was run at; ``usable``: which of them have a
        target. None of both for the trunk, all of whose rows are there.
        """
        tally, right = self.tally, float((heads.ranks == 1).sum())
        labels, classes = rank_bucket(heads.ranks), heads.rank_logits.shape[-1]
        every = live is None or self.config.mean_over_valid
        rows = None if every else int((live & usable).sum())
        self.means.add(self.config.slot_decay**slot, heads.terms, rows)
        terms = rank_terms(heads.rank_logits, labels)
        self.means.add_by_class(terms, labels, classes, self.config.rank_budget, ("rank", block))
        tally.rows[block, slot] += heads.terms.numel()
        tally.hits[block, slot] += right
        tally.loss[block, slot] += float(heads.terms.detach().sum())
        pairs = labels * classes + heads.rank_logits.argmax(-1)
        tally.confusion += torch.bincount(pairs, minlength=classes**2).view(classes, -1).cpu()
        if live is not None:
            tally.live_rows[block, slot] += float(live.sum())
            tally.live_hits[block, slot] += right


def total_loss(
    model: SpecBlockModel, batch: Batch, config: ObjectiveConfig, generator: torch.Generator
) -> tuple[Tensor, Tally]:
    """The loss of one micro-batch and what to log of it.

    Slot 0 is trained at every start position (it comes out of the trunk). The later slots and
    blocks cost K rows each, so they run at ``config.positions`` sampled positions per sequence.
    """
    ledger = _Ledger(config, Tally.empty(config.blocks, model.config.block_size))
    length = batch.tokens.shape[1]
    noise = keyed_noise(batch.sequence_keys(), length, config.blocks, generator)
    noise = noise.to(batch.tokens.device)
    trunk = run_trunk(model, batch.features, batch.tokens)
    first_right = _trunk_loss(model, trunk, batch, ledger)
    chosen, live = _sample_positions(batch.start, first_right, config, noise[..., 0])
    tokens = batch.tokens.gather(1, chosen)
    condition = _rows(trunk.condition, chosen)
    block = run_block(model, trunk, condition, tokens, chosen)
    offset = torch.zeros_like(chosen)
    known = first_right.gather(1, chosen)
    right = _block_loss(model, block, batch, chosen, offset, live, ledger, 0, known)
    parents: list[tuple[Block, Tensor]] = []
    for index in range(1, config.blocks):
        used = _draw_depth(right, noise[..., index].gather(1, chosen))
        parents.append((block, used))
        offset = offset + used
        condition = block.hidden.gather(
            2, (used - 1)[..., None, None].expand(-1, -1, 1, block.hidden.shape[-1])
        ).squeeze(2)
        at = (chosen + offset).clamp(max=length - 1)
        inside = live & (chosen + offset < length)
        block = run_block(model, trunk, condition, batch.tokens.gather(1, at), chosen, parents)
        right = _block_loss(model, block, batch, chosen, offset, inside, ledger, index)
    ledger.tally.terms = ledger.means.terms()
    return torch.stack(ledger.tally.terms).sum(), ledger.tally


def _rows(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def _trunk_loss(model: SpecBlockModel, trunk: Trunk, batch: Batch, ledger: _Ledger) -> Tensor:
    """Slot 0 at every start position; returns where it was right, bool [B, S]."""
    length = batch.tokens.shape[1]
    usable = batch.start & batch.targets.usable[:, :length]
    rows = usable.flatten().nonzero().flatten()
    targets = _flat_targets(batch.targets, length).at(rows)
    heads = _heads(model, trunk.hidden[:, :, 0].flatten(0, 1)[rows], targets)
    ledger.add(0, 0, heads, None, None)
    found = torch.zeros_like(usable).flatten()
    found[rows] = heads.ranks == 1
    return found.view_as(usable)


def _flat_targets(targets: Targets, length: int) -> Targets:
    return Targets(
        targets.ids[:, :length].flatten(0, 1),
        targets.probabilities[:, :length].flatten(0, 1),
        targets.usable[:, :length].flatten(),
    )


@dataclass(frozen=True)
class _Heads:
    """What both heads say at R rows: cross-entropies ``terms`` fp32 [R], ``ranks`` int64 [R] of the
    target's best token, ``rank_logits [R, 4]``."""

    terms: Tensor
    ranks: Tensor
    rank_logits: Tensor


def _heads(model: SpecBlockModel, hidden: Tensor, targets: Targets) -> _Heads:
    normed = model.norm(hidden)
    output = head_loss(normed, model.lm_head.weight, targets, top=RANK_TOP)
    rank_logits = model.rank_logits_of_top(normed, output.top)
    return _Heads(output.terms, output.ranks, rank_logits)


def _block_loss(
    model: SpecBlockModel,
    block: Block,
    batch: Batch,
    chosen: Tensor,
    offset: Tensor,
    live: Tensor,
    ledger: _Ledger,
    index: int,
    known: Tensor | None = None,
) -> Tensor:
    """Draft and rank loss of one block; returns per slot whether it was right, bool [B, M, K].

    Only rows on a valid prefix reach the output head: what the mask drops is never computed.
    ``known``: where slot 0 was right, bool [B, M]; the trunk has trained block 1's already.
    """
    config, slots = ledger.config, model.config.block_size
    batch_rows = torch.arange(chosen.shape[0], device=chosen.device)[:, None].expand_as(chosen)
    chain = live.clone()
    last = batch.targets.usable.shape[1] - 1
    rights = []
    for slot in range(slots):
        row = (chosen + offset + slot).clamp(max=last)
        usable = batch.targets.usable[batch_rows, row]
        if slot == 0 and known is not None:
            right = known & chain & usable
        else:
            picked = (chain & usable).nonzero(as_tuple=True)
            targets = batch.targets.at((batch_rows[picked], row[picked]))
            heads = _heads(model, block.hidden[:, :, slot][picked], targets)
            ledger.add(index, slot, heads, live, usable)
            right = torch.zeros_like(chain)
            right[picked] = heads.ranks == 1
        rights.append(right)
        if config.valid_prefix_mask:
            # an unusable slot leaves the chain as it was, a wrong one ends it
            chain = chain & (right | ~usable)
    return torch.stack(rights, dim=-1)


def _sample_positions(
    start: Tensor, first_right: Tensor, config: ObjectiveConfig, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """``config.positions`` start positions per sequence, int64 [B, M], and which are real.

    ``noise``: uniform [B, S].

    With the valid-prefix mask those where slot 0 was right are preferred: elsewhere block 1
    trains nothing, though a second block from slot 0's alternatives still does.
    """
    score = noise + (first_right.float() * 0.5 if config.valid_prefix_mask else 0.0)
    score = score.masked_fill(~start, -1.0)
    count = min(config.positions, start.shape[1])
    best = score.topk(count, dim=-1)
    order = best.indices.sort(dim=-1)
    live = (best.values >= 0).gather(1, order.indices)
    return order.values, live


def _draw_depth(right: Tensor, noise: Tensor) -> Tensor:
    """M in 1..K per position: the next block starts from slot M - 1. ``noise``: uniform [B, M].

    Drawn uniformly from the slots that decoding could reach there, i.e. those whose predecessors
    were right: a block behind a wrong token is never drafted.
    """
    slots = right.shape[-1]
    reachable = right.long().cumprod(-1).sum(-1).clamp(max=slots - 1) + 1
    return (noise * reachable).floor().long().clamp(max=slots - 1) + 1
