"""Tree growth spelled out with loops and plain objects: slow, and meant to be obviously right.

Nothing here shares a line of thought with the tensor code beyond the definitions: no path keys, no
sorting of pools, no -inf bookkeeping. Float sums use numpy's float32, one addition at a time, so
that scores can be compared exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from specblock.tree.draft_tree import DraftTree
from specblock.tree.growth import BlockCandidates, GrowthPolicy


@dataclass(eq=False)
class Node:
    """A node of a linked tree; ``index`` is its place in the pool (-1: the root)."""

    index: int
    token: int
    parent: Node | None
    log_prob: np.float32
    score: np.float32
    rank_class: int = 0
    slot: int = 0
    block: int = 0
    greedy: bool = False
    children: list[Node] = field(default_factory=list)

    @property
    def depth(self) -> int:
        return 0 if self.parent is None else self.parent.depth + 1

    @property
    def path(self) -> tuple[int, ...]:
        return () if self.parent is None else (*self.parent.path, self.token)


def root(token: int = 0) -> Node:
    return Node(-1, token, None, np.float32(0), np.float32(0))


def walk(node: Node) -> list[Node]:
    """The draft nodes below ``node``, parents first."""
    found = []
    for child in node.children:
        found += [child, *walk(child)]
    return found


def factors(block: BlockCandidates, policy: GrowthPolicy, first_block: bool) -> list[list[int]]:
    rows, slots, width = block.tokens.shape
    result = []
    for b in range(rows):
        gave_up = False
        seen_miss = False
        row = []
        for k in range(slots):
            rank_class = int(block.rank_classes[b, k])
            probability = float(block.log_probs[b, k, 0].exp())
            if first_block and k == 0:
                base, rules = policy.width, policy.adaptive_first
            else:
                chosen = rank_class if policy.rank_branching else 1
                base, rules = policy.branching[chosen], policy.adaptive_rest
            for threshold, cap in rules:
                if probability >= float(np.float32(threshold)):
                    base = min(base, cap)
                    break
            if policy.rank_branching and policy.branching[3] == 0:
                if rank_class == 3 and not seen_miss:
                    gave_up = True
                seen_miss = seen_miss or rank_class != 0
            row.append(0 if gave_up else min(width, max(1, base)))
        result.append(row)
    return result


def grow_block(
    leaf: Node,
    block: BlockCandidates,
    row: int,
    row_factors: list[int],
    kept_width: int,
    offset: int,
    number: int,
) -> list[Node]:
    """Hangs block ``row`` under ``leaf``; returns its nodes, the greedy chain included."""
    _, slots, width = block.tokens.shape
    width = min(width, kept_width)
    parent, grown = leaf, []
    for k in range(slots):
        greedy = None
        for j in range(max(1, row_factors[k])):
            value = float(block.log_probs[row, k, j])
            if value == -np.inf or np.isnan(value):
                continue
            log_prob = np.float32(min(value, 0.0))
            node = Node(
                index=offset + (row * slots + k) * width + j,
                token=int(block.tokens[row, k, j]),
                parent=parent,
                log_prob=log_prob,
                score=np.float32(parent.score + log_prob),
                rank_class=int(block.rank_classes[row, k]),
                slot=k,
                block=number,
                greedy=j == 0,
            )
            parent.children.append(node)
            grown.append(node)
            if j == 0:
                greedy = node
        if greedy is None:
            break
        parent = greedy
    return grown


def may_start(node: Node, row_factors: list[int]) -> bool:
    """Active slots start blocks with every node; the last slot's greedy token may hitch-hike."""
    factor = row_factors[node.slot]
    if factor > 1:
        return True
    return factor == 1 and node.greedy and node.slot == len(row_factors) - 1


def deduplicate(top: Node) -> None:
    """Merges siblings with the same token, level by level, best score first."""
    level = [top]
    while level:
        below: list[Node] = []
        for parent in level:
            winners: dict[int, Node] = {}
            for child in sorted(parent.children, key=lambda node: node.index):
                # The parent may be another than when the child was scored.
                child.parent = parent
                child.score = np.float32(parent.score + child.log_prob)
                best = winners.get(child.token)
                if best is None or child.score > best.score:
                    winners[child.token] = child
            for child in parent.children:
                winner = winners[child.token]
                if child is not winner:
                    winner.children += child.children
            parent.children = list(winners.values())
            below += parent.children
        level = below


def prune(top: Node, budget: int) -> list[Node]:
    """Takes the best node whose parent is taken, again and again; ordered by depth, then score."""
    taken: list[Node] = []
    frontier = list(top.children)
    while frontier and len(taken) < budget:
        best = min(frontier, key=lambda node: (-node.score, node.depth, node.index))
        frontier.remove(best)
        taken.append(best)
        frontier += best.children
    return sorted(taken, key=lambda node: (node.depth, -node.score, node.index))


def ancestors(tree: DraftTree, node: int) -> list[int]:
    """The node, its parent, ... the root."""
    found = [node]
    while int(tree.parents[found[-1]]) >= 0:
        found.append(int(tree.parents[found[-1]]))
    return found


def token_paths(tree: DraftTree) -> set[tuple[int, ...]]:
    """The token path from below the root to every draft node."""
    return {
        tuple(int(tree.tokens[i]) for i in reversed(ancestors(tree, node)[:-1]))
        for node in range(1, len(tree))
    }


def random_block(
    generator: torch.Generator, rows: int, slots: int, width: int, vocabulary: int, kind: str
) -> BlockCandidates:
    """Random candidates, best first; small vocabularies make blocks repeat each other.

    ``kind`` is "smooth" (a softmax), "ties" (few distinct values, 0 among them) or "holes"
    (like ties, with absent candidates and NaN).
    """
    sharpness = torch.rand(rows, slots, 1, generator=generator) * 8
    logits = torch.randn(rows, slots, vocabulary, generator=generator) * sharpness
    log_probs, tokens = torch.log_softmax(logits, -1).topk(width)
    if kind != "smooth":
        log_probs = (log_probs * 2).round() / 2
    if kind == "holes":
        hole = torch.rand(log_probs.shape, generator=generator)
        log_probs[hole < 0.1] = -torch.inf
        log_probs[hole > 0.97] = torch.nan
    classes = torch.randint(0, 4, (rows, slots), generator=generator)
    return BlockCandidates(tokens, log_probs, classes)
