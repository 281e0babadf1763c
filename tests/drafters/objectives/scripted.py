"""A drafter whose logits are given, and the loss over them as loops."""

import math
from types import SimpleNamespace

import torch
from tests.tiny import seeded

from specblock.drafters.objectives.batch import Batch
from specblock.drafters.objectives.losses import Targets
from specblock.drafters.specblock import objective
from specblock.drafters.specblock.forward import Block

SLOTS, VOCAB = 3, 5


class Scripted:
    """Stands in for the network: every entry's hidden state is a row of a table, and its logits.

    ``tables[b][sequence, position, slot]`` are the logits of block b, whatever it is fed; what it
    is fed is recorded.
    """

    def __init__(self, tables):
        self.tables, self.calls = tables, []
        self.config = SimpleNamespace(block_size=tables[0].shape[2])
        self.lm_head = SimpleNamespace(weight=torch.eye(VOCAB, dtype=tables[0].dtype))

    def install(self, monkeypatch):
        monkeypatch.setattr(objective, "run_trunk", self.run_trunk)
        monkeypatch.setattr(objective, "run_block", self.run_block)
        monkeypatch.setattr(objective, "rank_terms", lambda _, labels: labels * 0.0)
        return self

    def run_trunk(self, _model, features, _tokens):
        return SimpleNamespace(condition=features, hidden=self.tables[0][:, :, :1])

    def run_block(self, _model, _trunk, condition, tokens, positions, parents=None):
        index = len(parents or [])
        rows = torch.arange(positions.shape[0])[:, None].expand_as(positions)
        hidden = self.tables[index][rows, positions]
        used = [u for _, u in parents or []]
        self.calls.append(
            SimpleNamespace(condition=condition, tokens=tokens, positions=positions, used=used)
        )
        return Block(hidden, [], [])

    def norm(self, hidden):
        return hidden

    def rank_logits_of_top(self, _normed, top):
        return top.new_zeros(*top.shape[:-1], 4)


def random_tables(seed, blocks, batch=2, length=7, slots=SLOTS):
    shape = (batch, length, slots, VOCAB)
    noise = [
        torch.randn(shape, generator=seeded(seed + b), dtype=torch.float64) for b in range(blocks)
    ]
    return [table.requires_grad_() for table in noise]


def random_batch(seed, batch=2, length=7, pad=9, favourite=None):
    """Random targets; with ``favourite`` the best token of every row is that one, mostly."""
    generator = seeded(seed)
    rows = length + pad
    scores = torch.randn(batch, rows, VOCAB, generator=generator, dtype=torch.float64)
    if favourite is not None:
        scores[..., favourite] += 3 * (torch.rand(batch, rows, generator=generator) < 0.8)
    probabilities, ids = scores.float().softmax(-1).topk(VOCAB, dim=-1)
    usable = torch.rand(batch, rows, generator=generator) < 0.85
    usable[:, length:] = False
    return Batch(
        features=torch.randn(batch, length, VOCAB, generator=generator, dtype=torch.float64),
        tokens=torch.randint(100, (batch, length), generator=generator),
        start=torch.rand(batch, length, generator=generator) < 0.8,
        targets=Targets(ids, probabilities, usable),
    )


def cross_entropy(logits, targets, b, row):
    """Full soft cross-entropy of one row in plain floats."""
    values = logits.tolist()
    top = max(values)
    normaliser = top + math.log(math.fsum(math.exp(v - top) for v in values))
    pairs = zip(targets.ids[b, row].tolist(), targets.probabilities[b, row].tolist(), strict=True)
    return -math.fsum(p * (values[v] - normaliser) for v, p in pairs)


def reference_loss(tables, batch, used, config):
    """The draft loss and the set of (block, sequence, position, slot) that it trains."""
    count, length = batch.tokens.shape
    targets, total, trained = batch.targets, 0.0, set()
    offset = [[0] * length for _ in range(count)]
    reachable = []
    for index in range(config.blocks):
        if index:
            for b in range(count):
                for i in range(length):
                    offset[b][i] += int(used[index - 1][b, i])
        chain = {
            (b, i): bool(batch.start[b, i]) and (index == 0 or i + offset[b][i] < length)
            for b in range(count)
            for i in range(length)
        }
        right_run, begun = dict.fromkeys(chain, 0), [at for at, live in chain.items() if live]
        for slot in range(tables[0].shape[2]):
            terms = []
            for (b, i), live in chain.items():
                row = min(i + offset[b][i] + slot, targets.usable.shape[1] - 1)
                if not live or not bool(targets.usable[b, row]):
                    continue  # left out; by itself it does not break the chain
                logits = tables[index][b, i, slot].detach()
                terms.append(cross_entropy(logits, targets, b, row))
                trained.add((index, b, i, slot))
                right = int(logits.argmax()) == int(targets.ids[b, row, 0])
                if right and right_run[b, i] == slot:
                    right_run[b, i] += 1
                if config.valid_prefix_mask:
                    chain[b, i] = right
            first = index == slot == 0  # runs everywhere, so that all its rows are valid
            last = targets.usable.shape[1] - 1
            there = [targets.usable[b, min(i + offset[b][i] + slot, last)] for b, i in begun]
            rows = len(terms) if first or config.mean_over_valid else sum(map(int, there))
            if terms:
                total += config.slot_decay**slot * math.fsum(terms) / rows
        reachable.append(right_run)
    return total, trained, reachable
