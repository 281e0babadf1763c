"""Which path of a draft tree the target accepts.

At every visited node the target draws its own token from its own processed distribution; the walk
goes down to the child that carries this token, and the first drawn token without a child is the
bonus token. The tree is a deterministic function of the prefix and the target never looks at it
before drawing, so the emitted tokens are those of plain decoding with the same seed: exact for
greedy and sampled decoding alike, with every filter, penalty and logits processor. No lossless rule
accepts more from a deterministic tree.

The target draws once per emitted token, in the order of the text, and never for a token that is
rejected: what keeps a state, a grammar say, sees just the text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specblock.tree.draft_tree import DraftTree
from specblock.tree.sampling import NoPossibleTokenError, SamplingParams, draw


@dataclass(frozen=True)
class Acceptance:
    """What one verification yields.

    Attributes:
        path: indices of the visited nodes, the root (0) first, the last accepted node last.
        tokens: the new tokens: those of path[1:], then the bonus token; one per visited node.
        trials: per visited node, (child, whether the target drew its token) for all its children.
    """

    path: list[int]
    tokens: list[int]
    trials: list[list[tuple[int, bool]]]

    @property
    def bonus(self) -> int:
        return self.tokens[-1]

    @property
    def accepted(self) -> int:
        """Accepted draft tokens, the bonus token not counted."""
        return len(self.path) - 1


def accept(
    tree: DraftTree,
    logits: Tensor,
    params: SamplingParams,
    context: Sequence[int] | Tensor,
    prompt_length: int,
    position: int,
    ended: Callable[[int], bool] | None = None,
) -> Acceptance:
    """Walk down the tree with the target's draws.

    Args:
        tree: N draft nodes below the root.
        logits: [N+1, V] target logits; row i follows node i.
        context: token ids known so far, the root's token last; read only where
            ``params.reads_context``.
        prompt_length: how many tokens of the context are prompt.
        position: absolute position of the token that follows the root.
        ended: told of every drawn token, in order; the walk stops at the first for which it holds,
            even where a child carries that token.

    Raises:
        ValueError: the number of logit rows is not that of the nodes; the context does not end
            with the root's token.
        NoPossibleTokenError: the logits of a visited node hold NaN or leave no token possible.
    """
    if len(logits) != len(tree):
        raise ValueError(f"{len(logits)} rows of logits for {len(tree)} tree nodes.")
    running = _running(tree, context) if params.reads_context else []
    best = _best_rows(logits) if _at_once(logits, params) else None
    children = tree.children()
    path, tokens, trials = [], [], []
    node: int | None = 0
    while node is not None:
        if best is None:
            token = draw(logits[node], params, running, prompt_length, position + len(tokens))
        else:
            token = _checked(best[node])
        path.append(node)
        tokens.append(token)
        running.append(token)
        child = children[node].get(token)
        trials.append([(other, other == child) for other in children[node].values()])
        node = None if ended is not None and ended(token) else child
    return Acceptance(path, tokens, trials)


def follow(tree: DraftTree, tokens: Sequence[int]) -> list[list[tuple[int, bool]]]:
    """The trials that a tree would have had, given the tokens that followed its root.

    Args:
        tree: any tree, verified or not.
        tokens: what the target drew, oldest first.

    Returns:
        As ``Acceptance.trials``; it ends where the tree does, or the tokens.
    """
    children, trials = tree.children(), []
    node: int | None = 0
    for token in tokens:
        child = children[node].get(token)
        trials.append([(other, other == child) for other in children[node].values()])
        if child is None:
            break
        node = child
    return trials


def _at_once(logits: Tensor, params: SamplingParams) -> bool:
    """Whether one call finds every row's arg-max, so that the host waits for the device once.

    On the CPU there is no wait to save, and most rows are never visited.
    """
    return params.greedy and not params.reads_context and logits.device.type != "cpu"


def _best_rows(logits: Tensor) -> list[int]:
    """Arg-max of every row, the lowest id on ties; -1 where `draw` would refuse the row."""
    best, tokens = logits.max(dim=-1)
    return torch.where(best.isfinite(), tokens, -1).tolist()


def _checked(token: int) -> int:
    if token < 0:
        raise NoPossibleTokenError
    return token


def _running(tree: DraftTree, context: Sequence[int] | Tensor) -> list[int]:
    """The context as a list of its own, to be extended by the path."""
    running = context.tolist() if isinstance(context, Tensor) else list(context)
    if not running or running[-1] != int(tree.tokens[0]):
        raise ValueError("The context must end with the token of the tree's root.")
    return running
