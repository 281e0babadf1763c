"""Where the end of a text occurred before, and what followed: pure functions of token ids.

The idea is prompt lookup decoding's (A. Saxena, 2023); the longest match is taken, as a suffix
automaton would find it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from specblock.tree.source import Source

# What a match of this many tokens or more is called: the classes of a survival model, best first.
CLASS_LENGTHS = (8, 4, 2)
END = -1  # no token: closes a part of a text that was put together


def longest_match(
    tokens: np.ndarray, longest: int, among: np.ndarray | None = None
) -> tuple[int, np.ndarray]:
    """The longest suffix of ``tokens`` (int64 [n]) that also ends before the text's own end.

    Args:
        longest: no more tokens than this are compared.
        among: another text, int [m], to look in instead; ``END`` closes each of its parts.

    Returns:
        Its length, 0 where even the last token is new, and the ends of its earlier occurrences,
        int64 [k], newest first: ``among[e - length : e]`` is the suffix, and ``among[e]`` is
        what followed it. Occurrences may overlap the suffix.
    """
    among, count = tokens if among is None else among, len(tokens)
    if len(among) < 2 or not count or longest < 1:
        return 0, np.zeros(0, dtype=np.int64)
    ends = occurrences(int(tokens[-1]), among)
    length = min(1, len(ends))
    while length and length < min(longest, count):
        further = ends[ends > length]
        further = further[among[further - length - 1] == tokens[count - length - 1]]
        if not len(further):
            break
        ends, length = further, length + 1
    return length, ends


def occurrences(token: int, among: np.ndarray) -> np.ndarray:
    """Where ``token`` stands in a text and something follows: the places behind it, newest first.

    Args:
        token: Python's number; NumPy's own would widen all of a narrower text to compare it.
        among: int [m]; ``END`` closes each of its parts.
    """
    ends = np.flatnonzero(among[:-1] == token) + 1
    return ends[among[ends] != END][::-1].copy()


def matched_lengths(
    tokens: np.ndarray, ends: np.ndarray, among: np.ndarray, most: int
) -> np.ndarray:
    """How many tokens of the end of ``tokens`` stand before each of ``ends`` in another text.

    Args:
        ends: int64 [k], places behind the last token's occurrences. most: to compare.

    Returns:
        int64 [k], at least 1.
    """
    lengths, alive = np.ones(len(ends), dtype=np.int64), np.ones(len(ends), dtype=bool)
    for back in range(2, min(most, len(tokens)) + 1):
        alive &= (ends >= back) & (among[np.maximum(ends - back, 0)] == tokens[-back])
        if not alive.any():
            break
        lengths += alive
    return lengths


def continuation(tokens: np.ndarray, end: int, count: int) -> list[int]:
    """The ``count`` tokens after an occurrence that ends at ``end`` (at most the text's length).

    Where the text itself ends they go on with what they have copied, as a repetition does.
    """
    copied = tokens[end : end + count].tolist()
    while len(copied) < count:
        copied.append(copied[len(copied) - (len(tokens) - end)])
    return copied


def before_end(tokens: np.ndarray, end: int, count: int) -> list[int]:
    """At most ``count`` tokens after an occurrence that ends at ``end``, of its own part alone."""
    copied = tokens[end : end + count].tolist()
    return copied[: copied.index(END)] if END in copied else copied


@dataclass
class Branch:
    """A node of the merged continuations.

    ``match``: how good the match of the best of them is there, ``bucket`` in classes of these;
    ``count``: their weights' sum; ``source``: of the text that they are of.
    """

    token: int
    parent: int
    depth: int
    score: float
    log_prob: float
    bucket: int
    source: int = Source.COPIED
    match: float = 0.0
    count: float = 0.0
    children: dict[int, int] = field(default_factory=dict)


def trust_by_length(matched: float, count: float, of: float) -> float:
    """What a text's own repetition is trusted with: a match of m tokens with m / (m + 1), shared
    among what followed it by how often it did."""
    return matched / (matched + 1) * count / of


def trust_by_count(matched: float, count: float, of: float) -> float:
    """What followed in ``count`` of ``of`` other texts: a habit shows in their number."""
    return count / (of + 1)


def merge(
    continuations: list[list[int]],
    matches: float | Sequence[float],
    trust: Callable[[float, float, float], float] = trust_by_length,
    *,
    weights: Sequence[float] | None = None,
    step: float = 1.0,
    edges: Sequence[float] = CLASS_LENGTHS,
    leaders: int | None = None,
) -> list[Branch]:
    """The continuations of some matches as one tree, parents before children.

    Node 0 is the root, without a token.

    Args:
        continuations: the best first.
        matches: how good each match is, or all of them are; by default its length in tokens.
        trust: a node's probability from how good its match is and the weights of the
            continuations that pass through it and through its parent.
        weights: of each continuation; 1 where they are left out.
        step: how much better the match is one token further.
        edges: how good the matches of the classes are, best class first.
        leaders: so many continuations are kept whole; the others vote for as long as they go along
            with these, and of what they say else the first token is kept. None: all.
    """
    if isinstance(matches, int | float):
        matches = [matches] * len(continuations)
    nodes = [Branch(-1, -1, 0, 0.0, 0.0, 0)]
    for number, tokens in enumerate(continuations):
        at, weight = 0, 1.0 if weights is None else weights[number]
        nodes[0].count += weight
        for depth, token in enumerate(tokens):
            child = nodes[at].children.get(token)
            if child is None and depth and leaders is not None and number >= leaders:
                break
            if child is None:
                child = nodes[at].children[token] = len(nodes)
                match = matches[number] + step * depth
                nodes.append(Branch(token, at, depth + 1, 0.0, 0.0, 0, match=match))
            nodes[child].count += weight
            at = child
    rising = edges[::-1]
    for node in nodes[1:]:
        parent = nodes[node.parent]
        node.log_prob = math.log(trust(node.match, node.count, parent.count))
        node.score = parent.score + node.log_prob
        node.bucket = len(edges) - bisect_right(rising, node.match)
    return nodes


def joined(first: list[Branch], second: list[Branch]) -> list[Branch]:
    """Two trees under one root, parents before children; a path of both stays the first's."""
    nodes, places = list(first), [0]
    for node in second[1:]:
        parent = nodes[places[node.parent]]
        twin = parent.children.get(node.token)
        if twin is None:
            twin = parent.children[node.token] = len(nodes)
            score = parent.score + node.log_prob
            fields = node.depth, score, node.log_prob, node.bucket, node.source
            nodes.append(Branch(node.token, places[node.parent], *fields))
        places.append(twin)
    return nodes


def best(nodes: list[Branch], limit: int) -> list[Branch]:
    """The root and the ``limit`` best other nodes by score, parents first and renumbered."""
    order = sorted(range(1, len(nodes)), key=lambda index: (-nodes[index].score, index))[:limit]
    kept = [0, *sorted(order)]
    places = {index: place for place, index in enumerate(kept)}
    return [
        Branch(n.token, places.get(n.parent, -1), n.depth, n.score, n.log_prob, n.bucket, n.source)
        for n in (nodes[index] for index in kept)
    ]
