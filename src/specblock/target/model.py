"""The model being accelerated: any decoder-only causal LM of transformers, unmodified.

Everything enters through public interfaces: a 4-D attention mask, explicit position ids, a
``Cache`` subclass, ``logits_to_keep``; features leave through forward hooks on decoder layers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from specblock.errors import ContextError, ModelError
from specblock.kernels.linear import RoutedLinear
from specblock.kernels.route_table import RouteTable
from specblock.target import attention, invariant, masks
from specblock.target.cache import PathCache, cache_argument
from specblock.target.loan import Loan

if TYPE_CHECKING:
    from specblock.tree.draft_tree import DraftTree

_REPLACEABLE = ("sdpa", attention.NAME, invariant.NAME)  # the same attention in other orders


@dataclass(frozen=True)
class TargetOutput:
    """What one forward gives: ``logits [rows, V]`` and ``features [rows, F * H]``."""

    logits: Tensor
    features: Tensor


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a causal LM, outermost first."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    layers = getattr(decoder, "layers", None)
    count = text_config(model).num_hidden_layers
    if not isinstance(layers, nn.ModuleList) or len(layers) != count:
        raise ModelError(
            f"{type(model).__name__} does not expose its {count} decoder layers as `.layers`; "
            "use a decoder-only causal language model."
        )
    return layers


def text_config(model: nn.Module):
    """The configuration of the text decoder (multimodal models nest it)."""
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


class FeatureTap:
    """Collects the outputs of named decoder layers of the forwards within it.

    A context manager: the hooks are on the model meanwhile. ``layers`` are 0-based indices i with
    the convention *output of decoder layer i*, which is ``hidden_states[i + 1]`` in transformers'
    numbering.
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
        self._hooks = [(modules[i], self._hook(i)) for i in sorted(set(layers))]
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> FeatureTap:
        self._handles += [layer.register_forward_hook(hook) for layer, hook in self._hooks]
        return self

    def __exit__(self, *_exception) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _hook(self, index: int):
        def keep(_module, _inputs, output):
            self._outputs[index] = output[0] if isinstance(output, tuple) else output

        return keep

    def take(self) -> Tensor | None:
        """The features ``[batch, rows, F * H]`` of the last forward; None without layers."""
        if not self.layers:
            return None
        features = torch.cat([self._outputs[i] for i in self.layers], dim=-1)
        self._outputs.clear()
        return features


