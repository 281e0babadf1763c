"""A computation of fixed shapes and addresses, recorded once on a GPU and replayed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

__all__ = ["Recorder", "Recording"]

T = TypeVar("T")
_WARM_UP = 2  # runs before one is recorded: what libraries make at a first call is there then
_log = logging.getLogger("specblock")


class Recorder:
    """Whether the computations of one owner are recorded.

    Attributes:
        captures: they are CUDA graphs; False on a CPU, and once a recording failed, which is said
            in a sentence of the log.
    """

    def __init__(self, device: torch.device):
        self.device, self.captures = device, device.type == "cuda"

    def give_up(self, error: Exception) -> None:
        """Run everything eagerly from now on."""
        _log.warning("Rounds are not captured as CUDA graphs, but run eagerly: %s", error)
        self.captures = False


class Recording(Generic[T]):
    """``compute``, whose inputs lie in tensors that it keeps; its result is overwritten by the next
    run.

    On a GPU the first run records a CUDA graph; elsewhere every run computes.
    """

    def __init__(self, compute: Callable[[], T], recorder: Recorder):
        self._compute, self._recorder = compute, recorder
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: T | None = None

    def run(self) -> T:
        """The result for what the inputs hold now."""
        if self._recorder.captures and self._graph is None:
            try:
                self._record()
            except RuntimeError as error:
                self._recorder.give_up(error)
        if self._graph is None or not self._recorder.captures:
            return self._compute()
        self._graph.replay()
        return self._result

    def _record(self) -> None:
        device = self._recorder.device
        side = torch.cuda.Stream(device)
        own = torch.cuda.current_stream(device)
        side.wait_stream(own)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._compute()
        own.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # a capture that fails leaves its own stream behind as the current one
        with torch.cuda.stream(own), torch.cuda.graph(graph):
            self._result = self._compute()
        self._graph = graph
