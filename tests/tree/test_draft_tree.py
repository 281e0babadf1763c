"""DraftTree against loops over random trees."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specblock.tree.draft_tree import DraftTree
from tree import reference


@st.composite
def trees(draw: st.DrawFn) -> DraftTree:
    """Trees of any shape, chains and stars included, in any order that keeps parents first."""
    size = draw(st.integers(1, 20))
    reach = draw(st.sampled_from([1, 3, 20]))
    parents, depths, tokens, log_probs, scores = [-1], [0], [7], [0.0], [0.0]
    for node in range(1, size):
        parent = draw(st.integers(max(0, node - reach), node - 1))
        parents.append(parent)
        depths.append(depths[parent] + 1)
        tokens.append(100 + node)
        log_probs.append(-draw(st.integers(0, 4)) / 2)
        scores.append(scores[parent] + log_probs[node])
    return DraftTree(
        torch.tensor(tokens),
        torch.tensor(parents),
        torch.tensor(depths),
        torch.tensor(scores),
        torch.tensor(log_probs),
        torch.zeros(size, dtype=torch.int64),
    )


def small() -> DraftTree:
    """Root 5 with children 8 and 9; 8 has children 8 and 3."""
    return DraftTree(
        tokens=torch.tensor([5, 8, 9, 8, 3]),
        parents=torch.tensor([-1, 0, 0, 1, 1]),
        depths=torch.tensor([0, 1, 1, 2, 2]),
        scores=torch.tensor([0.0, -1.0, -2.0, -1.5, -3.0]),
        log_probs=torch.tensor([0.0, -1.0, -2.0, -0.5, -2.0]),
        buckets=torch.tensor([0, 1, 1, 0, 0]),
    )


@given(trees())
@settings(deadline=None)
def test_mask_marks_ancestors_and_self(tree: DraftTree) -> None:
    tree.validate()
    mask = tree.ancestor_mask()
    assert mask.dtype == torch.bool
    for node in range(len(tree)):
        expected = sorted(reference.ancestors(tree, node))
        assert mask[node].nonzero().flatten().tolist() == expected


@given(trees(), st.integers(0, 1000))
@settings(deadline=None)
def test_positions_count_from_the_prefix(tree: DraftTree, prefix: int) -> None:
    positions = tree.positions(prefix)
    assert positions.dtype == torch.int64
    for node in range(len(tree)):
        assert int(positions[node]) == prefix + len(reference.ancestors(tree, node)) - 1


@given(trees())
@settings(deadline=None)
def test_paths_are_the_leaves_in_order(tree: DraftTree) -> None:
    parents = tree.parents.tolist()
    leaves = [node for node in range(len(tree)) if node not in parents]
    expected = sorted(reference.ancestors(tree, leaf)[::-1] for leaf in leaves)
    paths = tree.paths()
    assert paths.dtype == torch.int64
    assert paths.shape == (len(leaves), int(tree.depths.max()) + 1)
    assert [[node for node in row if node >= 0] for row in paths.tolist()] == expected
    for row, nodes in zip(paths.tolist(), expected, strict=True):
        assert row[len(nodes) :] == [-1] * (len(row) - len(nodes))


@given(trees())
@settings(deadline=None)
def test_children_lists_every_edge_once(tree: DraftTree) -> None:
    edges = {
        (parent, token, node)
        for parent, below in enumerate(tree.children())
        for token, node in below.items()
    }
    assert edges == {
        (int(tree.parents[node]), int(tree.tokens[node]), node) for node in range(1, len(tree))
    }


def test_small_tree() -> None:
    tree = small()
    tree.validate()
    assert (len(tree), tree.num_draft) == (5, 4)
    assert tree.children() == [{8: 1, 9: 2}, {8: 3, 3: 4}, {}, {}, {}]
    assert tree.paths().tolist() == [[0, 1, 3], [0, 1, 4], [0, 2, -1]]
    assert tree.positions(10).tolist() == [10, 11, 11, 12, 12]


def test_root_only_is_a_plain_step() -> None:
    tree = DraftTree.root_only(42)
    tree.validate()
    assert (len(tree), tree.num_draft) == (1, 0)
    assert tree.tokens.tolist() == [42]
    assert tree.ancestor_mask().tolist() == [[True]]
    assert tree.paths().tolist() == [[0]]
    assert tree.children() == [{}]


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("parents", 0, 0, "root"),
        ("depths", 0, 1, "root"),
        ("scores", 0, -1.0, "root"),
        ("parents", 3, 3, "before its parent"),
        ("parents", 2, 4, "before its parent"),
        ("parents", 2, -1, "before its parent"),
        ("depths", 4, 1, "one deeper"),
        ("tokens", 2, 8, "repeats"),
        ("log_probs", 1, 0.5, "above 0"),
        ("log_probs", 1, float("nan"), "above 0"),
        ("scores", 4, -2.0, "score of node 4"),
        ("scores", 4, float("nan"), "score of node 4"),
    ],
)
def test_validate_names_the_broken_invariant(
    name: str, index: int, value: float, message: str
) -> None:
    tree = small()
    field = getattr(tree, name).clone()
    field[index] = value
    with pytest.raises(ValueError, match=message):
        replace(tree, **{name: field}).validate()


def test_validate_checks_shapes_and_dtypes() -> None:
    tree = small()
    with pytest.raises(ValueError, match="tokens must be"):
        replace(tree, tokens=tree.tokens.int()).validate()
    with pytest.raises(ValueError, match="scores must be"):
        replace(tree, scores=tree.scores.double()).validate()
    with pytest.raises(ValueError, match="same length"):
        replace(tree, depths=tree.depths[:-1]).validate()
