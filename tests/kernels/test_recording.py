"""What is recorded as a CUDA graph: nothing in it waits for the device or reads the host's memory.

There is no GPU here. What a recording refuses is looked for among the operators instead.
"""

from contextlib import contextmanager
from itertools import product

import pytest
import torch
from tests.drafters.test_static import DRAFTERS
from tests.target.test_static import written
from tests.tiny import make_target
from torch.utils._python_dispatch import TorchDispatchMode

from specblock.drafters.static.drafter import StaticDrafter
from specblock.kernels.recording import Recorder, Recording
from specblock.target.static import StaticTarget

# they give a number to the host, have as many results as the numbers say, or bring a number along
REFUSED = {
    "_local_scalar_dense", "equal", "lift_fresh", "masked_select", "nonzero", "repeat_interleave",
    "_unique2",
}  # fmt: skip


class Refusing(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        assert name not in REFUSED, f"a recording cannot hold {name}"
        indices = args[1] if name.startswith("index") and isinstance(args[1], list) else []
        chosen = [index for index in indices if index is not None]
        assert all(index.dtype != torch.bool for index in chosen), "an index of unknown size"
        return function(*args, **(kwargs or {}))


def test_what_a_recording_refuses_is_noticed():
    logits = torch.randn(2, 9)
    for work in (
        lambda: logits[..., [1, 2, 4]],
        lambda: logits[logits > 0],
        lambda: logits.max().item(),
        lambda: logits.new_tensor([1.0]),
    ):
        with Refusing(), pytest.raises(AssertionError):
            work()


@pytest.mark.parametrize(("family", "name"), [*product(["llama", "qwen3", "phi3"], DRAFTERS)])
def test_forwards_with_static_shapes_can_be_recorded(family, name, monkeypatch):
    run, runs = Recording.run, []

    def refusing(recording):
        runs.append(recording)
        with Refusing():
            return run(recording)

    monkeypatch.setattr(Recording, "run", refusing)
    drafter = StaticDrafter(DRAFTERS[name]())
    written(StaticTarget(make_target(family), drafter.feature_layers), drafter)
    assert len(set(map(id, runs))) >= 3


def test_a_recording_that_fails_at_its_end_leaves_the_stream_as_it_was(monkeypatch):
    """As PyTorch does it: the end of a capture raises before the stream is put back."""
    streams = ["own"]

    class Stream:
        def __init__(self, device):
            pass

        def wait_stream(self, other):
            pass

    @contextmanager
    def stream(wanted):
        streams.append(wanted)
        try:
            yield
        finally:
            while streams.pop() is not wanted:
                pass

    class Graph:
        def __init__(self, graph):
            pass

        def __enter__(self):
            streams.append("capture")

        def __exit__(self, *exception):
            raise RuntimeError("the capture was invalidated")

    current = Stream(None)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", Graph)
    recorder = Recorder(torch.device("cpu"))
    recorder.captures = True
    assert Recording(lambda: 3, recorder).run() == 3
    assert streams == ["own"]
    assert not recorder.captures
