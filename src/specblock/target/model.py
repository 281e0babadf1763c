"""The model being accelerated: any decoder-only causal LM of transformers, unmodified.

Everything enters through public interfaces: a 4-D attention mask, explicit position ids, a
``Cache`` subclass, ``logits_to_keep``; features leave through forward hooks on decoder layers.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from specblock.errors import ContextError
from specblock.kernels import attention, invariant
from specblock.kernels.linear import RoutedLinear
from specblock.kernels.route_table import MOST_ROWS, RouteTable
from specblock.target import masks
from specblock.target.architecture.structure import cache_argument, forward_of, text_config
from specblock.target.architecture.tap import FeatureTap
from specblock.target.architecture.trial import hands_on_its_cache, is_exact
from specblock.target.architecture.verifiable import check_untested, check_verifiable
from specblock.target.cache import PathCache
from specblock.target.loan import Loan
from specblock.target.memory import most_memory
from specblock.target.pieces import Piece, TargetOutput, grouped, kept_rows, packed, split
from specblock.target.positions import Positions
from specblock.target.text import Text, TextPool, weights_seen

if TYPE_CHECKING:
    from specblock.tree.draft_tree import DraftTree

_REPLACEABLE = ("sdpa", attention.NAME, invariant.NAME)  # the same attention in other orders


class Target:
    """A causal LM with a cache that keeps an accepted path and drops the rest.

    The model is borrowed: between two forwards it is as its owner left it
    (:mod:`specblock.target.loan`).

    Args:
        model: ``PreTrainedModel`` with a language-model head.
        feature_layers: 0-based decoder layers whose outputs the drafter reads.
        prefill_chunk: prompt positions per forward.
        exact: let no row's logits depend on the others, so that a verified tree gives plain
            decoding's to the bit (:mod:`specblock.kernels.invariant`); None does so in half
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
        self._prefill_chunk = prefill_chunk
        self._tap = FeatureTap(model, tuple(feature_layers))
        self.by_name, self.exact = bool(exact), False
        on_cpu = self.device.type == "cpu"
        self.loan = Loan(model, self._tap, self._attention(), _REPLACEABLE, on_cpu)
        self.watch: Callable[[int, float], None] | None = None  # rows and seconds of verifications
        self.text: Text | None = None  # what prefill, verify and commit speak of
        self.texts = TextPool(self.config.num_hidden_layers, most_memory(self.device))
        self.positions = Positions(model)
        self._cache_name = cache_argument(forward_of(model))
        self._keeps = "logits_to_keep" in inspect.signature(forward_of(model)).parameters
        # layers that reuse keys of others compute only the rows whose logits are asked for
        self._reuses_keys = bool(getattr(self.config, "num_kv_shared_layers", 0))
        self._prompt_logits = 0 if self._reuses_keys and self.feature_layers else 1
        check_untested(self)
        self.exact = is_exact(self, exact)
        self.loan.attention = self._attention()

    @cached_property
    def packs(self) -> bool:
        """Whether rows of several texts can be computed in one forward."""
        return not self._reuses_keys and self.hands_on_its_cache

    @cached_property
    def hands_on_its_cache(self) -> bool:
        """Whether an attention of ours gets keys and values as the cache has them."""
        return self._replaces_attention and hands_on_its_cache(self, self._tap, self._cache_name)

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

    @property
    def prefill_chunk(self) -> int:
        """Most positions of a prompt in a forward."""
        return min(self._prefill_chunk, MOST_ROWS) if self.exact else self._prefill_chunk

    def give_up_exactness(self) -> None:
        """Back to faster kernels, whose rows may depend on each other's number."""
        self.exact, self.text = False, None
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
    def cache(self) -> PathCache | None:
        """The keys and values of the text at hand."""
        return None if self.text is None else self.text.cache

    @property
    def length(self) -> int:
        """Positions in the cache."""
        return 0 if self.text is None else self.text.length

    def use_routes(self, table: RouteTable) -> None:
        """Let every linear layer take the measured best kernel."""
        self.loan.use(table)

    def reset(self, capacity: int) -> None:
        """Start an empty sequence with room for ``capacity`` positions, tree nodes included."""
        former, self.text = self.text, None
        if former is not None:
            self.release(former)
        self.text = self.open(capacity)

    def open(self, capacity: int, prompt: Tensor | None = None) -> Text:
        """A new text with room for ``capacity`` positions, beside others that are open. Of a
        ``prompt`` (int64 [n]) it may hold the first positions, where an ended text began alike."""
        self.begin()
        kind = self.device, self.dtype, weights_seen(self.model) if self._keeps_texts else None
        return self.texts.open(capacity, self.exact, kind, prompt if self._keeps_texts else None)

    def release(
        self, text: Text, tokens: Tensor | None = None, features: Tensor | None = None
    ) -> None:
        """A text's end. With its int64 ``tokens [length]`` and ``features [length, F * H]`` later
        ones may begin with its positions."""
        if text is self.text:
            return
        if not self._keeps_texts:
            tokens = features = None
        self.texts.release(text, tokens, features)

    @property
    def _keeps_texts(self) -> bool:
        """Whether positions of an ended text are those of another that begins like it: the model is
        ours, so nobody changes it meanwhile, and no position depends on how long the text gets."""
        return self.owned and self.positions.independent and not self._reuses_keys

    def prompt_piece(self, text: Text, ids: Tensor, prompt: Tensor) -> Piece:
        """The next ``ids`` of a ``prompt``, to be read together with other texts' rows."""
        if self.positions.restart is not None:
            text.ids = prompt
        return Piece.of_prompt(text, ids, len(prompt) - 1, self._prompt_logits)

    def begin(self) -> None:
        """Before another text: what its owner did to the model meanwhile is seen."""
        self.loan.look_again()
        if not self.owned:
            self.loan.confirm()

    @torch.inference_mode()
    def prefill(self, ids: Tensor) -> TargetOutput:
        """Append and commit ``ids`` (int64 [S]); logits of the last one, features of all. Raises
        :class:`ContextError` if they do not fit the context."""
        total = self.length + ids.numel()
        room = min(self.context_length, self.positions.limit or total)
        if total > room:
            raise ContextError(
                f"The prompt has {total} tokens, the model's context holds {room}; "
                "shorten the prompt."
            )
        if self.positions.restart is not None:
            before = ids[:0] if self.length == 0 else self.text.ids[: self.length]
            self.text.ids = torch.cat((before, ids))
        return self._append(self.text, ids, total - 1)

    def _append(self, text: Text, ids: Tensor, last: int) -> TargetOutput:
        """Read and commit ``ids`` chunk by chunk, as if ``last`` were every chunk's last position;
        the output as of :meth:`prefill`."""
        features = []
        for chunk in ids.split(self.prefill_chunk):
            piece = Piece.of_prompt(text, chunk, last, self._prompt_logits)
            (output,) = self.run([piece])
            text.cache.advance(len(chunk))
            features.append(output.features)
        return TargetOutput(output.logits[-1], torch.cat(features))

    @torch.inference_mode()
    def verify(self, tree: DraftTree) -> TargetOutput:
        """Logits ``[N + 1, V]`` and features of every node, in one forward; commits nothing."""
        (output,) = self.verify_all([self.text], [tree])
        return output

    @torch.inference_mode()
    def verify_all(
        self, texts: Sequence[Text], trees: Sequence[DraftTree], prompts: Sequence[Piece] = ()
    ) -> list[TargetOutput]:
        """Verify a tree of every text, and read pieces of prompts, in one forward.

        Returns:
            Of every tree logits ``[N + 1, V]`` and features of its nodes, then of every piece the
            logits of its last row and the features of all; nothing is committed.
        """
        pieces, window = [], self.window if masks.SLIDING in self.kinds else None
        for text, tree in zip(texts, trees, strict=True):
            if text.length == self.positions.restart:
                again, text.cache.length = text.ids[: text.length], 0
                self._append(text, again, len(again))
            text.tree = tree
            pieces.append(Piece.of_tree(text, tree, window))
        started = time.perf_counter()
        outputs = self.run([*pieces, *prompts])
        if self.watch is not None and not prompts:
            self.watch(sum(map(len, trees)), time.perf_counter() - started)
        return outputs

    @torch.inference_mode()
    def commit(self, path: Tensor, text: Text | None = None) -> None:
        """Keep the nodes ``path`` (int64 [a + 1], root first) of a text's last verified tree."""
        text = text or self.text
        if self.positions.restart is not None:
            text.ids = torch.cat((text.ids[: text.length], text.tree.tokens[path]))
        text.cache.keep(path)

    @torch.inference_mode()
    def run(self, pieces: Sequence[Piece]) -> list[TargetOutput]:
        """One forward over the rows of all pieces; writes their keys and commits nothing. Raises
        :class:`ContextError` if a piece does not fit its text's cache."""
        for piece in pieces:
            piece.check_room()
        # with more rows than its routes were tried for an exact target's products are others
        groups = grouped(pieces, (MOST_ROWS if self.exact else None) if self.packs else 0)
        if len(groups) > 1:
            return [output for group in groups for output in self.run(group)]
        kinds = masks.layer_kinds(self.config)
        cache, mask = packed(pieces, self.kinds, kinds, self.window, self.dtype)
        last = torch.cat([piece.last for piece in pieces])
        kept = kept_rows(pieces) if self._keeps else {}
        with self.positions.computed_as_if_last(last), self.loan:
            output = self.model(
                input_ids=torch.cat([piece.ids for piece in pieces])[None],
                attention_mask=mask,
                position_ids=torch.cat([piece.places for piece in pieces])[None],
                use_cache=True,
                **{self._cache_name: cache},
                **kept,
            )
        features = self._tap.take()
        if features is None:
            features = output.logits.new_zeros(1, len(last), 0)
        return split(pieces, output.logits[0], features[0])
