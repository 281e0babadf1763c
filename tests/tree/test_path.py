"""The path that is handed to engines that verify chains, against all paths there are."""

import torch
from hypothesis import given, settings
from tests.tree.reference import ancestors
from tests.tree.test_draft_tree import small, trees

from specblock.tree.draft_tree import DraftTree
from specblock.tree.path import best_path, expected_lengths


def some_survival(tree, seed=0):
    generator = torch.Generator().manual_seed(seed)
    own = torch.rand(len(tree), generator=generator)
    reached = [1.0]
    for node in range(1, len(tree)):
        reached.append(reached[int(tree.parents[node])] * float(own[node]))
    return torch.tensor(reached)


@settings(max_examples=60, deadline=None)
@given(trees())
def test_no_path_is_accepted_longer_on_average(tree):
    survival = some_survival(tree)
    lengths = expected_lengths(tree, survival)
    for most in (0, 1, 2, 8):
        paths = {
            node: [n for n in ancestors(tree, node) if n > 0]
            for node in range(len(tree))
            if tree.depths[node] <= most
        }
        totals = {node: sum(float(survival[n]) for n in path) for node, path in paths.items()}
        for node, total in totals.items():
            assert abs(float(lengths[node]) - total) < 1e-5
        found = best_path(tree, survival, most)
        best = max(totals.values())
        winners = [node for node, total in totals.items() if total > best - 1e-9]
        assert found in [
            [int(tree.tokens[n]) for n in sorted(paths[node], key=lambda n: int(tree.depths[n]))]
            for node in winners
        ]
        assert len(found) <= most


def test_without_draft_nodes_there_is_no_path():
    tree = DraftTree.root_only(5)
    assert best_path(tree, torch.ones(1), 8) == []
    assert small().num_draft > 0
