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

__all__ = ["Divergence", "Thresholds", "classify", "first_difference", "thresholds_for"]


@dataclass(frozen=True)
class Thresholds:
    """Largest margin that counts as a near-tie: in logits (greedy) or probability (sampled)."""

    dtype: str
    logits: float
    probability: float


# The rounding of a whole forward, with a wide allowance: fp32 logits of two routes differ by about
# 1e-5, half-precision ones by a few units in the last place of a logit of about 20.
THRESHOLDS = {
    "float32": Thresholds("float32", 1e-3, 1e-4),
    "float16": Thresholds("float16", 0.1, 0.02),
    "bfloat16": Thresholds("bfloat16", 0.5, 0.1),
}


@dataclass(frozen=True)
class Divergence:
    """One output that is not plain decoding's; ``position`` counts new tokens from 0.

    ``margin`` is None where no draw of the target could explain the difference: the outputs hold
    the same tokens but ended for different reasons.
    """

    id: str
    method: str
    position: int
    kind: str  # "near-tie" or "bug"
    margin: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def thresholds_for(dtype: Any) -> Thresholds:
    """The thresholds of a torch dtype or its name; an unknown one gets float32's."""
    return THRESHOLDS.get(str(dtype).removeprefix("torch."), THRESHOLDS["float32"])


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
    limits = thresholds_for(speculator.target.dtype)
    params = config.sampling()
    limit = limits.logits if params.greedy else limits.probability
    return Divergence(id, method, position, "near-tie" if margin <= limit else "bug", margin)


def _margin(
    target: Any, prefix: Sequence[int], prompt_length: int, config: GenerationConfig
) -> float:
    """How far plain decoding's draw after ``prefix`` was from another token."""
    from specblock.engine.rounds import plain_logits
    from specblock.tree.sampling import draw_margin

    logits = plain_logits(target, list(prefix))
    return draw_margin(logits, config.sampling(), list(prefix), prompt_length, len(prefix))
