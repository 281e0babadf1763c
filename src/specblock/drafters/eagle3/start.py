"""An EAGLE-3 drafter that drafts before its first gradient step.

EAGLE-3's one layer cannot be a copy of the target's last: its attention reads [token; condition]
side by side, and its residual stream is the condition alone. What can be copied is everything
behind the attention (post norm, MLP, final norm, head). They want the *middle* of the target's
last layer, its residual stream after attention, at the next position. That is linear regression:

1. ``fc``: ridge regression of the middle on the normed features and the token; the features' part.
2. attention: what is missing then, regressed on [token; condition] at the position itself and cut
   to as many directions as there are values. For this the heads look at their own position:
   queries and keys are one constant on the fastest rotary pairs, whose scores peak at distance 0.

Where the target's layers are of another form, the MLP adds nothing at first and the middle is the
output of the target's last layer, which the drafter's top feature then is.

Later steps of a round are not fitted: their condition is the layer's own output.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from specblock.drafters.eagle3.network import Eagle3Model
from specblock.drafters.objectives.sequence import Sequence
from specblock.drafters.starting.ridge import Ridge, strongest_directions, unit
from specblock.target.architecture.structure import decoder_layers

_OWN_POSITION = 4.0  # by how much a head's own position outscores the one before


def middle_of_last_layer(target: nn.Module, features: Tensor, layer: int) -> Tensor:
    """The residual stream after the attention of the target's last layer, [S, H].

    Args:
        features: [S, H], the output of decoder layer ``layer`` at positions 0 to S - 1.
    """
    layers, decoder = decoder_layers(target), target.get_decoder()
    x = features[None].to(target.device, target.dtype)
    length = x.shape[1]
    positions = torch.arange(length, device=x.device)[None]
    angles = decoder.rotary_emb(x, positions)
    mask = torch.full((length, length), torch.finfo(x.dtype).min, dtype=x.dtype, device=x.device)
    mask = mask.triu(1)[None, None]
    found: list[Tensor] = []
    handle = layers[-1].post_attention_layernorm.register_forward_pre_hook(
        lambda _module, inputs: found.append(inputs[0])
    )
    try:
        for later in layers[layer + 1 :]:
            x = later(x, attention_mask=mask, position_ids=positions, position_embeddings=angles)
            x = x[0] if isinstance(x, tuple) else x
    finally:
        handle.remove()
    return found[0][0].float().cpu()


@torch.no_grad()
def fit_eagle3(
    drafter: Eagle3Model,
    target: nn.Module,
    sequences: list[Sequence],
    *,
    copied: bool = True,
    strength: float = 1e-3,
) -> None:
    """Steps 1 and 2 of the module's text, in a pass each over ``sequences``.

    Embeddings, final norm and head must be the target's already, and post norm and MLP too, unless
    they are not ``copied`` and add nothing.
    """
    config, layer = drafter.config, drafter.midlayer
    size = config.hidden_size
    width = len(config.feature_layers) * size
    first = Ridge(width + size, size)
    for inputs, tokens, middle in _rows(drafter, target, sequences, copied):
        first.add(torch.cat((inputs, tokens), dim=1), middle)
    drafter.fc.weight.copy_(first.solve(strength)[:, :width])
    second = Ridge(2 * size, size + 1)
    for inputs, tokens, middle in _rows(drafter, target, sequences, copied):
        condition = inputs @ drafter.fc.weight.t()
        missing = torch.cat((middle - condition, torch.ones(len(middle), 1)), dim=1)
        second.add(torch.cat((tokens, unit(condition)), dim=1), missing)
    solved = second.solve(strength)
    look_at_oneself(drafter, solved[-1])
    attention = layer.self_attn
    values = config.num_key_value_heads * config.head_dim
    up, down = strongest_directions(solved[:-1], second.xx.float(), min(values, size))
    groups = config.num_attention_heads // config.num_key_value_heads
    spread = up.new_zeros(size, values)
    spread[:, : up.shape[1]] = up
    attention.v_proj.weight.zero_()
    attention.v_proj.weight[: len(down)] = down
    # the heads of a group see the same value: each adds its share
    spread = spread.unflatten(1, (-1, 1, config.head_dim)) / groups
    attention.o_proj.weight.copy_(spread.expand(-1, -1, groups, -1).flatten(1))


def _rows(
    drafter: Eagle3Model, target: nn.Module, sequences: list[Sequence], copied: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Per sequence and pair: features as ``fc`` gets them, normed token, middle to be guessed."""
    config, size = drafter.config, drafter.config.hidden_size
    for sequence in sequences:
        top = sequence.features[:, -size:]
        if copied:
            middle = middle_of_last_layer(target, top, config.feature_layers[-1])
        else:
            middle = unit(top)
        features = sequence.features.float()[:-1]
        if drafter.feature_norms is not None:
            features = drafter.feature_norms(features)
        tokens = unit(drafter.embed_tokens.weight[sequence.tokens[:-1]])
        yield features, tokens, middle[1:]


def look_at_oneself(drafter: Eagle3Model, constant: Tensor) -> None:
    """Queries and keys whose score is highest at their own position.

    ``constant [2H]`` maps attention's inputs to about 1.
    """
    config, attention = drafter.config, drafter.midlayer.self_attn
    half = config.head_dim // 2
    pairs = max(1, half // 4)
    cos, _ = drafter.rotary(torch.tensor([1]))
    drop = (1 - cos[0, 0, :pairs]).sum()
    strength = (_OWN_POSITION * config.head_dim**0.5 / drop).sqrt()
    for projection in (attention.q_proj, attention.k_proj):
        weight = projection.weight.unflatten(0, (-1, config.head_dim))
        weight.zero_()
        weight[:, :pairs] = strength * constant
