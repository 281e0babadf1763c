"""Earlier texts: the match against brute force, what is kept, and the tree that comes of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specblock.drafters.lookup.copies import TextCopies
from specblock.drafters.lookup.match import (
    END,
    Branch,
    before_end,
    joined,
    longest_match,
    matched_lengths,
    merge,
    occurrences,
)
from specblock.drafters.lookup.memory import TextMemory
from specblock.drafters.lookup.states import LEAST
from specblock.tree.source import Source

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
    again.restore(memory.to_dict())
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
        assert (node.log_prob, node.bucket) == (source.log_prob, source.bucket)
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


def origins(tree):
    """Of every drafted token its source and bucket."""
    found = zip(tree.sources.tolist(), tree.buckets.tolist(), strict=True)
    return dict(zip(tree.tokens.tolist()[1:], list(found)[1:], strict=True))


def test_text_and_memory_share_a_tree():
    tree = tree_of([1, 2, 7, 8, 1, 2], [3, 2, 7, 9], [1, 2, 5])
    told = origins(tree)
    assert told[7] == (Source.COPIED, 2), "the text's match is as long, and goes first"
    assert told[5] == (Source.REMEMBERED, 2)
    longer = tree_of([1, 4, 2, 7, 8, 0, 1, 2], [0, 1, 2, 7, 9])
    told = origins(longer)
    assert told[7] == (Source.REMEMBERED, 2), "three tokens against one"
    assert told[9] == (Source.REMEMBERED, 1)
    assert told[8] == (Source.COPIED, 2)


def test_nothing_in_either_drafts_nothing():
    assert len(tree_of([1, 2, 3], [4, 5, 6])) == 1


@given(texts=TEXTS, end=st.lists(st.integers(0, 2), min_size=1, max_size=8), most=st.integers(1, 9))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_every_match_has_its_length(texts, end, most):
    flat = [token for text in texts for token in (*text, END)]
    places = [p for p in range(1, len(flat)) if flat[p - 1] == end[-1] and flat[p] != END]
    among = np.array(flat, dtype=np.int32)
    found = occurrences(end[-1], among)
    assert found.tolist() == places[::-1]
    lengths = matched_lengths(np.array(end), found, among, most)
    for place, length in zip(found.tolist(), lengths.tolist(), strict=True):
        assert flat[place - length : place] == end[-length:]
        longer = flat[place - length - 1 : place] if place > length else None
        assert length == min(most, len(end)) or longer != end[-length - 1 :]


WIDTH = 24


def features_of(*states: int) -> torch.Tensor:
    """Rows of features by number: the same number the same state, others unlike."""
    rows = [torch.randn(WIDTH, generator=torch.Generator().manual_seed(n)) for n in states]
    return torch.stack(rows)


def knowing(*texts: tuple[list[int], list[int]], capacity: int = 2**10) -> TextMemory:
    """A memory of texts with the numbers of the states before their tokens."""
    memory = TextMemory(capacity)
    memory.keys.fit(features_of(*range(100, 100 + 4 * LEAST)))
    for text, states in texts:
        assert memory.remember(text, features_of(*states))
    return memory


def claims(nodes: list[Branch]) -> dict[tuple[int, ...], float]:
    return {path: np.exp(node.log_prob) for path, node in paths(nodes).items() if path}


def test_what_stood_as_it_stands_goes_first():
    memory = knowing(([1, 2, 3], [10, 11, 12]), ([5, 2, 4, 6], [20, 21, 22, 23]))
    length, nodes = memory.branches(np.array([7, 2]), 5, features_of(11)[0])
    assert length == 1
    assert list(claims(nodes)) == [(3,)], "the other state is unlike, and one token is no match"
    assert nodes[1].bucket == 1, "the state, and one token"
    length, nodes = memory.branches(np.array([5, 2]), 5, features_of(21)[0])
    assert length == 2
    assert list(claims(nodes)) == [(4,), (4, 6)]
    assert memory.branches(np.array([7, 2]), 5, features_of(50)[0])[0] == 0
    assert memory.branches(np.array([7, 9]), 5, features_of(11)[0])[0] == 0, "never said"


def test_equal_states_vote_and_words_add_to_them():
    memory = knowing(
        ([1, 2, 3], [10, 11, 12]), ([5, 2, 4], [20, 11, 22]), ([6, 2, 3, 8], [0, 11, 1, 2])
    )
    _, nodes = memory.branches(np.array([7, 2]), 5, features_of(11)[0])
    assert claims(nodes) == pytest.approx({(3,): 2 / 4, (3, 8): 1 / 3, (4,): 1 / 4})
    _, nodes = memory.branches(np.array([5, 2]), 5, features_of(11)[0])
    voted = claims(nodes)
    assert voted[(4,)] > 1 / 4 > voted[(3,)] / 2, "two tokens match there"


def test_many_vote_and_few_are_copied_whole():
    most = [[5, 6], [5, 7], [8, 9], [5, 6, 4], [3, 1, 2]]
    nodes = merge(most, [0.9, 0.8, 0.7, 0.6, 0.5], step=0.1, edges=(0.9, 0.8), leaders=2)
    assert set(claims(nodes)) == {(5,), (5, 6), (5, 7), (8,), (3,)}
    assert [round(node.count, 6) for node in nodes] == [5, 3, 2, 1, 1, 1]
    assert [node.bucket for node in nodes[1:]] == [0, 0, 0, 2, 2]


def test_without_states_words_must_do():
    memory = TextMemory()
    memory.remember([1, 2, 3], features_of(1, 2, 3))
    assert memory.branches(np.array([1, 2]), 5, features_of(2)[0])[0] == 2, "none are known yet"
    memory = knowing(([1, 2, 3], [10, 11, 12]))
    assert memory.branches(np.array([1, 2]), 5)[0] == 2, "none is shown"


def test_keys_stay_with_their_tokens():
    memory = knowing(capacity=24)
    texts = [[n, 40, n + 1] for n in range(8)]
    for number, text in enumerate(texts):
        memory.remember(text, features_of(3 * number, 3 * number + 1, 3 * number + 2))
    again = TextMemory(24)
    again.restore(memory.to_dict())
    small = TextMemory(12)
    small.restore(memory.to_dict())
    for held, known in ((memory, 3), (again, 3), (small, 1)):
        for number in range(8 - known, 8):
            _, nodes = held.branches(np.array([50, 40]), 5, features_of(3 * number + 1)[0])
            assert list(claims(nodes)) == [(number + 1,)]
    old = TextMemory(24)
    old.restore(torch.tensor(memory.tokens()))
    assert old.tokens().tolist() == memory.tokens().tolist()


def test_a_text_shows_its_state_to_the_memory():
    memory = knowing(([1, 2, 3], [10, 11, 12]))
    copies = TextCopies(memory=memory)
    copies.observe(torch.tensor([8, 9]), features_of(40, 41))
    copies.observe(torch.tensor([2]), features_of(11))
    tree = copies.tree(2)
    assert tree.tokens.tolist() == [2, 3]
    assert origins(tree)[3] == (Source.REMEMBERED, 1)
    copies.observe(torch.tensor([2]), torch.zeros(1, 0))
    assert origins(copies.tree(2)) != origins(tree)
