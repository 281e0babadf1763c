"""Copies of the text as further branches of the tree that a network drafted."""

from __future__ import annotations

import torch

from specblock.tree.draft_tree import DraftTree
from specblock.tree.source import Source

__all__ = ["graft"]


def graft(tree: DraftTree, copied: DraftTree) -> DraftTree:
    """Both trees as one, under the root that they share.

    A path that both have stays the network's, with its log-probabilities; its source says that the
    text agrees, its bucket is the match's. Other copies follow behind the network's nodes in their
    own order. The source of a copy says whether the network was asked: ``ALONE`` where it proposes
    other children of the same parent, ``COPIED`` where it says nothing of what follows.

    Args:
        tree: N nodes below the root.
        copied: nodes of the sources ``COPIED`` and ``REMEMBERED``.

    Returns:
        A tree of N or more nodes, the first N the network's. Reads both to the host.
    """
    if copied.num_draft == 0:
        return tree
    children = tree.children()
    buckets, sources = tree.buckets.tolist(), tree.sources.tolist()
    scores, depths = tree.scores.tolist(), tree.depths.tolist()
    proposed = [bool(below) for below in children]
    places = [0]
    own = zip(
        copied.tokens.tolist(), copied.parents.tolist(), copied.buckets.tolist(),
        map(Source, copied.sources.tolist()), copied.log_probs.tolist(), strict=True,
    )  # fmt: skip
    added: list[tuple[int, int, float]] = []  # token, parent, log-probability
    for token, above, bucket, source, log_prob in list(own)[1:]:
        parent = places[above]
        twin = children[parent].get(token)
        if twin is not None:
            buckets[twin], sources[twin] = bucket, source.agreed
        else:
            twin = len(children)
            children[parent][token] = twin
            children.append({})
            sources.append(source.alone if proposed[parent] else source)
            buckets.append(bucket)
            proposed.append(False)
            depths.append(depths[parent] + 1)
            scores.append(scores[parent] + log_prob)
            added.append((token, parent, log_prob))
        places.append(twin)
    return _grown(tree, added, depths, scores, buckets, sources)


def _grown(
    tree: DraftTree,
    added: list[tuple[int, int, float]],
    depths: list[int],
    scores: list[float],
    buckets: list[int],
    sources: list[int],
) -> DraftTree:
    """The tree with the nodes ``added`` behind its own; the lists are of all nodes."""
    device = tree.tokens.device
    tokens, parents, claims = zip(*added, strict=True) if added else ((), (), ())
    return DraftTree(
        torch.cat((tree.tokens, torch.tensor(tokens, dtype=torch.int64, device=device))),
        torch.cat((tree.parents, torch.tensor(parents, dtype=torch.int64, device=device))),
        torch.tensor(depths, device=device),
        torch.cat((tree.scores, torch.tensor(scores[len(tree) :], device=device))),
        torch.cat((tree.log_probs, torch.tensor(claims, device=device))),
        torch.tensor(buckets, device=device),
        torch.tensor(sources, device=device),
    )
