"""How far a model's positions reach, and embeddings that depend on the longest one of a forward.

Two kinds of rotary embedding choose their frequencies by the longest position they are given:
``longrope`` has one set for short texts and one for long ones, ``dynamic`` another for every length
beyond the trained one. Plain decoding computes every row in a forward that ends with it, and a
prompt's rows in one that ends with the prompt. A tree or a chunk of a prompt would end elsewhere,
so here every row gets the frequencies of the forward in which plain decoding computes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from specblock.target.architecture.structure import cache_argument, text_config

_SWITCHING = ("dynamic", "longrope")
_FAR = 1 << 30  # positions: no limit was stated
_log = logging.getLogger("specblock")


class Positions:
    """What is known of a model's positions.

    Attributes:
        trained: positions that the model was made for; None where it does not say.
        limit: positions that it can compute at all; None where there is no end. Rotary embeddings
            are computed for any position, others are rows of a table.
        restart: positions in the cache at which the model's ``generate`` throws it away and reads
            the text again, as some with ``longrope`` do where the frequencies switch; None for
            others. The model itself is asked.
        context_length: the most tokens of a text, at first what the model was made for.
    """

    def __init__(self, model: nn.Module):
        config = text_config(model)
        self.trained: int | None = getattr(config, "max_position_embeddings", None)
        rotary = any(name.endswith("inv_freq") for name, _ in model.named_buffers())
        self.limit = None if rotary else self.trained
        self.context_length = self.trained or _FAR
        self._switching = [m for m in model.modules() if any(k in _SWITCHING for k in _kinds(m))]
        switch = getattr(config, "original_max_position_embeddings", None)
        restarts = self._switching and switch is not None and _restarts(model, switch)
        self.restart: int | None = switch if restarts else None

    @property
    def independent(self) -> bool:
        """Whether no position's embedding depends on how long the text gets."""
        return not self._switching

    def allow_any_length(self) -> None:
        """Let texts grow as long as the model can compute at all, as transformers does; a table of
        positions ends with the token after the last of them."""
        self.context_length = _FAR if self.limit is None else self.limit + 1

    def room_after(self, prompt_tokens: int, wanted: int) -> int:
        """How many of ``wanted`` tokens may follow a prompt; logs where a table ends before."""
        room = self.context_length - prompt_tokens
        if room < wanted and self.context_length != self.trained:
            _log.warning(
                "This model has a table of %d positions: the text ends with it, %d tokens early.",
                self.limit,
                wanted - room,
            )
        return min(wanted, room)

    def depth_left(self, length: int) -> int:
        """How deep a tree may be whose root lies at ``length``, so that no node reaches a position
        that cannot be computed, or not with what is in the cache."""
        ends = [end for end in (self.limit, self.restart) if end is not None and end > length]
        return min(ends, default=length + _FAR) - length - 1

    def computed_as_if_last(self, last: Tensor) -> AbstractContextManager[None]:
        """While it lasts, a forward embeds row i as if ``last[i]`` were its longest position.

        ``last`` int64 [rows]; read only where embeddings depend on it.
        """
        return _replaced(self._switching, last.tolist()) if self._switching else nullcontext()


def _kinds(module: nn.Module) -> Sequence[str]:
    """The kinds of rotary embedding in a module; some have one for each kind of layer."""
    kind = getattr(module, "rope_type", None) or ()
    return [kind] if isinstance(kind, str) else list(kind.values() if kind else ())


def _restarts(model: nn.Module, length: int) -> bool:
    """Whether ``generate`` gives up a cache of so many positions for the next token."""
    cache = _Filled(length)
    ids = torch.zeros(1, length + 1, dtype=torch.int64, device=model.device)
    prepare = model.prepare_inputs_for_generation
    inputs = prepare(ids, **{cache_argument(prepare): cache}, use_cache=True)
    return not any(value is cache for value in inputs.values())


class _Filled:
    """Stands for a cache of so many positions; nothing reads more of it than this."""

    def __init__(self, length: int):
        self.length = length

    def get_seq_length(self, *_args) -> int:
        return self.length


@contextmanager
def _replaced(embeddings: Sequence[nn.Module], last: Sequence[int]) -> Iterator[None]:
    own = [(module, vars(module).get("forward")) for module in embeddings]
    # such embeddings remember the longest text they have seen: its frequencies, its length
    before = [
        ([(name, buffer, buffer.clone()) for name, buffer in module.named_buffers()],
         {name: value for name, value in vars(module).items() if name.endswith("_cached")})
        for module in embeddings
    ]  # fmt: skip
    for module, _ in own:
        module.forward = _by_last(module.forward, last)
    try:
        yield
    finally:
        for (module, forward), (buffers, lengths) in zip(own, before, strict=True):
            del module.forward
            if forward is not None:
                module.forward = forward
            for name, buffer, values in buffers:
                setattr(module, name, buffer.copy_(values))
            vars(module).update(lengths)


def _by_last(forward: Callable, last: Sequence[int]) -> Callable:
    """``forward(x, position_ids)`` of a rotary embedding, once for every value in ``last``."""

    def embed(x: Tensor, position_ids: Tensor, *args, **kwargs) -> Tensor | tuple[Tensor, ...]:
        first = torch.zeros_like(position_ids[..., :1])
        ends = torch.tensor(last, device=position_ids.device)[:, None]
        output: tuple[Tensor, ...] = ()
        for end in sorted(set(last)):
            # dynamic embeddings keep to the longest text they have seen until they see a short one
            forward(x, first, *args, **kwargs)
            asked = torch.cat((position_ids.clamp(max=end), first + end), -1)
            found = forward(x, asked, *args, **kwargs)
            single = isinstance(found, Tensor)
            parts = tuple(part[..., :-1, :] for part in ((found,) if single else found))
            chosen = zip(parts, output or parts, strict=True)
            output = tuple(torch.where(ends == end, new, old) for new, old in chosen)
        forward(x, first, *args, **kwargs)
        return output[0] if single else output

    return embed
