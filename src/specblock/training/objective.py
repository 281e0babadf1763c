"""The drafter's total loss on a batch: trunk, block 1, and later blocks from earlier slots."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from specblock.drafters.specblock.model import SpecBlockModel
from specblock.training.forward import Block, Trunk, run_block, run_trunk
from specblock.training.losses import (
    Targets,
    rank_bucket,
    rank_loss,
    rank_of_best,
    soft_cross_entropy,
)


@dataclass(frozen=True)
class ObjectiveConfig:
    """Switches of the training objective; defaults follow the paper where the CPU allows."""

    blocks: int = 2
    slot_decay: float = 0.8  # weight of slot k is slot_decay ** k
    rank_budget: float = 10.0  # frequency weight of the rank loss; <= 0 off
    valid_prefix_mask: bool = True  # False trains every slot regardless of the earlier ones
    positions: int = 64  # positions per sequence that run a whole block; all others slot 0 alone


@dataclass(frozen=True)
class Batch:
    """Sequences ready for training, right-padded.

    ``features [B, S, F * H]`` of position i, ``tokens`` int64 [B, S] = token i + 1, ``start`` bool
    [B, S]: pairs from which decoding may draft, ``targets`` over [B, S + pad] rows where row p is
    the target's distribution *at position p + 1*, so slot k of pair i at offset o reads row
    ``i + o + k``; ``pad`` unusable rows at the end.
    """

    features: Tensor
    tokens: Tensor
    start: Tensor
    targets: Targets


@dataclass
class Tally:
    """Sums over a batch, for the log: per block and slot rows, hits, loss."""

    rows: Tensor
    hits: Tensor
    live_hits: Tensor
    live_rows: Tensor
    loss: Tensor
    rank_hits: float = 0.0
    rank_rows: float = 0.0
    terms: list[Tensor] = field(default_factory=list)

    @staticmethod
    def empty(blocks: int, slots: int) -> Tally:
        return Tally(*(torch.zeros(blocks, slots, dtype=torch.float64) for _ in range(5)))


def total_loss(
    model: SpecBlockModel, batch: Batch, config: ObjectiveConfig, generator: torch.Generator
) -> tuple[Tensor, Tally]:
    """The loss of one micro-batch and what to log of it.

    Slot 0 is trained at every start position (it comes out of the trunk). The later slots and
    blocks cost K rows each, so they run at ``config.positions`` sampled positions per sequence.
    """
    tally = Tally.empty(config.blocks, model.config.block_size)
    trunk = run_trunk(model, batch.features, batch.tokens)
    first_right = _trunk_loss(model, trunk, batch, config, tally)
    chosen, live = _sample_positions(batch.start, first_right, config, generator)
    tokens = batch.tokens.gather(1, chosen)
    condition = _rows(trunk.condition, chosen)
    block = run_block(model, trunk, condition, tokens, chosen)
    offset = torch.zeros_like(chosen)
    right = _block_loss(model, block, batch, chosen, offset, live, config, tally, 0)
    parents: list[tuple[Block, Tensor]] = []
    for index in range(1, config.blocks):
        used = _draw_depth(right, generator)
        parents.append((block, used))
        offset = offset + used
        condition = block.hidden.gather(
            2, (used - 1)[..., None, None].expand(-1, -1, 1, block.hidden.shape[-1])
        ).squeeze(2)
        at = (chosen + offset).clamp(max=batch.tokens.shape[1] - 1)
        inside = live & (chosen + offset < batch.tokens.shape[1])
        block = run_block(model, trunk, condition, batch.tokens.gather(1, at), chosen, parents)
        right = _block_loss(model, block, batch, chosen, offset, inside, config, tally, index)
    return torch.stack(tally.terms).sum(), tally


def _rows(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def _trunk_loss(
    model: SpecBlockModel, trunk: Trunk, batch: Batch, config: ObjectiveConfig, tally: Tally
) -> Tensor:
    """Slot 0 at every start position; returns where it was right, bool [B, S]."""
    length = batch.tokens.shape[1]
    usable = batch.start & batch.targets.usable[:, :length]
    rows = usable.flatten().nonzero().flatten()
    targets = _flat_targets(batch.targets, length).at(rows)
    hidden = trunk.hidden[:, :, 0].flatten(0, 1)[rows]
    terms, right, rank = _slot_terms(model, hidden, targets, config)
    _record(tally, 0, 0, terms, right, None)
    tally.terms.append(terms.sum() / max(1, rows.numel()))
    tally.terms.append(rank / model.config.block_size)
    found = torch.zeros_like(usable).flatten()
    found[rows] = right
    return found.view_as(usable)


def _flat_targets(targets: Targets, length: int) -> Targets:
    return Targets(
        targets.ids[:, :length].flatten(0, 1),
        targets.probabilities[:, :length].flatten(0, 1),
        targets.usable[:, :length].flatten(),
    )


def _slot_terms(
    model: SpecBlockModel, hidden: Tensor, targets: Targets, config: ObjectiveConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Per row: cross-entropy, whether the arg-max is right; and the slot's mean rank loss."""
    logits, normed = model.logits(hidden)
    terms = soft_cross_entropy(logits, targets)
    with torch.no_grad():
        rank = rank_of_best(logits, targets.best)
    rank_logits = model.rank_logits(normed, logits)
    above, below = rank_loss(
        rank_logits, rank_bucket(rank), torch.ones_like(rank, dtype=torch.bool), config.rank_budget
    )
    return terms, rank == 1, above / below.clamp(min=1e-6)


