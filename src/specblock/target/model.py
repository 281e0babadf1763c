"""The model being accelerated: any decoder-only causal LM of transformers, unmodified.

Everything enters through public interfaces: a 4-D attention mask, explicit position ids, a
``Cache`` subclass, ``logits_to_keep``; features leave through forward hooks on decoder layers.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from specblock.errors import ContextError, ModelError
from specblock.target import attention, invariant, masks
from specblock.target.cache import PathCache
from specblock.target.linear import RoutedLinear, RouteTable, route_linears, routed
from specblock.target.positions import Positions
from specblock.target.structure import decoder_layers, text_config
from specblock.target.verifiable import check_untested, check_verifiable

if TYPE_CHECKING:
    from specblock.tree.draft_tree import DraftTree

_ENDLESS = 1 << 30
_log = logging.getLogger("specblock")
_REPLACEABLE = ("sdpa", attention.NAME, invariant.NAME)  # the same attention in other orders


@dataclass(frozen=True)
class TargetOutput:
    """What one forward gives: ``logits [rows, V]`` and ``features [rows, F * H]``."""

    logits: Tensor
    features: Tensor


class FeatureTap:
    """Collects the outputs of named decoder layers during one forward.

    ``layers`` are 0-based indices i with the convention *output of decoder layer i*, which is
    ``hidden_states[i + 1]`` in transformers' numbering.
    """

    def __init__(self, model: nn.Module, layers: tuple[int, ...]):
        modules = decoder_layers(model)
        wrong = [i for i in layers if not 0 <= i < len(modules)]
        if wrong:
            raise ModelError(
                f"Feature layers {wrong} do not exist: the target has layers 0 to "
                f"{len(modules) - 1}. Use a drafter trained for this target."
            )
        self.layers = layers
        self._outputs: dict[int, Tensor] = {}
        self._handles = [modules[i].register_forward_hook(self._hook(i)) for i in set(layers)]

    def _hook(self, index: int):
        def keep(_module, _inputs, output):
            states = output[0] if isinstance(output, tuple) else output
            # some models carry several streams of states; the first is the one that predicts
            self._outputs[index] = states[0] if states.dim() > 3 else states

        return keep

    def take(self) -> Tensor | None:
        """The features ``[batch, rows, F * H]`` of the last forward; None without layers."""
        if not self.layers:
            return None
        return torch.cat([self._outputs[i] for i in self.layers], dim=-1)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


class Target:
    """A causal LM with a cache that keeps an accepted path and drops the rest.

    Args:
        model: ``PreTrainedModel`` with a language-model head, in eval mode.
        feature_layers: 0-based decoder layers whose outputs the drafter reads.
        prefill_chunk: prompt positions per forward.
        exact: let no row's logits depend on the others, so that a verified tree gives plain
            decoding's to the bit (:mod:`specblock.target.invariant`); None does so in half
            precision on the CPU, where every other answer meets a near-tie.

    ``context_length`` is the most tokens of a text, at first what the model was made for;
    :meth:`allow_any_length` raises it.

    Raises :class:`ModelError` if the architecture cannot verify a tree, or not exactly.
    """

    def __init__(
        self,
        model: nn.Module,
        feature_layers: tuple[int, ...] = (),
        prefill_chunk: int = 512,
        exact: bool | None = None,
    ):
        check_verifiable(model)
        self.model = model.eval()
        self.config = text_config(model)
        self.kinds = masks.attention_kinds(self.config)
        self.window = getattr(self.config, "sliding_window", None)
        self.prefill_chunk = prefill_chunk
        self._tap = FeatureTap(model, tuple(feature_layers))
        self.exact = self._select_attention(exact)
        self.linears: list[RoutedLinear] = list(routed(model))
        if self.device.type == "cpu" and not self.linears:
            self.linears = route_linears(model)
        self.cache: PathCache | None = None
        self.positions = Positions(model)
        self.context_length = self.positions.trained or _ENDLESS
        self._ids: Tensor | None = None  # in the cache; kept where it may have to be filled anew
        self._tree: DraftTree | None = None
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        # layers that reuse keys of others compute only the rows whose logits are asked for
        reuses = bool(getattr(self.config, "num_kv_shared_layers", 0))
        self._prompt_logits = 0 if reuses and self.feature_layers else 1
        check_untested(self)

    def allow_any_length(self) -> None:
        """Let texts grow as long as the model can compute at all, as transformers does: rotary
        embeddings have no end, and learned ones end with the token after the last position."""
        limit = self.positions.limit
        self.context_length = _ENDLESS if limit is None else limit + 1

    def room_after(self, prompt_tokens: int, wanted: int) -> int:
        """How many of ``wanted`` tokens may follow a prompt; logs where a table ends before."""
        room = self.context_length - prompt_tokens
        if room < wanted and self.context_length != self.positions.trained:
            _log.warning(
                "This model has a table of %d positions: the text ends with it, %d tokens early.",
                self.positions.limit,
                wanted - room,
            )
        return min(wanted, room)

    def _select_attention(self, exact: bool | None) -> bool:
        """Give the model its attention; whether that is the exact one."""
        # some families have attention of their own in every layer, which cannot be exchanged
        exchanges = self.model._can_set_attn_implementation()
        replaceable = exchanges and self.model.config._attn_implementation in _REPLACEABLE
        possible = replaceable and self.device.type == "cpu"
        if exact and not possible:
            raise ModelError(
                "Verification can be made exact on the CPU alone, for models that run with sdpa "
                "attention; leave exact out."
            )
        if exact is None:
            exact = possible and self.dtype in (torch.bfloat16, torch.float16)
        self._attention = None
        if replaceable:
            self._attention = (invariant if exact else attention).register()
            self._take_attention()
        return exact

    def _take_attention(self) -> None:
        """The model may have another target's attention by now."""
        if self._attention not in (None, self.model.config._attn_implementation):
            self.model.set_attn_implementation(self._attention)

    @property
    def exact_linears(self) -> list[RoutedLinear]:
        """The layers whose rows must not depend on each other: all of an exact target, or none."""
        return self.linears if self.exact else []

    def give_up_exactness(self) -> None:
        """Back to the faster kernels, whose rows may depend on each other's number."""
        self.exact, self.cache = self._select_attention(False), None

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def feature_layers(self) -> tuple[int, ...]:
        return self._tap.layers

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def length(self) -> int:
        """Positions in the cache."""
        return 0 if self.cache is None else self.cache.length

    @property
    def depth_left(self) -> int:
        """How deep the next tree may be; see :meth:`Positions.depth_left`."""
        return self.positions.depth_left(self.length)

    def use_routes(self, table: RouteTable) -> None:
        """Let every linear layer take the measured best kernel."""
        for linear in self.linears:
            linear.use(table)

    def reset(self, capacity: int) -> None:
        """Start an empty sequence with room for ``capacity`` positions, tree nodes included."""
        if self.cache is not None and self.cache.capacity >= capacity:
            self.cache.crop_to(0)
            return
        self.cache = PathCache(self.config.num_hidden_layers, capacity, self.exact)

    @torch.inference_mode()
    def prefill(self, ids: Tensor) -> TargetOutput:
        """Append and commit ``ids`` (int64 [S]); logits of the last one, features of all.

        Raises :class:`ContextError` if they do not fit the context.
        """
        total = self.length + ids.numel()
        room = min(self.context_length, self.positions.limit or _ENDLESS)
        if total > room:
            raise ContextError(
                f"The prompt has {total} tokens, the model's context holds {room}; "
                "shorten the prompt."
            )
        if self.positions.restart is not None:
            self._ids = ids if self.length == 0 else torch.cat((self._ids[: self.length], ids))
        return self._append(ids, total - 1)

    def _append(self, ids: Tensor, last: int) -> TargetOutput:
        """Read and commit ``ids`` chunk by chunk, as if ``last`` were every chunk's last position;
        the output as of :meth:`prefill`."""
        features = []
        for chunk in ids.split(self.prefill_chunk):
            rows, length = chunk.numel(), self.length
            places = torch.arange(length, length + rows, device=self.device)
            visible = masks.chain_mask(rows, length, self.device)
            with self.positions.computed_as_if_last(torch.full_like(places, last)):
                logits, hidden = self._forward(chunk, places, visible, self._prompt_logits)
            self.cache.advance(rows)
            features.append(hidden)
        features = torch.cat(features) if self.feature_layers else logits.new_zeros(ids.numel(), 0)
        return TargetOutput(logits[-1], features)

    @torch.inference_mode()
    def verify(self, tree: DraftTree) -> TargetOutput:
        """Logits ``[N + 1, V]`` and features of every node, in one forward; commits nothing."""
        if self.length == self.positions.restart:
            again, self.cache.length = self._ids[: self.length], 0
            self._append(again, len(again))
        self._tree = tree
        places = tree.positions(self.length)
        visible = None
        if len(tree) > 1 or self._window_hides(len(tree)):
            visible = masks.tree_mask(tree.ancestor_mask(), self.length)
        with self.positions.computed_as_if_last(places):
            logits, features = self._forward(tree.tokens, places, visible, keep=0)
        return TargetOutput(logits, features)

    @torch.inference_mode()
    def commit(self, path: Tensor) -> None:
        """Keep the nodes ``path`` (int64 [a + 1], root first) of the last verified tree."""
        if self.positions.restart is not None:
            self._ids = torch.cat((self._ids[: self.length], self._tree.tokens[path]))
        self.cache.keep(path)

    def _forward(
        self, ids: Tensor, places: Tensor, visible: Tensor | None, keep: int
    ) -> tuple[Tensor, Tensor | None]:
        if self.length + ids.numel() > self.cache.capacity:
            raise ContextError(
                f"{self.length + ids.numel()} positions do not fit the cache of "
                f"{self.cache.capacity}; reset the target with a larger capacity."
            )
        self._take_attention()
        output = self.model(
            input_ids=ids[None],
            attention_mask=self._model_mask(visible, places),
            position_ids=places[None],
            past_key_values=self.cache,
            use_cache=True,
            **({"logits_to_keep": keep} if self._keeps else {}),
        )
        features = self._tap.take()
        return output.logits[0, -keep:], None if features is None else features[0]

    def _window_hides(self, rows: int) -> bool:
        """Whether a window hides part of the context, so that even one row needs a mask."""
        sliding = masks.SLIDING in self.kinds and self.window is not None
        return sliding and self.length + rows > self.window

    def _model_mask(self, visible: Tensor | None, places: Tensor):
        if visible is None:
            return None
        built = masks.build_masks(visible, places, self.length, self.kinds, self.window, self.dtype)
        return built if len(built) > 1 else next(iter(built.values()))
