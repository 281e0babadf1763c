"""The draft tree: what a drafter proposes and the target verifies in one forward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specblock.tree.source import BUCKETS

# Scores are float32 sums of a few dozen log-probabilities at most.
_SCORE_TOLERANCE = 1e-3


# eq=False: comparing tensors field by field has no single truth value.
@dataclass(frozen=True, eq=False)
class DraftTree:
    """A tree of draft tokens under the newest token of the sequence; a value, never changed.

    Node 0 is the root: the newest token, whose keys and values the target does not hold yet. Every
    parent comes before its children and no two siblings carry the same token. The tree is a
    deterministic function of the prefix, which is what makes acceptance by the target's own draws
    exact at every temperature.

    Attributes:
        tokens: int64 [N+1], target-vocabulary ids; node 0 is the root.
        parents: int64 [N+1], ``parents[0] == -1`` and ``parents[i] < i``.
        depths: int64 [N+1], ``depths[0] == 0``, a child is one deeper than its parent.
        scores: float32 [N+1], the drafter's cumulative log-probability (nats, temperature 1);
            the root's is 0 and a child's is its parent's plus its own ``log_probs``.
        log_probs: float32 [N+1], the drafter's log p(token | path to the parent); root 0.
        buckets: int64 [N+1]; of the network's nodes the rank bucket predicted for the slot that
            proposed them (0: rank 1, 1: ranks 2-4, 2: ranks 5-10, 3: beyond); of copied ones that
            of the match's length (0: longest); root 0.
        sources: int64 [N+1], :class:`Source` of each node; left out, all are the network's.
    """

    tokens: Tensor
    parents: Tensor
    depths: Tensor
    scores: Tensor
    log_probs: Tensor
    buckets: Tensor
    sources: Tensor = None  # type: ignore[assignment]  # never None afterwards

    def __post_init__(self) -> None:
        if self.sources is None:
            object.__setattr__(self, "sources", torch.zeros_like(self.buckets))

    @property
    def classes(self) -> Tensor:
        """int64 [N+1]: sources and buckets as one number, for tables by both."""
        return self.sources * BUCKETS + self.buckets

    @staticmethod
    def root_only(token: int, device: torch.device | str | None = None) -> DraftTree:
        """The tree without any draft token: verifying it is one plain decoding step."""
        zero = torch.zeros(1, dtype=torch.int64, device=device)
        nothing = torch.zeros(1, dtype=torch.float32, device=device)
        return DraftTree(zero + token, zero - 1, zero, nothing, nothing, zero)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def num_draft(self) -> int:
        """Number of draft tokens, the root not counted."""
        return len(self) - 1

    def positions(self, prefix_length: int) -> Tensor:
        """int64 [N+1]: position of every node in the sequence, the root at ``prefix_length``."""
        return self.depths + prefix_length

    def up_to(self, depth: int) -> DraftTree:
        """The tree without the nodes below ``depth``, which is at least 0."""
        if self.num_draft <= depth:
            return self
        kept = (self.depths <= depth).nonzero().flatten()
        if len(kept) == len(self):
            return self
        places = torch.zeros_like(self.parents).scatter_(0, kept, torch.arange(len(kept)).to(kept))
        fields = {name: value.index_select(0, kept) for name, value in vars(self).items()}
        fields["parents"] = places[fields["parents"].clamp(min=0)]
        fields["parents"][0] = -1
        return DraftTree(**fields)

    def ancestor_mask(self) -> Tensor:
        """bool [N+1, N+1]: ``mask[i, j]`` iff node j is node i or one of its ancestors.

        No host synchronisation.
        """
        size = len(self)
        # A root that is its own parent lets every row jump equally often.
        jump = self.parents.clamp(min=0)
        mask = torch.eye(size, dtype=torch.bool, device=jump.device)
        # Each round doubles how far up a row has looked; no path is longer than the tree.
        for _ in range((size - 1).bit_length()):
            mask = mask | mask.index_select(0, jump)
            jump = jump.index_select(0, jump)
        return mask

    def children(self) -> list[dict[int, int]]:
        """For every node, its children as token -> node index (reads the tree to the host)."""
        children: list[dict[int, int]] = [{} for _ in range(len(self))]
        tokens = self.tokens.tolist()
        for node, parent in enumerate(self.parents.tolist()):
            if parent >= 0:
                children[parent][tokens[node]] = node
        return children

    def paths(self) -> Tensor:
        """int64 [leaves, max_depth+1]: node indices root -> leaf, padded with -1.

        One row per leaf, rows in lexicographic order. Reads the tree to the host.
        """
        parents = self.parents.tolist()
        inner = set(parents)
        rows = []
        for leaf in range(len(parents)):
            if leaf in inner:
                continue
            row, node = [], leaf
            while node >= 0:
                row.append(node)
                node = parents[node]
            rows.append(row[::-1])
        width = max(map(len, rows))
        padded = [row + [-1] * (width - len(row)) for row in sorted(rows)]
        return torch.tensor(padded, dtype=torch.int64, device=self.parents.device)

    def validate(self) -> None:
        """Checks every invariant named above; for tests and debugging, it reads to the host.

        Raises:
            ValueError: names the invariant that does not hold.
        """
        self._validate_fields()
        parents, depths = self.parents.tolist(), self.depths.tolist()
        scores, log_probs = self.scores.tolist(), self.log_probs.tolist()
        tokens = self.tokens.tolist()
        if parents[0] != -1 or depths[0] != 0 or scores[0] != 0 or log_probs[0] != 0:
            raise ValueError("node 0 must be the root: parent -1, depth 0, score 0, log_prob 0")
        siblings: set[tuple[int, int]] = set()
        for node in range(1, len(self)):
            parent = parents[node]
            if not 0 <= parent < node:
                raise ValueError(f"node {node} comes before its parent {parent}")
            if depths[node] != depths[parent] + 1:
                raise ValueError(f"node {node} is not one deeper than its parent {parent}")
            if (parent, tokens[node]) in siblings:
                raise ValueError(f"node {node} repeats a sibling's token {tokens[node]}")
            siblings.add((parent, tokens[node]))
            # Written so that a NaN fails too.
            if not log_probs[node] <= 0:
                raise ValueError(f"node {node} has a log-probability above 0 or none")
            if not abs(scores[parent] + log_probs[node] - scores[node]) <= _SCORE_TOLERANCE:
                raise ValueError(f"score of node {node} is not its parent's plus its log_prob")

    def _validate_fields(self) -> None:
        fields = vars(self)
        for name, value in fields.items():
            dtype = torch.float32 if name in ("scores", "log_probs") else torch.int64
            if value.dtype != dtype or value.ndim != 1:
                raise ValueError(f"{name} must be a {dtype} vector")
        if len({value.shape[0] for value in fields.values()}) != 1 or len(self) == 0:
            raise ValueError("all fields must have the same length, at least one node")
