"""Copies as branches of the network's tree, against a union of paths."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specblock.tree.accept import follow
from specblock.tree.draft_tree import DraftTree
from specblock.tree.graft import graft
from specblock.tree.survival import AGREED, ALONE, COPIED, REMEMBERED


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def tree_of(size: int, seed: int, first_class: int) -> DraftTree:
    """Few different tokens, so that two trees share paths."""
    source = random.Random(seed)
    children: list[dict[int, int]] = [{}]
    rows = [(9, -1, 0, 0.0, 0.0, 0)]
    for _ in range(size):
        parent, token = source.randrange(len(rows)), source.randrange(4)
        if token in children[parent]:
            continue
        children[parent][token] = len(rows)
        children.append({})
        log_prob = -source.random()
        above = rows[parent]
        score = above[3] + log_prob
        rows.append((token, parent, above[2] + 1, score, log_prob, first_class + len(rows) % 4))
    tree = DraftTree(*(torch.tensor(column) for column in zip(*rows, strict=True)))
    tree.validate()
    return tree


def by_path(tree: DraftTree) -> dict[tuple[int, ...], int]:
    """Node by the tokens that lead to it."""
    tokens, paths = tree.tokens.tolist(), [()]
    for node, parent in enumerate(tree.parents.tolist()[1:], 1):
        paths.append((*paths[parent], tokens[node]))
    return {path: node for node, path in enumerate(paths)}


@given(
    size=st.integers(0, 12),
    copies=st.integers(0, 12),
    seed=st.integers(0, 10_000),
    source=st.sampled_from((0, REMEMBERED)),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_the_graft_is_the_union_of_paths(size, copies, seed, source):
    tree, copied = tree_of(size, seed, 0), tree_of(copies, seed + 1, COPIED + source)
    both = graft(tree, copied)
    both.validate()
    own, text, joined = by_path(tree), by_path(copied), by_path(both)
    assert set(joined) == set(own) | set(text)
    parents = {path[:-1] for path in own if path}
    for path, node in joined.items():
        bucket = int(copied.rank_classes[text[path]]) - COPIED if path in text else None
        kept = int(both.rank_classes[node])
        if path in own:
            assert node == own[path]
            assert both.log_probs[node] == tree.log_probs[node]
            assert both.scores[node] == tree.scores[node]
            agreed = path and path in text
            assert kept == (AGREED + bucket if agreed else int(tree.rank_classes[node]))
        else:
            assert both.log_probs[node] == copied.log_probs[text[path]]
            assert kept == (ALONE if path[:-1] in parents else COPIED) + bucket


def test_no_copies_change_nothing():
    tree = tree_of(6, 1, 0)
    assert graft(tree, DraftTree.root_only(9)) is tree


def test_a_tree_follows_known_tokens():
    # 9 -> 1 -> 2, 9 -> 3
    tree = DraftTree(
        torch.tensor([9, 1, 3, 2]),
        torch.tensor([-1, 0, 0, 1]),
        torch.tensor([0, 1, 1, 2]),
        torch.zeros(4),
        torch.zeros(4),
        torch.zeros(4, dtype=torch.int64),
    )
    assert follow(tree, [1, 2, 5]) == [[(1, True), (2, False)], [(3, True)], []]
    assert follow(tree, [1]) == [[(1, True), (2, False)]]
    assert follow(tree, [4, 1]) == [[(1, False), (2, False)]]
