"""How one token is drawn from one row of target logits.

Plain decoding and tree acceptance call the same `draw`, and its only randomness is
`gumbel(seed, position, token)`. A token therefore depends on nothing but its prefix, the settings
and the seed: whatever a tree proposes, the drawn text is the text that plain decoding draws.

The filters follow transformers' logits processors, in transformers' order: repetition penalty,
(frequency and presence penalty, as in the OpenAI API), the caller's own processors, temperature,
top-k, top-p, min-p.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specblock.tree.noise import gumbel

GREEDY_BELOW = 1e-5  # dividing by less than this overflows float32 for ordinary logits
BAD_LOGITS = (
    "The target's logits hold NaN or infinity, or no possible token; try dtype float32 and check "
    "the model's weights, the penalties and the logits processors."
)
_MASK = (1 << 64) - 1  # 64-bit words

# ids [1, n] of prompt and generated tokens, scores float32 [1, V] -> scores [1, V]: what
# transformers calls a LogitsProcessor. It may keep a state and may change its scores in place.
Processor = Callable[[Tensor, Tensor], Tensor]


class NoPossibleTokenError(ValueError):
    """The logits, as processed, hold NaN or +inf, or leave no token possible."""

    def __init__(self) -> None:
        super().__init__(BAD_LOGITS)


@dataclass(frozen=True)
class SamplingParams:
    """How the target's next token is chosen. Raises ValueError for a value out of range.

    Attributes:
        temperature: 0 takes the arg-max; so does anything below 1e-5.
        top_k: keep the k most probable tokens and ties with the last one; 0 is off.
        top_p: keep the fewest tokens whose probability reaches this; 1 is off.
        min_p: drop tokens below this share of the best token's probability; 0 is off.
        repetition_penalty: over every token of the context, prompt included; 1 is off.
        frequency_penalty: subtracted once per earlier occurrence among the generated tokens.
        presence_penalty: subtracted once from every token that was generated before.
        seed: key of the noise, a 64-bit integer, signed or unsigned.
        processors: applied one after the other between the penalties and the temperature, once per
            token of the text, in order.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0
    processors: tuple[Processor, ...] = ()

    def __post_init__(self) -> None:
        _require(0 <= self.temperature < math.inf, "temperature", "0 or more", self.temperature)
        _require(_whole(self.top_k) and self.top_k >= 0, "top_k", "0 or more, whole", self.top_k)
        _require(0 <= self.top_p <= 1, "top_p", "between 0 and 1", self.top_p)
        _require(0 <= self.min_p <= 1, "min_p", "between 0 and 1", self.min_p)
        penalty = self.repetition_penalty
        _require(0 < penalty < math.inf, "repetition_penalty", "more than 0", penalty)
        for name in ("frequency_penalty", "presence_penalty"):
            _require(-2 <= getattr(self, name) <= 2, name, "between -2 and 2", getattr(self, name))
        in_range = _whole(self.seed) and -(1 << 63) <= self.seed <= _MASK
        _require(in_range, "seed", "a 64-bit integer", self.seed)

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def penalised(self) -> bool:
        """Whether the tokens of the context change the logits."""
        return (
            self.repetition_penalty != 1.0
            or self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
        )

    @property
    def reads_context(self) -> bool:
        """Whether earlier tokens have to be known to draw one."""
        return self.penalised or bool(self.processors)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(holds: bool, name: str, wanted: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{name} must be {wanted}, not {value!r}; correct it and try again.")


def process(
    logits: Tensor, params: SamplingParams, context: Sequence[int] | Tensor, prompt_length: int
) -> Tensor:
    """Logits after penalties, processors, temperature and filters.

    Args:
        logits: [V] raw target logits, any float type; left unchanged.
        context: token ids [n] before the drawn one: prompt, generated tokens, tree path.
        prompt_length: how many of them are prompt; the others count as generated.

    Returns:
        float32 [V]; filtered tokens are -inf. Greedy settings stop after the processors.
    """
    scores = _adjust(logits.float(), params, context, prompt_length)
    if params.greedy:
        return scores
    scores = scores / params.temperature
    ids = _support(scores, params)
    if ids is None:
        return scores
    return torch.full_like(scores, -math.inf).scatter(0, ids, scores[ids])


def draw(
    logits: Tensor,
    params: SamplingParams,
    context: Sequence[int] | Tensor,
    prompt_length: int,
    position: int,
) -> int:
    """The target's token at an absolute position.

    Greedy: arg-max of the processed logits, the lowest id on ties. Sampled: arg-max of the
    processed logits with Gumbel noise added, in float64; a token of probability zero is never
    drawn. The context is read only where `params.reads_context`. Arguments as in `process`.

    Raises:
        NoPossibleTokenError: the logits hold NaN or +inf, or leave no token possible.
    """
    if params.greedy:
        tokens, scores = None, _adjust(logits, params, context, prompt_length)
    else:
        tokens, scores = _perturbed(logits, params, context, prompt_length, position)
    best, index = scores.max(dim=-1)
    if not math.isfinite(best.item()):
        raise NoPossibleTokenError
    return int(index if tokens is None else tokens[index])


def draw_margin(
    logits: Tensor,
    params: SamplingParams,
    context: Sequence[int] | Tensor,
    prompt_length: int,
    position: int,
) -> float:
    """How far `draw` was from another token, in logits: less than half of it changes no draw.

    The gap between the two best scores that it compares, times the temperature where that divided
    them. Small where rounding alone could have decided; infinite where only one token is possible.
    """
    if params.greedy:
        scores, scale = _adjust(logits.float(), params, context, prompt_length), 1.0
    else:
        _, scores = _perturbed(logits, params, context, prompt_length, position)
        scale = params.temperature
    if len(scores) < 2:
        return math.inf
    best, second = scores.topk(2).values.tolist()
    return (best - second) * scale


def _perturbed(
    logits: Tensor,
    params: SamplingParams,
    context: Sequence[int] | Tensor,
    prompt_length: int,
    position: int,
) -> tuple[Tensor, Tensor]:
    """Possible token ids, ascending, and their scores with noise, float64.

    Raises NoPossibleTokenError where no token is possible, and where the scores hold NaN or +inf,
    which a filter might hide.
    """
    scores = _adjust(logits.float(), params, context, prompt_length) / params.temperature
    if not scores.max().item() < math.inf:
        raise NoPossibleTokenError
    tokens = _support(scores, params)
    if tokens is None and params.processors:
        tokens = (scores != -math.inf).nonzero().squeeze(1)  # noise for a few instead of for all
    if tokens is None:
        tokens = torch.arange(len(scores), device=scores.device)
    else:
        scores = scores[tokens]
    if not len(tokens):
        raise NoPossibleTokenError
    return tokens, scores + gumbel(params.seed, position, tokens)


def _adjust(
    scores: Tensor, params: SamplingParams, context: Sequence[int] | Tensor, prompt_length: int
) -> Tensor:
    """Scores [V] after penalties and processors; the same tensor where there are none."""
    scores = _penalise(scores, params, context, prompt_length)
    if not params.processors:
        return scores
    ids = torch.as_tensor(context, dtype=torch.long, device=scores.device)[None]
    # a copy: a processor may write into its scores, and others read the logits after it
    scores = scores.to(torch.float32, copy=True)[None]
    for processor in params.processors:
        scores = processor(ids, scores)
    return scores[0]


def _penalise(
    scores: Tensor, params: SamplingParams, context: Sequence[int] | Tensor, prompt_length: int
) -> Tensor:
    """Scores [V] after the penalties; the same tensor where all are off, else float32."""
    if not params.penalised:
        return scores
    scores = scores.float()
    tokens = torch.as_tensor(context, dtype=torch.long, device=scores.device)
    if params.repetition_penalty != 1.0:
        # An embedding may have more rows than the head: ids without a logit need no penalty.
        seen = tokens[tokens < len(scores)]
        old = scores[seen]
        factor = params.repetition_penalty
        scores = scores.scatter(0, seen, torch.where(old < 0, old * factor, old / factor))
    generated = tokens[prompt_length:]
    counts = generated[generated < len(scores)].bincount(minlength=len(scores)).float()
    if params.frequency_penalty != 0.0:
        scores = scores - params.frequency_penalty * counts
    if params.presence_penalty != 0.0:
        scores = scores - params.presence_penalty * (counts > 0)
    return scores


def _support(scores: Tensor, params: SamplingParams) -> Tensor | None:
    """Ascending ids of the tokens that pass top-k, top-p and min-p; None where all pass."""
    ids = None
    if 0 < params.top_k < len(scores):
        last_kept = scores.topk(params.top_k).values[-1]
        ids = (scores >= last_kept).nonzero().squeeze(1)
    if params.top_p < 1.0:
        kept = _nucleus(scores if ids is None else scores[ids], params.top_p)
        ids = kept if ids is None else ids[kept]
    if params.min_p > 0.0:
        probabilities = (scores if ids is None else scores[ids]).softmax(dim=-1)
        kept = (probabilities >= params.min_p * probabilities.max()).nonzero().squeeze(1)
        ids = kept if ids is None else ids[kept]
    return ids


def _nucleus(scores: Tensor, top_p: float) -> Tensor:
    """Ascending indices of the nucleus: what top-p removes is the tail of mass up to 1 - top_p.

    n tokens below (1 - top_p) / n each weigh less than 1 - top_p together, so all of them belong
    to the tail whatever their order: only the few others are sorted. Of equal tokens at the edge
    those with higher ids stay, on every device (transformers leaves that to an unstable sort).
    """
    probabilities = scores.softmax(dim=-1)
    candidates = (probabilities > 0.99 * (1.0 - top_p) / len(scores)).nonzero().squeeze(1)
    weights = probabilities[candidates].double()
    tail = probabilities.sum(dtype=torch.float64) - weights.sum()
    if len(candidates) == len(scores):
        tail = torch.zeros_like(tail)
    order = scores[candidates].argsort(stable=True)
    # Compared in float32, like transformers: in float64 a tail of just 1 - top_p would be kept.
    removed = (tail + weights[order].cumsum(dim=-1)).float() <= 1.0 - top_p
    removed[-1:] = False  # the best token always stays
    return candidates[order[~removed].sort().values]
