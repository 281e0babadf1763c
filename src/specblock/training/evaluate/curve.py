"""How a drafter became what it is: the states that its training kept, judged like drafters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from specblock.kernels.linear import routed
from specblock.stored import restoring
from specblock.training.loop.checkpoints import numbered
from specblock.training.loop.state import read_state

FIELDS = ("step", "answer_tokens")


def spread(states: list[tuple[int, Path]], count: int) -> list[Path]:
    """Of all states (step, file) ``count`` whose steps lie as evenly as they can, oldest first.

    The first and the last are always among them, if ``count`` allows.
    """
    ordered = sorted(states)
    if len(ordered) <= count:
        return [path for _, path in ordered]
    first, last = ordered[0][0], ordered[-1][0]
    wanted = [last - (last - first) * k / max(1, count - 1) for k in range(count)]
    chosen = {min(ordered, key=lambda state: abs(state[0] - step)) for step in wanted}
    return [path for _, path in sorted(chosen)]


def former_states(folder: Path, model: nn.Module, count: int) -> Iterator[dict[str, Any]]:
    """Put ``count`` states of the training in ``folder/training`` into ``model``, one by one.

    Args:
        model: the finished drafter of ``folder``; it holds the last state afterwards.

    Yields:
        ``step`` and ``answer_tokens`` of the state that the model holds meanwhile. Nothing where no
        state was kept.
    """
    for path in spread(numbered(folder / "training"), count):
        state = read_state(path)
        with restoring(path, "model"):
            model.load_state_dict(state.model, strict=False)
        for linear in routed(model):
            linear.refresh()
        yield {field: getattr(state, field) for field in FIELDS}
