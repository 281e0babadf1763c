"""Earlier texts: the match against brute force, what is kept, and the tree that comes of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specblock.drafters.lookup.copies import TextCopies
from specblock.drafters.lookup.match import END, Branch, before_end, joined, longest_match, merge
from specblock.drafters.lookup.memory import TextMemory
from specblock.tree.survival import COPIED, REMEMBERED

TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), max_size=6)


def parts_of(memory: TextMemory) -> list[list[int]]:
    parts = np.split(memory.tokens(), np.flatnonzero(memory.tokens() == END) + 1)
    assert not len(parts[-1]), "the last text is closed"
    return [part[:-1].tolist() for part in parts[:-1]]


@given(texts=TEXTS, end=st.lists(st.integers(0, 2), min_size=1, max_size=8), most=st.integers(1, 9))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_the_match_in_other_texts_is_brute_forces(texts, end, most):
    flat = [token for text in texts for token in (*text, END)]
    best = (0, [])
    for length in range(min(most, len(end)), 0, -1):
        places = [
            place
            for place in range(length, len(flat))
            if flat[place - length : place] == end[-length:] and flat[place] != END
        ]
        if places:
            best = length, places[::-1]
            break
    length, places = longest_match(np.array(end), most, np.array(flat, dtype=np.int32))
    assert (length, places.tolist()) == best


def test_a_continuation_ends_with_its_text():
    flat = np.array([1, 2, 3, END, 4, 5, END])
    assert before_end(flat, 1, 9) == [2, 3]
    assert before_end(flat, 4, 1) == [4]
    assert before_end(flat, 6, 2) == []


@given(texts=TEXTS, capacity=st.integers(4, 30))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_the_newest_whole_texts_are_kept(texts, capacity):
    memory, told = TextMemory(capacity), []
    for text in texts:
        kept, most = parts_of(memory), capacity // 2 - 1
        last = text[-most:]
        known = any(part[-len(last) :] == last for part in kept)
        assert memory.remember(text) == (not known)
        if not known:
            told.append(last)
        assert len(memory) <= capacity
        assert parts_of(memory) == told[len(told) - len(parts_of(memory)) :], "the newest, whole"
        assert parts_of(memory) or not told
    assert not memory.remember([])
    again = TextMemory(capacity)
    again.restore(memory.tokens().copy())
    assert parts_of(again) == parts_of(memory)


def test_no_room_is_refused():
    for wrong in ({"capacity": 3}, {"longest": 1}, {"continuations": 0}):
        with pytest.raises(ValueError, match="at least"):
            TextMemory(**wrong)


def test_a_habit_is_trusted_by_its_number():
    memory = TextMemory()
    for text in ([1, 2, 3], [5, 1, 2, 3], [6, 1, 2, 4]):
        assert memory.remember(text)
    assert not memory.remember([2, 3]), "the first text's end"
    length, nodes = memory.branches(np.array([9, 1, 2]), 5)
    assert length == 2
    assert [(node.token, node.parent) for node in nodes[1:]] == [(4, 0), (3, 0)]
    assert [np.exp(node.log_prob) for node in nodes[1:]] == pytest.approx([1 / 4, 2 / 4])
    assert memory.branches(np.array([9, 2]), 5)[0] == 0, "one token is no match"


def paths(nodes: list[Branch]) -> dict[tuple[int, ...], Branch]:
    found: dict[int, tuple[int, ...]] = {0: ()}
    for index, node in enumerate(nodes[1:], 1):
        found[index] = (*found[node.parent], node.token)
    return {path: nodes[index] for index, path in found.items()}


@given(st.data())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_two_trees_join_by_their_paths(data):
    copies = st.lists(st.lists(st.integers(0, 2), max_size=4), max_size=4)
    first, second = (merge(data.draw(copies), length) for length in (4, 2))
    one, other = paths(first), paths(second)
    both = paths(joined(first, second))
    assert set(both) == set(one) | set(other)
    for path, node in both.items():
        source = one.get(path) or other[path]
        assert (node.token, node.depth) == (source.token, source.depth)
        assert (node.log_prob, node.rank_class) == (source.log_prob, source.rank_class)
        above = sum(both[path[:depth]].log_prob for depth in range(1, len(path) + 1))
        assert node.score == pytest.approx(above)


def tree_of(text: list[int], *texts: list[int]):
    memory = TextMemory()
    for other in texts:
        memory.remember(other)
    copies = TextCopies(depth=3, memory=memory)
    copies.observe(torch.tensor(text))
    tree = copies.tree(text[-1])
    tree.validate()
    return tree


def test_text_and_memory_share_a_tree():
    tree = tree_of([1, 2, 7, 8, 1, 2], [3, 2, 7, 9], [1, 2, 5])
    told = dict(zip(tree.tokens.tolist()[1:], tree.rank_classes.tolist()[1:], strict=True))
    assert told[7] == COPIED + 2, "the text's match is as long, and goes first"
    assert told[5] == COPIED + REMEMBERED + 2
    longer = tree_of([1, 4, 2, 7, 8, 0, 1, 2], [0, 1, 2, 7, 9])
    told = dict(zip(longer.tokens.tolist()[1:], longer.rank_classes.tolist()[1:], strict=True))
    assert told[7] == COPIED + REMEMBERED + 2, "three tokens against one"
    assert told[9] == COPIED + REMEMBERED + 1
    assert told[8] == COPIED + 2


def test_nothing_in_either_drafts_nothing():
    assert len(tree_of([1, 2, 3], [4, 5, 6])) == 1
