"""Whatever a forward calls its cache, it gets ours."""

import inspect

import pytest
import torch
from torch import nn

from specblock.target.architecture.structure import cache_argument, forward_of
from specblock.target.model import Target
from tests.tiny import make_target


class Newer(nn.Module):
    def forward(self, input_ids, cache=None, **kwargs): ...


class Older(nn.Module):
    def forward(self, input_ids, past_key_values=None, **kwargs): ...


class Neither(nn.Module):
    def forward(self, input_ids, **kwargs): ...


class Wrapper(nn.Module):
    """Hands everything on and names nothing, as adapter libraries do."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize(
    ("model", "name"), [(Newer, "cache"), (Older, "past_key_values"), (Neither, None)]
)
def test_the_forwards_own_name_is_used(model, name):
    assert cache_argument(model().forward) == name


def test_a_wrapper_is_looked_through():
    model = make_target("llama")
    assert forward_of(Wrapper(model)) == forward_of(model) == model.forward
    assert cache_argument(forward_of(model)) in inspect.signature(model.forward).parameters


def test_a_wrapped_model_decodes_with_the_cache_of_the_model_within():
    logits = []
    for model in (make_target("llama"), Wrapper(make_target("llama"))):
        target = Target(model)
        target.reset(8)
        target.prefill(torch.tensor([5, 6, 7]))
        logits.append(target.prefill(torch.tensor([8])).logits)
    assert torch.equal(*logits)