class Target:
    """A causal LM with a cache that keeps an accepted path and drops the rest.

    The model is borrowed: between two forwards it is as its owner left it
    (:mod:`specblock.target.loan`).

    Args:
        model: ``PreTrainedModel`` with a language-model head.
        feature_layers: 0-based decoder layers whose outputs the drafter reads.
        prefill_chunk: prompt positions per forward.
        exact: let no row's logits depend on the others, so that a verified tree gives plain
            decoding's to the bit (:mod:`specblock.target.invariant`); None does so in half
            precision on the CPU, where every other answer meets a near-tie.
        owned: nobody else changes the weights behind PyTorch's back (``weight.data``), so their
            content is not compared at the start of every text.

    Raises :class:`ModelError` if the architecture cannot verify a tree, or not exactly.
    """

    def __init__(
        self,
        model: nn.Module,
        feature_layers: tuple[int, ...] = (),
        prefill_chunk: int = 512,
        exact: bool | None = None,
        owned: bool = False,
    ):
        self.model, self.owned = model, owned
        self.config = text_config(model)
        self.cache_argument = cache_argument(model)
        self.kinds = masks.attention_kinds(self.config)
        self.window = getattr(self.config, "sliding_window", None)
        self.prefill_chunk = prefill_chunk
        self._tap = FeatureTap(model, tuple(feature_layers))
        self.by_name = bool(exact)
        self.exact = self._is_exact(exact)
        self.loan = Loan(
            model, self._tap, self._attention(), _REPLACEABLE, self.device.type == "cpu"
        )
        self.watch: Callable[[int, float], None] | None = None  # rows and seconds of verifications
        self.cache: PathCache | None = None
        self._cache_kind: tuple[torch.device, torch.dtype] | None = None

    def _is_exact(self, exact: bool | None) -> bool:
        possible = self._replaces_attention and self.device.type == "cpu"
        if exact and not possible:
            raise ModelError(
                "Verification can be made exact on the CPU alone, for models that run with sdpa "
                "attention; leave exact out."
            )
        if exact is None:
            return possible and self.dtype in (torch.bfloat16, torch.float16)
        return exact

    @property
    def _replaces_attention(self) -> bool:
        return self.model.config._attn_implementation in _REPLACEABLE

    def _attention(self) -> str | None:
        """The attention to run with, by name; None for the model's own."""
        if not self._replaces_attention:
            return None
        return (invariant if self.exact else attention).register()

    @property
    def linears(self) -> list[RoutedLinear]:
        """The routes of the model's linear layers; none but on the CPU."""
        return self.loan.linears

    @property
    def exact_linears(self) -> list[RoutedLinear]:
        """The layers whose rows must not depend on each other: all of an exact target, or none."""
        return self.linears if self.exact else []

    def give_up_exactness(self) -> None:
        """Back to the faster kernels, whose rows may depend on each other's number."""
        self.exact, self.cache = False, None
        self.loan.attention = self._attention()

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
    def context_length(self) -> int:
        return getattr(self.config, "max_position_embeddings", None) or 1 << 30

    @property
    def length(self) -> int:
        """Positions in the cache."""
        return 0 if self.cache is None else self.cache.length

    def use_routes(self, table: RouteTable) -> None:
        """Let every linear layer take the measured best kernel."""
        self.loan.use(table)

    def reset(self, capacity: int) -> None:
        """Start an empty sequence with room for ``capacity`` positions, tree nodes included."""
        self.loan.look_again()
        if not self.owned:
            self.loan.confirm()
        kind = (self.device, self.dtype)  # the owner may have moved or converted the model
        if self.cache is not None and self.cache.capacity >= capacity and self._cache_kind == kind:
            self.cache.crop_to(0)
            return
        self.cache = PathCache(self.config.num_hidden_layers, capacity, self.exact)
        self._cache_kind = kind

    @torch.inference_mode()
    def prefill(self, ids: Tensor) -> TargetOutput:
        """Append and commit ``ids`` (int64 [S]); logits of the last one, features of all.

        Raises :class:`ContextError` if they do not fit the context.
        """
        if self.length + ids.numel() > self.context_length:
            raise ContextError(
                f"The prompt has {self.length + ids.numel()} tokens, the model's context holds "
                f"{self.context_length}; shorten the prompt."
            )
        features = []
        for chunk in ids.split(self.prefill_chunk):
            rows, length = chunk.numel(), self.length
            positions = torch.arange(length, length + rows, device=self.device)
            visible = masks.chain_mask(rows, length, self.device)
            logits, hidden = self._forward(chunk, positions, visible, keep=1)
            self.cache.advance(rows)
            features.append(hidden)
        features = torch.cat(features) if self.feature_layers else logits.new_zeros(ids.numel(), 0)
        return TargetOutput(logits[-1], features)

    @torch.inference_mode()
    def verify(self, tree: DraftTree) -> TargetOutput:
        """Logits ``[N + 1, V]`` and features of every node, in one forward; commits nothing."""
        positions = tree.positions(self.length)
        visible = None
        if len(tree) > 1 or self._window_hides(len(tree)):
            visible = masks.tree_mask(tree.ancestor_mask(), self.length)
        started = time.perf_counter()
        logits, features = self._forward(tree.tokens, positions, visible, keep=0)
        if self.watch is not None:
            self.watch(len(tree), time.perf_counter() - started)
        return TargetOutput(logits, features)

    @torch.inference_mode()
    def commit(self, path: Tensor) -> None:
        """Keep the nodes ``path`` (int64 [a + 1], root first) of the last verified tree."""
        self.cache.keep(path)

    def _forward(
        self, ids: Tensor, positions: Tensor, visible: Tensor | None, keep: int
    ) -> tuple[Tensor, Tensor | None]:
        if self.length + ids.numel() > self.cache.capacity:
            raise ContextError(
                f"{self.length + ids.numel()} positions do not fit the cache of "
                f"{self.cache.capacity}; reset the target with a larger capacity."
            )
        with self.loan:
            output = self.model(
                input_ids=ids[None],
                attention_mask=self._model_mask(visible, positions),
                position_ids=positions[None],
                use_cache=True,
                logits_to_keep=keep,
                **{self.cache_argument: self.cache},
            )
        features = self._tap.take()
        return output.logits[0], None if features is None else features[0]

    def _window_hides(self, rows: int) -> bool:
        """Whether a window hides part of the context, so that even one row needs a mask."""
        sliding = masks.SLIDING in self.kinds and self.window is not None
        return sliding and self.length + rows > self.window

    def _model_mask(self, visible: Tensor | None, positions: Tensor):
        if visible is None:
            return None
        built = masks.build_masks(
            visible, positions, self.length, self.kinds, self.window, self.dtype
        )
        return built if len(built) > 1 else next(iter(built.values()))