def _block_loss(
    model: SpecBlockModel,
    block: Block,
    batch: Batch,
    chosen: Tensor,
    offset: Tensor,
    live: Tensor,
    config: ObjectiveConfig,
    tally: Tally,
    index: int,
) -> Tensor:
    """Draft and rank loss of one block; returns per slot whether it was right, bool [B, M, K].

    Only rows on a valid prefix reach the output head: what the mask drops is never computed.
    Slot 0 of block 1 has been trained by the trunk already and only extends the chain here.
    """
    slots = model.config.block_size
    batch_rows = torch.arange(chosen.shape[0], device=chosen.device)[:, None].expand_as(chosen)
    chain = live.clone()
    last = batch.targets.usable.shape[1] - 1
    rights = []
    for slot in range(slots):
        row = (chosen + offset + slot).clamp(max=last)
        usable = batch.targets.usable[batch_rows, row]
        picked = (chain & usable).nonzero(as_tuple=True)
        targets = batch.targets.at((batch_rows[picked], row[picked]))
        hidden = block.hidden[:, :, slot][picked]
        right = torch.zeros_like(chain)
        if picked[0].numel():
            terms, hit, rank = _slot_terms(model, hidden, targets, config)
            right[picked] = hit
            if index or slot:
                _record(tally, index, slot, terms, hit, live)
                weight = config.slot_decay**slot
                tally.terms.append(weight * terms.sum() / picked[0].numel())
                tally.terms.append(rank / slots)
        rights.append(right)
        if config.valid_prefix_mask:
            # an unusable slot leaves the chain as it was, a wrong one ends it
            chain = chain & (right | ~usable)
    return torch.stack(rights, dim=-1)


def _sample_positions(
    start: Tensor, first_right: Tensor, config: ObjectiveConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """``config.positions`` start positions per sequence, int64 [B, M], and which are real.

    With the valid-prefix mask those where slot 0 was right are preferred: elsewhere block 1
    trains nothing, though a second block from slot 0's alternatives still does.
    """
    noise = torch.rand(start.shape, generator=generator, device=start.device)
    score = noise + (first_right.float() * 0.5 if config.valid_prefix_mask else 0.0)
    score = score.masked_fill(~start, -1.0)
    count = min(config.positions, start.shape[1])
    best = score.topk(count, dim=-1)
    order = best.indices.sort(dim=-1)
    live = (best.values >= 0).gather(1, order.indices)
    return order.values, live


def _draw_depth(right: Tensor, generator: torch.Generator) -> Tensor:
    """M in 1..K per position: the next block starts from slot M - 1.

    Drawn uniformly from the slots that decoding could reach there, i.e. those whose predecessors
    were right: a block behind a wrong token is never drafted.
    """
    slots = right.shape[-1]
    reachable = right.long().cumprod(-1).sum(-1).clamp(max=slots - 1) + 1
    noise = torch.rand(reachable.shape, generator=generator, device=right.device)
    return (noise * reachable).floor().long().clamp(max=slots - 1) + 1


def _record(
    tally: Tally, block: int, slot: int, terms: Tensor, right: Tensor, live: Tensor | None
) -> None:
    tally.rows[block, slot] += terms.numel()
    tally.hits[block, slot] += float(right.sum())
    tally.loss[block, slot] += float(terms.detach().sum())
    if live is not None:
        tally.live_rows[block, slot] += float(live.sum())
        tally.live_hits[block, slot] += float(right.sum())
