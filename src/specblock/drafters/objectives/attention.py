"""Attention of many small groups of queries over a shared context and their own keys.

Drafters are trained from many positions of a sequence at once: each is a group of a few queries
that sees the context up to its position and the keys of its own chain. The scores of all of them
together would grow with the square of the length, and so would a mask. They are computed a piece
at a time instead, the context of a piece is cut where its last group stops seeing, and no piece's
scores are kept for the backward pass, which computes them again. That is the block-sparse pattern,
in memory that does not grow with the length, on every device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# scores held at once: 128 MiB in bf16, and three temporaries of that size
MAX_SCORES = 2**26


@dataclass(frozen=True)
class Piece:
    """Groups ``start`` to ``stop``, none of which sees more than ``keys`` context entries."""

    start: int
    stop: int
    keys: int


@dataclass(frozen=True)
class Sight:
    """What M groups of K queries see.

    Attributes:
        counts: int64 [B, M], how many leading entries of the context.
        own_mask: bool [B, M, K, n], which of the group's own keys.
        pieces: how the groups are divided; they need not be sorted, but rising positions make the
            early pieces cheap.
    """

    counts: Tensor
    own_mask: Tensor
    pieces: tuple[Piece, ...]

    @classmethod
    def of(
        cls, counts: Tensor, own_mask: Tensor, heads: int, max_scores: int = MAX_SCORES
    ) -> Sight:
        """Divide the groups so that no piece holds more than ``max_scores`` scores of ``heads``
        heads; a single group may hold more."""
        batch, groups, rows, own = own_mask.shape
        reach = counts.amax(0).tolist() if batch else [0] * groups
        size = groups_at_once(batch * heads * rows * (max(reach, default=0) + own), max_scores)
        pieces = [
            Piece(start, min(start + size, groups), max(reach[start : start + size]))
            for start in range(0, groups, size)
        ]
        return cls(counts, own_mask, tuple(pieces))

    def attend(
        self, q: Tensor, context_k: Tensor, context_v: Tensor, own_k: Tensor, own_v: Tensor
    ) -> Tensor:
        """One softmax over the context and each group's own keys.

        Args:
            q: [B, M, K, heads, d]; context_k/v: [B, kv_heads, T, d]; own_k/v: [B, M, n, kv_heads,
                d].

        Returns ``[B, M, K, heads * d]``.
        """
        outputs = []
        for piece in self.pieces:
            groups, seen = slice(piece.start, piece.stop), slice(piece.keys)
            parts = (
                q[:, groups],
                context_k[:, :, seen],
                context_v[:, :, seen],
                self.counts[:, groups],
                own_k[:, groups],
                own_v[:, groups],
                self.own_mask[:, groups],
            )
            if len(self.pieces) == 1:
                return _attend(*parts)
            outputs.append(
                checkpoint(_attend, *parts, use_reentrant=False, preserve_rng_state=False)
            )
        return torch.cat(outputs, dim=1)


def groups_at_once(scores_of_a_group: int, max_scores: int = MAX_SCORES) -> int:
    """Groups whose scores together are at most ``max_scores``; at least one."""
    return max(1, max_scores // max(1, scores_of_a_group))


def _attend(
    q: Tensor,
    context_k: Tensor,
    context_v: Tensor,
    counts: Tensor,
    own_k: Tensor,
    own_v: Tensor,
    own_mask: Tensor,
) -> Tensor:
    kv_heads, dim, split = context_k.shape[1], q.shape[-1], context_k.shape[2]
    context_mask = torch.arange(split, device=q.device) < counts[..., None]
    q = q.unflatten(3, (kv_heads, -1)) * dim**-0.5
    context = torch.einsum("bmkhgd,bhtd->bhmkgt", q, context_k)
    own = torch.einsum("bmkhgd,bmnhd->bhmkgn", q, own_k)
    # one sum with a mask and one softmax in the products' dtype: in fp32 and in pieces, moving the
    # scores about takes longer than computing them
    visible = torch.cat((context_mask[:, :, None].expand(-1, -1, q.shape[2], -1), own_mask), dim=-1)
    hidden = torch.zeros(visible.shape, dtype=context.dtype, device=q.device)
    hidden.masked_fill_(~visible, torch.finfo(context.dtype).min)
    scores = torch.cat((context, own), dim=-1) + hidden[:, None, :, :, None]
    weights = scores.softmax(-1)
    out = torch.einsum("bhmkgt,bhtd->bmkhgd", weights[..., :split], context_v)
    out = out + torch.einsum("bhmkgn,bmnhd->bmkhgd", weights[..., split:], own_v)
    return out.flatten(3)
