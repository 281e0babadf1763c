"""Does a verified tree give plain decoding's logits to the bit, on this machine?

The exact attention and routes (:mod:`specblock.kernels.invariant`, :mod:`specblock.kernels.routes`)
rely on the order in which this processor's kernels add up, so it is tried.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from specblock.errors import ModelError
from specblock.kernels.products import DIRECT, available_routes
from specblock.kernels.route_table import ROW_BUCKETS, TILED, RouteTable
from specblock.target.model import Target
from specblock.tree.draft_tree import DraftTree

_CONTEXT, _PATH = 250, 10  # the path goes over position 256, where sums are split
_ROWS = (1, 2, 5, 12, 30, 70)  # further nodes beside the path's
_TILED, _TILE = ("blocked", DIRECT), 8  # kernels in the order of choice, rows
_log = logging.getLogger("specblock")


def give_up_unless_exact(targets: Sequence[Target]) -> None:
    """Take exactness back from targets over one model if this machine cannot have it.

    Raises as :func:`give_up`.
    """
    if not targets[0].exact:
        return
    repeats = repeats_plain(targets[0])
    targets[0].text = None  # the trial's room is others'
    if not repeats:
        give_up(targets)


def give_up(targets: Sequence[Target]) -> None:
    """Take exactness back from targets over one model, with a warning.

    Raises :class:`ModelError` where it was asked for by name.
    """
    if any(target.by_name for target in targets):
        raise ModelError(
            "Verification cannot be made exact here: this machine's kernels do not add up in one "
            "order, even in tiles; leave exact out."
        )
    _log.warning(
        "This machine's kernels do not add up in one order, so outputs in %s may differ from plain "
        "decoding at near-ties; float32 makes these rare.",
        str(targets[0].dtype).removeprefix("torch."),
    )
    for target in targets:
        target.give_up_exactness()


def safe_routes(target: Target) -> RouteTable:
    """Routes without measuring: the usual ones, in tiles of some rows where the target is exact."""
    routes = {}
    if not target.exact:
        return RouteTable()
    for linear in target.linears:
        kernel = next(name for name in _TILED if name in available_routes(linear.weight))
        routes[linear.shape] = [f"{kernel}{TILED}{_TILE}"] * len(ROW_BUCKETS)
    return RouteTable(routes)


@torch.inference_mode()
def repeats_plain(target: Target, seed: int = 0) -> bool:
    """Whether logits along a path are plain decoding's, whatever stands beside it in the tree.

    The target's sequence is lost.
    """
    generator = torch.Generator().manual_seed(seed)
    room = target.context_length - _PATH - _ROWS[-1] - 1
    count = max(1, min(_CONTEXT, room))
    ids = torch.randint(0, target.vocab_size, (count + _PATH,), generator=generator)
    prompt, path = ids[:count].to(target.device), ids[count:]
    target.reset(len(ids) + _ROWS[-1] + 1)
    whole = target.prefill(prompt).logits
    target.cache.crop_to(count // 3)
    if not target.prefill(prompt[count // 3 :]).logits.equal(whole):
        return False  # a prompt may be read in any pieces
    plain = []
    for token in path.tolist():
        plain.append(target.verify(DraftTree.root_only(token, target.device)).logits[0])
        target.commit(torch.zeros(1, dtype=torch.int64, device=target.device))
    for others in _ROWS:
        target.cache.crop_to(count)
        tree, nodes = _around(path, others, target, generator)
        logits = target.verify(tree).logits[nodes]
        if not logits.equal(torch.stack(plain)):
            return False
    return True


def _around(
    path: Tensor, others: int, target: Target, generator: torch.Generator
) -> tuple[DraftTree, Tensor]:
    """A tree of ``path`` and random nodes in random order, and the nodes of the path."""
    total = len(path) + others
    kept = torch.randperm(total - 1, generator=generator)[: len(path) - 1].sort().values + 1
    nodes = torch.cat((torch.zeros(1, dtype=torch.int64), kept))
    tokens = torch.randint(0, target.vocab_size, (total,), generator=generator)
    tokens[nodes] = path
    parents = [-1] + [int(torch.randint(0, i, (1,), generator=generator)) for i in range(1, total)]
    for parent, child in zip(nodes[:-1].tolist(), nodes[1:].tolist(), strict=True):
        parents[child] = parent
    depths = [0] * total
    for node in range(1, total):
        depths[node] = depths[parents[node]] + 1
    zeros = torch.zeros(total, device=target.device)
    integers = [torch.tensor(x, device=target.device) for x in (parents, depths)]
    tree = DraftTree(
        tokens.to(target.device), *integers, zeros, zeros, torch.zeros_like(integers[0])
    )
    return tree, nodes.to(target.device)
