"""Where an output differs from plain decoding, and whether rounding alone can explain it.

SpecBlock's output is plain decoding's, except where two tokens are so close that the rounding of a
differently shaped matrix product decides. The margin of plain decoding at the first differing
position tells the two apart: a difference with a small margin is a near-tie, any other is a bug.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from specblock.config import GenerationConfig

__all__ = ["Divergence", "classify", "first_difference", "near_tie_limit"]


# Largest margin, in logits, that counts as a near-tie: the rounding of a whole forward, with a wide
# allowance. fp32 logits of two routes differ by about 1e-5, half-precision ones by a few units in
# the last place of a logit of about 20.
NEAR_TIES = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.5}


@dataclass(frozen=True)
class Divergence:
    """One output that is not plain decoding's; ``position`` counts new tokens from 0.

    ``margin`` is in logits (see :func:`specblock.tree.sampling.draw_margin`); None where no draw of
    the target could explain the difference: the outputs hold the same tokens but ended for
    different reasons.
    """

    id: str
    method: str
    position: int
    kind: str  # "near-tie" or "bug"
    margin: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def near_tie_limit(dtype: Any) -> float:
    """The largest near-tie of a torch dtype or its name; an unknown one gets float32's."""
    return NEAR_TIES.get(str(dtype).removeprefix("torch."), NEAR_TIES["float32"])


def first_difference(plain: Sequence[int], other: Sequence[int]) -> int | None:
    """Index of the first differing token; where one output is a prefix of the other, its length."""
    for index, (left, right) in enumerate(zip(plain, other, strict=False)):
        if left != right:
            return index
    return None if len(plain) == len(other) else min(len(plain), len(other))


def classify(
    speculator: Any,
    prompt_ids: Sequence[int],
    plain: Any,
    other: Any,
    config: GenerationConfig,
    *,
    id: str,
    method: str,
) -> Divergence | None:
    """Compare two generations of one prompt; None where they are identical.

    Args:
        speculator: whose target computes the margin; its running state is discarded.
        prompt_ids: the prompt's token ids.
        plain, other: generations with ``token_ids`` and ``finish_reason``.
    """
    position = first_difference(plain.token_ids, other.token_ids)
    if position is None:
        if plain.finish_reason == other.finish_reason:
            return None
        return Divergence(id, method, len(plain.token_ids), "bug", None)
    prefix = [*prompt_ids, *plain.token_ids[:position]]
    margin = _margin(speculator.target, prefix, len(prompt_ids), config)
    kind = "near-tie" if margin <= near_tie_limit(speculator.target.dtype) else "bug"
    return Divergence(id, method, position, kind, margin)


def _margin(
    target: Any, prefix: Sequence[int], prompt_length: int, config: GenerationConfig
) -> float:
    """How far plain decoding's draw after ``prefix`` was from another token."""
    from specblock.engine.rounds import plain_logits
    from specblock.tree.sampling import draw_margin

    logits = plain_logits(target, list(prefix))
    return draw_margin(logits, config.sampling(), list(prefix), prompt_length, len(prefix))
