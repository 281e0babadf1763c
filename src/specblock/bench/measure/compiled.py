"""Plain decoding as fast as PyTorch makes it: one step of fixed shape, compiled.

The cache has a fixed size and every step the same shapes, which is what ``torch.compile`` and, on
a GPU, CUDA graphs ask for. Prompts go through the uncompiled model. The step is compiled once per
size of the cache, before the clock starts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from specblock.errors import ConfigError
from specblock.kernels.route_table import RouteTable
from specblock.target.masks import additive
from specblock.target.model import Target, TargetOutput
from specblock.target.pieces import Piece
from specblock.target.text import Text
from specblock.tree.draft_tree import DraftTree

__all__ = ["CompiledTarget"]

_SMALLEST = 512  # positions of a cache; larger ones double
_WARM_STEPS = 3  # CUDA graphs are recorded at the second


class _FixedLayer(CacheLayerMixin):
    """Keys and values ``[1, heads, capacity, d]`` that are written in place."""

    is_sliding = False
    is_compileable = True

    def __init__(self, owner: FixedCache):
        super().__init__()
        self.owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = (
            states.new_zeros(*states.shape[:2], self.owner.capacity, states.shape[3])
            for states in (key_states, value_states)
        )
        self.dtype, self.device = key_states.dtype, key_states.device
        for storage in (self.keys, self.values):
            torch._dynamo.mark_static_address(storage)  # else a CUDA graph would copy the cache
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys.index_copy_(2, self.owner.places, key_states)
        self.values.index_copy_(2, self.owner.places, value_states)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return 0  # positions and masks are given explicitly

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.capacity, 0

    def get_max_length(self) -> int:
        return self.owner.capacity

    def get_max_cache_shape(self) -> int:  # the older name of get_max_length
        return self.owner.capacity


class FixedCache(Cache):
    """``capacity`` positions; a forward writes at ``places`` (int64 [rows])."""

    def __init__(self, layers: int, capacity: int, device: torch.device):
        self.capacity, self.length = capacity, 0
        self.places = torch.zeros(1, dtype=torch.int64, device=device)
        super().__init__(layers=[_FixedLayer(self) for _ in range(layers)])

    def advance(self, count: int) -> None:
        """Commit so many positions."""
        self.length += count


class CompiledTarget(Target):
    """A target for plain decoding whose step is compiled; it verifies roots only.

    Args:
        model, exact: as for :class:`specblock.target.model.Target`.
        routes: of the linear layers, those of plain decoding.
        backend: of ``torch.compile``.

    Raises :class:`ConfigError` where PyTorch cannot compile, or the model has windows.
    """

    def __init__(
        self,
        model: nn.Module,
        exact: bool | None = None,
        routes: RouteTable | None = None,
        *,
        backend: str = "inductor",
    ):
        super().__init__(model, exact=exact, owned=True)
        self.use_routes(routes or RouteTable())
        if len(self.kinds) > 1 or self.window is not None:
            raise ConfigError(
                "'plain-compiled' knows no sliding windows, which this model has; leave it out."
            )
        graphs = backend == "inductor" and self.device.type == "cuda"
        self._step = torch.compile(
            self._run, backend=backend, **({"mode": "reduce-overhead"} if graphs else {})
        )
        self._ready: dict[int, FixedCache] = {}
        self.prepare(_SMALLEST)

    def prepare(self, capacity: int) -> None:
        """Have a compiled step over a cache of ``capacity`` positions; takes long the first time.

        Raises :class:`ConfigError` where PyTorch cannot compile.
        """
        size = _SMALLEST
        while size < capacity:
            size *= 2
        if size not in self._ready:
            self._ready[size] = FixedCache(self.config.num_hidden_layers, size, self.device)
            self._compile(size)
        self.text = Text(self._ready[size])
        self.cache.length = 0

    def _compile(self, size: int) -> None:
        self.reset(size)
        try:
            # by single tokens, as the step: the layers' products are chosen outside the compiler
            self.prefill(torch.zeros(1, dtype=torch.int64, device=self.device))
            for _ in range(_WARM_STEPS):
                self.verify(DraftTree.root_only(0, self.device))
        except torch._dynamo.exc.TorchDynamoException as error:
            inner = getattr(error, "inner_exception", error)
            cause = str(inner).strip().partition("\n")[0].rstrip(".")
            raise ConfigError(
                f"'plain-compiled' cannot run here, torch.compile says: {cause} (on a CPU it "
                "needs a C++ compiler); install one, or leave the method out."
            ) from None

    def reset(self, capacity: int) -> None:
        """Start an empty sequence; the cache must have been prepared."""
        size = min((size for size in self._ready if size >= capacity), default=None)
        if size is None:
            self.prepare(capacity)
            return
        self.text = Text(self._ready[size])
        self.cache.length = 0

    @torch.inference_mode()
    def prefill(self, ids: Tensor) -> TargetOutput:
        """Append and commit ``ids`` (int64 [S]); logits of the last one."""
        for chunk in ids.split(self.prefill_chunk):
            start, rows = self.length, chunk.numel()
            places = torch.arange(start, start + rows, device=self.device)
            self.cache.places = places
            with self.loan:
                logits = self._run(chunk[None], self._mask(places), places[None])
            self.cache.length += rows
        return TargetOutput(logits[0, -1], logits.new_zeros(ids.numel(), 0))

    @torch.inference_mode()
    def verify(self, tree: DraftTree) -> TargetOutput:
        """Logits ``[1, V]`` of the root."""
        if len(tree) > 1:
            raise ValueError("the compiled step has one row")
        places = tree.positions(self.length)
        self.cache.places = places
        mask = self._mask(places)
        if self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        with self.loan:
            logits = self._step(tree.tokens[None], mask, places[None])[0].clone()
        return TargetOutput(logits, logits.new_zeros(1, 0))

    def open(self, capacity: int, prompt: Tensor | None = None) -> Text:
        """The one text that there is; it begins empty."""
        self.reset(capacity)
        return self.text

    def verify_all(
        self, texts: Sequence[Text], trees: Sequence[DraftTree], prompts: Sequence[Piece] = ()
    ) -> list[TargetOutput]:
        """One text's root, or its prompt, whose rows the caller commits."""
        outputs = [self.verify(tree) for tree in trees]
        for piece in prompts:
            read = self.prefill(piece.ids)
            self.cache.length -= len(piece)
            outputs.append(TargetOutput(read.logits[None], read.features))
        return outputs

    @torch.inference_mode()
    def commit(self, path: Tensor, text: Text | None = None) -> None:
        """Keep the root."""
        self.cache.length += path.numel()

    def _mask(self, places: Tensor) -> Tensor:
        """Additive ``[1, 1, rows, capacity]``: every row sees what is not after it."""
        keys = torch.arange(self.cache.capacity, device=self.device)
        return additive(keys[None] <= places[:, None], self.dtype)[None, None]

    def _run(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            **{self._cache_name: self.cache},
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits
