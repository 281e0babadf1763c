"""Copies as branches of the network's tree, against a union of paths."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specblock.tree.accept import follow
from specblock.tree.draft_tree import DraftTree
from specblock.tree.graft import graft
from specblock.tree.source import Source


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def tree_of(size: int, seed: int, origin: Source) -> DraftTree:
    """Few different tokens, so that two trees share paths."""
    source = random.Random(seed)
    children: list[dict[int, int]] = [{}]
    rows = [(9, -1, 0, 0.0, 0.0, 0, Source.NETWORK)]
    for _ in range(size):
        parent, token = source.randrange(len(rows)), source.randrange(4)
        if token in children[parent]:
            continue
        children[parent][token] = len(rows)
        children.append({})
        log_prob = -source.random()
        above = rows[parent]
        score = above[3] + log_prob
        rows.append((token, parent, above[2] + 1, score, log_prob, len(rows) % 4, origin))
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
    source=st.sampled_from((Source.COPIED, Source.REMEMBERED)),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_the_graft_is_the_union_of_paths(size, copies, seed, source):
    tree, copied = tree_of(size, seed, Source.NETWORK), tree_of(copies, seed + 1, source)
    both = graft(tree, copied)
    both.validate()
    own, text, joined = by_path(tree), by_path(copied), by_path(both)
    assert set(joined) == set(own) | set(text)
    parents = {path[:-1] for path in own if path}
    for path, node in joined.items():
        kept = int(both.buckets[node]), int(both.sources[node])
        if path in own:
            assert node == own[path]
            assert both.log_probs[node] == tree.log_probs[node]
            assert both.scores[node] == tree.scores[node]
            if path and path in text:
                assert kept == (int(copied.buckets[text[path]]), source.agreed)
            else:
                assert kept == (int(tree.buckets[node]), Source.NETWORK)
        else:
            assert both.log_probs[node] == copied.log_probs[text[path]]
            asked = path[:-1] in parents
            assert kept == (int(copied.buckets[text[path]]), source.alone if asked else source)


def test_no_copies_change_nothing():
    tree = tree_of(6, 1, Source.NETWORK)
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
