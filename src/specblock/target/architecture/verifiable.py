"""Which models can verify a draft tree, and the true reason where one cannot."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from specblock.errors import ModelError
from specblock.target.architecture.families import FAMILIES
from specblock.target.architecture.structure import cache_argument, forward_of, text_config
from specblock.target.masks import FULL, SLIDING
from specblock.tree.draft_tree import DraftTree

if TYPE_CHECKING:
    from specblock.target.model import Target

_ADVICE = "SpecBlock does not speed it up today; docs/models.md lists the families that it does"
_PLAIN = {FULL, SLIDING, "attention", "global"}
_PROMPT = [3, 5, 4, 7, 6, 9]  # token ids that a forward is tried on
# no path's tokens lie side by side, so that a place in the forward is nowhere a position
_PARENTS = [-1, 0, 0, 1, 2, 2, 3, 4, 6, 7]
_TOLERANCES = {torch.float32: 1e-3}  # of the logits' spread; a few times what rounding does
_HALF = 0.1  # the same for 16-bit dtypes


def check_verifiable(model: nn.Module) -> None:
    """Raise :class:`ModelError` if the model is known to be unable to verify a tree, and say why.

    A tree needs keys and values of every position, positions that can be told, and attention that
    keeps to the mask it is given.
    """
    name, config = type(model).__name__, text_config(model)
    kinds = _layer_kinds(config)
    odd = sorted({str(kind) for kind in kinds} - _PLAIN)
    if odd:
        where = ", ".join(f"{kind} in {_places(kinds, kind)}" for kind in odd)
        raise ModelError(
            f"{name} has layers that follow the order of a plain text and cannot leave out "
            f"rejected drafts ({where}): {_ADVICE}."
        )
    if not kinds and getattr(model, "_is_stateful", False):
        raise ModelError(
            f"{name} carries a state from token to token, which cannot leave out rejected drafts: "
            f"{_ADVICE}."
        )
    asked = inspect.signature(forward_of(model)).parameters
    if cache_argument(forward_of(model)) is None:
        raise ModelError(f"{name} keeps no cache of keys and values: {_ADVICE}.")
    if getattr(config, "alibi", False) or "position_ids" not in asked:
        raise ModelError(
            f"{name} works out positions, or a bias for them, from the order of a plain text and "
            f"cannot be told those of a draft tree: {_ADVICE}."
        )


def _layer_kinds(config) -> list:
    """The kind of every layer as its configuration tells it, under one of the usual names."""
    names = ("layer_types", "layers_block_type", "attention_layers")
    return list(next(filter(None, (getattr(config, name, None) for name in names)), ()))


def _places(kinds: list, kind: str) -> str:
    """Such as ``layers 0-2 and 4 of 6``."""
    indices = [i for i, other in enumerate(kinds) if str(other) == kind]
    runs = [list(run) for _, run in groupby(indices, key=lambda i: i - indices.index(i))]
    names = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return f"layers {', '.join(names)} of {len(kinds)}"


def check_untested(target: Target) -> None:
    """Compare a small tree with plain forwards where the model's family is not a tested one.

    Raises :class:`ModelError` if they differ, or the model cannot do it at all. The target's
    sequence is lost.
    """
    name = type(target.model).__name__
    if name in FAMILIES.values():
        return
    try:
        apart = distance_from_plain(target)
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise ModelError(f"{name} fails over a draft tree ({type(e).__name__}): {_ADVICE}.") from e
    finally:
        target.text = None
    if not apart < most_distance(target.dtype):
        raise ModelError(
            f"{name} gives other predictions in a draft tree than in a plain text: {_ADVICE}."
        )


def most_distance(dtype: torch.dtype) -> float:
    """How far rounding takes logits apart in a dtype, in units of their spread, at most."""
    return _TOLERANCES.get(dtype, _HALF)


def distance_from_plain(target: Target) -> float:
    """How far logits in a tree are from plain ones, in units of their spread.

    The median over the nodes: a mixture of experts may round a single row to other experts. The
    target's sequence is lost.
    """
    return float(distances_from_plain(target, _PROMPT).median())


@torch.inference_mode()
def distances_from_plain(target: Target, prompt: Sequence[int]) -> Tensor:
    """The same for every node of a small tree behind ``prompt``, float ``[nodes]``.

    The target's sequence is lost.
    """
    count = len(_PARENTS)
    tokens = [3 + (5 * node) % min(13, target.vocab_size - 3) for node in range(count)]
    paths = [[0]]
    for parent in _PARENTS[1:]:
        paths.append([*paths[parent], len(paths)])
    depths = [len(path) - 1 for path in paths]
    integers = [torch.tensor(x, device=target.device) for x in (tokens, _PARENTS, depths)]
    zeros = torch.zeros(count, device=target.device)
    target.reset(len(prompt) + count)
    target.prefill(torch.tensor(prompt, device=target.device))
    ours = target.verify(DraftTree(*integers, zeros, zeros, torch.zeros_like(integers[0]))).logits
    distances = []
    for path in paths[1:]:
        text = torch.tensor([[*prompt, *(tokens[node] for node in path)]], device=target.device)
        places = torch.arange(text.shape[1], device=target.device)[None]
        with target.loan:
            output = target.model(input_ids=text, position_ids=places, use_cache=False)
        plain = output.logits[0, -1]
        distances.append((ours[path[-1]] - plain).abs().max() / plain.std())
    return torch.stack(distances)
