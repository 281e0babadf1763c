"""Copies of the text as further branches of the tree that a network drafted."""

from __future__ import annotations

import torch

from specblock.tree.draft_tree import DraftTree
from specblock.tree.survival import AGREED, ALONE, COPIED

__all__ = ["graft"]


def graft(tree: DraftTree, copied: DraftTree) -> DraftTree:
    """Both trees as one, under the root that they share.

    A path that both have stays the network's, with its log-probabilities; its class says that the
    text agrees. Other copies follow behind the network's nodes in their own order. The class of a
    copy says whether the network was asked: ``ALONE`` where it proposes other children of the same
    parent, ``COPIED`` where it says nothing of what follows.

    Args:
        tree: N nodes below the root.
        copied: nodes of the classes ``COPIED`` to ``COPIED + 3``, by the length of the match; or
            of these plus ``REMEMBERED``.

    Returns:
        A tree of N or more nodes, the first N the network's. Reads both to the host.
    """
    if copied.num_draft == 0:
        return tree
    children, classes = tree.children(), tree.rank_classes.tolist()
    scores, depths = tree.scores.tolist(), tree.depths.tolist()
    proposed = [bool(below) for below in children]
    own_tokens, own_classes = copied.tokens.tolist(), copied.rank_classes.tolist()
    log_probs, places = copied.log_probs.tolist(), [0]
    added: list[tuple[int, int, float, int]] = []  # token, parent, log-probability, class
    for node, above in enumerate(copied.parents.tolist()[1:], 1):
        parent, token, own = places[above], own_tokens[node], own_classes[node]
        twin = children[parent].get(token)
        if twin is not None:
            classes[twin] = own + (AGREED - COPIED)
        else:
            twin = len(children)
            children[parent][token] = twin
            children.append({})
            asked = proposed[parent]
            proposed.append(False)
            depths.append(depths[parent] + 1)
            scores.append(scores[parent] + log_probs[node])
            added.append((token, parent, log_probs[node], own + (ALONE - COPIED if asked else 0)))
            classes.append(added[-1][-1])
        places.append(twin)
    device = tree.tokens.device
    tokens, parents, claims, _ = zip(*added, strict=True) if added else ((), (), (), ())
    return DraftTree(
        torch.cat((tree.tokens, torch.tensor(tokens, dtype=torch.int64, device=device))),
        torch.cat((tree.parents, torch.tensor(parents, dtype=torch.int64, device=device))),
        torch.tensor(depths, device=device),
        torch.cat((tree.scores, torch.tensor(scores[len(tree) :], device=device))),
        torch.cat((tree.log_probs, torch.tensor(claims, device=device))),
        torch.tensor(classes, device=device),
    )
