"""Attention in pieces against one softmax over a whole mask, and what it keeps."""

import pytest
import torch

from specblock.drafters.objectives import attention
from specblock.drafters.objectives.attention import Sight, groups_at_once

BATCH, GROUPS, ROWS, HEADS, KV_HEADS, DIM, CONTEXT, OWN = 2, 7, 3, 4, 2, 8, 11, 5


def inputs(seed=0):
    rng = torch.Generator().manual_seed(seed)
    shapes = {
        "q": (BATCH, GROUPS, ROWS, HEADS, DIM),
        "context_k": (BATCH, KV_HEADS, CONTEXT, DIM),
        "context_v": (BATCH, KV_HEADS, CONTEXT, DIM),
        "own_k": (BATCH, GROUPS, OWN, KV_HEADS, DIM),
        "own_v": (BATCH, GROUPS, OWN, KV_HEADS, DIM),
    }
    drawn = {
        name: torch.randn(shape, generator=rng, dtype=torch.float64, requires_grad=True)
        for name, shape in shapes.items()
    }
    counts = torch.randint(0, CONTEXT + 1, (BATCH, GROUPS), generator=rng)
    own_mask = torch.rand(BATCH, GROUPS, ROWS, OWN, generator=rng) < 0.5
    own_mask[..., 0] = True  # decoding always sees at least itself
    return drawn, counts, own_mask


def by_loops(tensors, counts, own_mask):
    """Query by query, head by head, over the keys that it sees and no others."""
    out = torch.zeros(BATCH, GROUPS, ROWS, HEADS, DIM, dtype=torch.float64)
    for b, m, k, h in torch.cartesian_prod(*map(torch.arange, (BATCH, GROUPS, ROWS, HEADS))):
        kv, seen = h // (HEADS // KV_HEADS), own_mask[b, m, k]
        keys = [tensors["context_k"][b, kv, : counts[b, m]], tensors["own_k"][b, m, seen, kv]]
        values = [tensors["context_v"][b, kv, : counts[b, m]], tensors["own_v"][b, m, seen, kv]]
        weights = (torch.cat(keys) @ tensors["q"][b, m, k, h] / DIM**0.5).softmax(0)
        out[b, m, k, h] = weights @ torch.cat(values)
    return out.flatten(3)


@pytest.mark.parametrize("max_scores", [1, 3 * BATCH * HEADS * ROWS * (CONTEXT + OWN), 10**9])
def test_pieces_give_the_whole_and_its_gradients(max_scores):
    tensors, counts, own_mask = inputs()
    sight = Sight.of(counts, own_mask, HEADS, max_scores)
    assert len(sight.pieces) == {1: GROUPS, 10**9: 1}.get(max_scores, 3)
    names = ("q", "context_k", "context_v", "own_k", "own_v")
    out = sight.attend(*(tensors[name] for name in names))
    wanted = by_loops(tensors, counts, own_mask)
    torch.testing.assert_close(out, wanted)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    leaves = list(tensors.values())
    ours = torch.autograd.grad((out * weight).sum(), leaves)
    theirs = torch.autograd.grad((wanted * weight).sum(), leaves)
    torch.testing.assert_close(ours, theirs)


def test_a_piece_reads_no_further_than_its_last_group_sees():
    _, _, own_mask = inputs()
    counts = torch.arange(GROUPS).expand(BATCH, -1)
    sight = Sight.of(counts, own_mask, HEADS, max_scores=1)
    assert [piece.keys for piece in sight.pieces] == list(range(GROUPS))


def test_no_scores_of_pieces_wait_for_the_backward():
    """All that autograd keeps of pieces are the inputs: less than one matrix of scores."""
    tensors, counts, own_mask = inputs()
    names = ("q", "context_k", "context_v", "own_k", "own_v")

    def shapes_kept(max_scores):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape), lambda t: t):
            Sight.of(counts, own_mask, HEADS, max_scores).attend(*(tensors[n] for n in names))
        return [shape for shape in kept if shape[-1] == CONTEXT + OWN]

    assert shapes_kept(10**9)
    assert not shapes_kept(1)


def test_groups_at_once():
    assert groups_at_once(10, 100) == 10
    assert groups_at_once(11, 100) == 9
    assert groups_at_once(1000, 100) == 1
    assert groups_at_once(0, 100) == 100


def test_a_drafter_trained_in_pieces_is_the_same(monkeypatch):
    from tests.tiny import make_drafter
    from tests.training.toy import make_sequence

    from specblock.training.evaluate.evaluator import make_batch
    from specblock.training.kinds import training_kind
    from specblock.training.recipe import DrafterRecipe

    model = make_drafter(cached_slots=1).model
    objective = training_kind("specblock").objective(DrafterRecipe(), model.config)
    batch = make_batch([make_sequence(i, 10, 40) for i in range(3)], [0, 1, 2], objective.pad_rows)
    losses, gradients, pieces = [], [], []
    whole = Sight.of.__func__

    def watched(cls, *arguments):
        sight = whole(cls, *arguments, attention.MAX_SCORES)
        pieces.append(len(sight.pieces))
        return sight

    monkeypatch.setattr(Sight, "of", classmethod(watched))
    for limit in (2**26, 2**12):
        monkeypatch.setattr(attention, "MAX_SCORES", limit)
        model.zero_grad()
        loss, _ = objective(model, batch, torch.Generator().manual_seed(0))
        loss.backward()
        losses.append(loss.detach())
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert min(pieces) == 1
    assert max(pieces) > 1
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0])
