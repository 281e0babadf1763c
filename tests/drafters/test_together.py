"""Drafting for many texts in one forward: each gets the tree that it gets alone."""

import pytest
import torch
from tests.drafters.eagle3.test_eagle3 import make_model as make_eagle3
from tests.drafters.parallel.test_parallel import make_model as make_parallel
from tests.tiny import make_drafter

from specblock.drafters.base import FixedBudget
from specblock.drafters.eagle3.propose import Eagle3Drafter
from specblock.drafters.lookup.propose import LookupDrafter
from specblock.drafters.parallel.propose import ParallelDrafter
from specblock.drafters.proposing.together import together

KINDS = {
    "specblock": make_drafter,
    "specblock, one slot kept": lambda: make_drafter(cached_slots=1, sink=True, slot_rank=2),
    "specblock, three blocks": lambda: make_drafter(blocks=3),
    "eagle3": lambda: Eagle3Drafter(make_eagle3(), depth=4, top_k=4),
    "parallel": lambda: ParallelDrafter(make_parallel(sink=True)),
    "lookup": LookupDrafter,
}


def texts(count: int):
    """Of each the pairs of a prompt and of two rounds."""
    generator = torch.Generator().manual_seed(11)
    for number in range(count):
        length = 7 + 3 * number
        features = torch.randn(length, 96, generator=generator)
        tokens = torch.randint(0, 97, (length,), generator=generator)
        tokens[-2:] = tokens[:2]  # something to copy
        yield [
            (features[part], tokens[part]) for part in (slice(-3), slice(-3, -1), slice(-1, None))
        ]


class Counting(FixedBudget):
    """Texts differ in how much they draft."""

    def __init__(self, number: int):
        super().__init__(nodes=6 + 2 * number, leaves=number)


def prepared(kind: str):
    first = KINDS[kind]()
    drafters = [first, *(first.another() for _ in range(3))]
    for drafter in drafters:
        drafter.reset(64)
    return drafters


@pytest.mark.parametrize("kind", KINDS)
def test_each_text_gets_the_tree_that_it_gets_alone(kind):
    one_by_one, at_once = prepared(kind), prepared(kind)
    for parts in zip(*texts(4), strict=True):
        for drafters in (one_by_one, at_once):
            for drafter, pairs in zip(drafters, parts, strict=True):
                drafter.observe(*pairs)
        roots = [int(tokens[-1]) for _, tokens in parts]
        budgets = [Counting(number) for number in range(4)]
        own = zip(one_by_one, roots, budgets, strict=True)
        expected = [drafter.propose(root, budget) for drafter, root, budget in own]
        own = zip(at_once, roots, budgets, strict=True)
        proposals = together([drafter.drafting(root, budget) for drafter, root, budget in own])
        for proposal, budget, tree in zip(proposals, budgets, expected, strict=True):
            found = proposal.chosen(budget)
            assert found.tokens.tolist() == tree.tokens.tolist()
            assert found.parents.tolist() == tree.parents.tolist()
            torch.testing.assert_close(found.log_probs, tree.log_probs, atol=1e-4, rtol=1e-4)


def calls_of(network, monkeypatch) -> list[int]:
    """Rows of every forward of a module."""
    rows = []
    network.register_forward_hook(lambda module, given, result: rows.append(given[0].shape[0]))
    return rows


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "lookup"])
def test_a_generation_of_blocks_is_one_forward_for_all(kind, monkeypatch):
    drafters = prepared(kind)
    for drafter, parts in zip(drafters, texts(4), strict=True):
        drafter.observe(*parts[0])
    heads = calls_of(drafters[0].model.lm_head, monkeypatch)
    together([drafter.drafting(1, Counting(2)) for drafter in drafters])
    alone = prepared(kind)[0]
    alone.observe(*next(texts(1))[0])
    own = calls_of(alone.model.lm_head, monkeypatch)
    alone.propose(1, Counting(2))
    assert len(heads) == len(own)
    assert heads[0] == 4 * own[0]


def test_drafters_of_different_networks_go_side_by_side():
    drafters = [make_drafter(), Eagle3Drafter(make_eagle3(), depth=2, top_k=2), LookupDrafter()]
    for drafter, parts in zip(drafters, texts(3), strict=True):
        drafter.reset(64)
        drafter.observe(*parts[0])
    proposals = together([drafter.drafting(1, FixedBudget(4)) for drafter in drafters])
    assert [proposal.tree.num_draft > 0 for proposal in proposals[:2]] == [True, True]


def test_an_error_of_one_reaches_the_caller():
    drafters = prepared("specblock")[:2]
    drafters[0].observe(*next(texts(1))[0])  # the other has seen nothing
    with pytest.raises(ValueError, match="observe the newest pair"):
        together([drafter.drafting(1, FixedBudget()) for drafter in drafters])
