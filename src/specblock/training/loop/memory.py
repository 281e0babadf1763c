"""How much memory a training step will take, said before the first one is tried."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import nn

from specblock.drafters.config import StoredConfig
from specblock.drafters.objectives.attention import MAX_SCORES
from specblock.drafters.objectives.head_loss import CHUNK_ROWS
from specblock.drafters.objectives.workload import Workload
from specblock.errors import SpecBlockError

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak bytes of training on one device, by what they are for.

    ``optimiser`` holds gradients and the two moments. ``features`` are those of one batch, or of
    all answers where they are kept in main memory.
    """

    weights: int
    optimiser: int
    activations: int
    attention: int
    logits: int
    features: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        parts = (f"{f.name} {getattr(self, f.name) / 2**30:.2f}" for f in fields(self))
        return f"{self.total / 2**30:.2f} GiB ({', '.join(parts)})"


def estimate_memory(
    model: nn.Module,
    work: Workload,
    feature_bytes: int,
    *,
    mixed_precision: bool,
    shares: int = 1,
) -> MemoryEstimate:
    """Peak of a forward and backward of ``work``, the moments divided into ``shares``.

    Counts what autograd keeps of every layer, by the drafter's config: about twelve hidden states
    and five rows of the feed-forward's width per entry, and two matrices of scores, or one piece of
    them with its temporaries where there are several
    (:mod:`specblock.drafters.objectives.attention`).
    """
    config: StoredConfig = model.config
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    layers = getattr(config, "num_hidden_layers", 1)
    size, wide, width = config.hidden_size, config.intermediate_size, 2 if mixed_precision else 4
    heads = config.num_attention_heads
    row = (12 * size + 5 * wide + 2 * heads * config.head_dim) * (4 + width) // 2
    rows = work.trunk_rows + work.later_rows
    scores = work.later_rows * work.later_keys * heads
    in_pieces = scores > MAX_SCORES * work.later_forwards
    casts = trained * 2 if mixed_precision else 0
    return MemoryEstimate(
        weights=weights + casts,
        # a divided gradient is whole before it is; so are the weights, beside their own part
        optimiser=trained * 12 if shares == 1 else trained * 4 + trained * 16 // shares,
        activations=layers * rows * row,
        attention=(4 * MAX_SCORES if in_pieces else 2 * layers * scores) * width,
        # logits of a chunk in fp32 with their gradient, and what all rows of the head leave
        logits=2 * 4 * CHUNK_ROWS * config.draft_vocab_size + work.head_rows * size * (4 + width),
        features=feature_bytes,
    )


def available_memory(device: torch.device) -> int:
    """Free bytes on ``device``; on the CPU those of the machine or of its container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    free = psutil.virtual_memory().available
    for name in _CGROUP_LIMITS:
        path = Path(name)
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            free = min(free, int(text) - psutil.Process().memory_info().rss)
    return free


def check_memory(estimate: MemoryEstimate, free: int, *, kept: bool) -> None:
    """Raise :class:`SpecBlockError` with both numbers and what to lower if it will not fit.

    ``kept``: the features of all answers are in main memory.
    """
    if estimate.total <= free:
        return
    needs = {
        "batch_sequences or positions": estimate.activations + estimate.attention,
        "draft_vocab_size": estimate.logits,
        "layers": estimate.weights + estimate.optimiser,
    }
    if kept:
        needs["the number of answers, or name a features_file,"] = estimate.features
    else:
        needs["batch_sequences"] = estimate.features
    what = max(needs, key=needs.__getitem__)
    raise SpecBlockError(
        f"Training would take {estimate.total / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are "
        f"free; lower {what} (most of it is for that)."
    )
