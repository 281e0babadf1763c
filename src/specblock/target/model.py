"""The model being accelerated: any decoder-only causal LM of transformers, unmodified.

Everything enters through public interfaces: a 4-D attention mask, explicit position ids, a
``Cache`` subclass, ``logits_to_keep``; features leave through forward hooks on decoder layers.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from specblock.errors import ContextError, ModelError
from specblock.kernels.linear import RoutedLinear
from specblock.kernels.route_table import RouteTable
from specblock.target import attention, invariant, masks
from specblock.target.cache import PathCache
from specblock.target.loan import Loan
from specblock.target.positions import Positions
from specblock.target.structure import cache_argument, text_config
from specblock.target.tap import FeatureTap
from specblock.target.verifiable import check_untested, check_verifiable

if TYPE_CHECKING:
    from specblock.tree.draft_tree import DraftTree

_REPLACEABLE = ("sdpa", attention.NAME, invariant.NAME)  # the same attention in other orders


@dataclass(frozen=True)
class TargetOutput:
    """What one forward gives: ``logits [rows, V]`` and ``features [rows, F * H]``."""

    logits: Tensor
    features: Tensor


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
        check_verifiable(model)
        self.model, self.owned = model, owned
        self.config = text_config(model)
        self.kinds = masks.attention_kinds(self.config)
        self.window = getattr(self.config, "sliding_window", None)
        self.prefill_chunk = prefill_chunk
        self._tap = FeatureTap(model, tuple(feature_layers))
        self.by_name, self.exact = bool(exact), False
        self.loan = Loan(
            model, self._tap, self._attention(), _REPLACEABLE, self.device.type == "cpu"
        )
        self.watch: Callable[[int, float], None] | None = None  # rows and seconds of verifications
        self.cache: PathCache | None = None
        self._cache_kind: tuple[torch.device, torch.dtype] | None = None
        self.positions = Positions(model)
        self._ids: Tensor | None = None  # in the cache; kept where it may have to be filled anew
        self._tree: DraftTree | None = None
        self._cache_name = cache_argument(model.forward)
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        # layers that reuse keys of others compute only the rows whose logits are asked for
        reuses = bool(getattr(self.config, "num_kv_shared_layers", 0))
        self._prompt_logits = 0 if reuses and self.feature_layers else 1
        check_untested(self)
        self.exact = self._is_exact(exact)
        self.loan.attention = self._attention()

    def _is_exact(self, exact: bool | None) -> bool:
        half = self.dtype in (torch.bfloat16, torch.float16)
        wanted = half if exact is None else exact
        if not wanted or (self.device.type == "cpu" and self._hands_on_its_cache()):
            return wanted
        if exact:
            raise ModelError(
                "Verification can be made exact on the CPU alone, for models that run with sdpa "
                "attention and keep keys and values as it reads them; leave exact out."
            )
        return False

    @torch.inference_mode()
    def _hands_on_its_cache(self) -> bool:
        """Whether an attention of ours gets keys and values as the cache has them."""
        if not self._replaces_attention:
            return False
        seen: list[bool] = []
        self.loan.attention = invariant.register_trial(seen)
        ids = torch.zeros(1, 2, dtype=torch.int64, device=self.device)
        cache = PathCache(self.config.num_hidden_layers, 2)
        with self.loan:
            self.model(input_ids=ids, **{self._cache_name: cache}, use_cache=True)
        self._tap.take()
        return bool(seen) and all(seen)

    @property
    def _replaces_attention(self) -> bool:
        # some families have attention of their own in every layer, which cannot be exchanged
        exchanges = self.model._can_set_attn_implementation()
        return exchanges and self.model.config._attn_implementation in _REPLACEABLE

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
        """The most tokens of a text; see :class:`Positions`."""
        return self.positions.context_length

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
        total = self.length + ids.numel()
        room = min(self.context_length, self.positions.limit or total)
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
        started = time.perf_counter()
        with self.positions.computed_as_if_last(places):
            logits, features = self._forward(tree.tokens, places, visible, keep=0)
        if self.watch is not None:
            self.watch(len(tree), time.perf_counter() - started)
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
        with self.loan:
            output = self.model(
                input_ids=ids[None],
                attention_mask=self._model_mask(visible, places),
                position_ids=places[None],
                use_cache=True,
                **{self._cache_name: self.cache},
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
