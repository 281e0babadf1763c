"""A model is the owner's: between two forwards nothing of ours is left in it."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from specblock.engine.loading import assemble
from specblock.kernels.products import COPYING, available_routes
from specblock.kernels.route_table import ROW_BUCKETS, RouteTable
from specblock.target.model import Target
from specblock.tree.draft_tree import DraftTree
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import make_target

PROMPT = torch.arange(5, 17)


def fingerprint(model):
    """Everything that a user could see of what is done to a model."""
    return {
        name: (
            type(module),
            id(module),
            sorted(vars(module)),
            module.training,
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            {key: id(buffer) for key, buffer in module.named_buffers(recurse=False)},
            {key: id(weight) for key, weight in module.named_parameters(recurse=False)},
            getattr(getattr(module, "config", None), "_attn_implementation", None),
        )
        for name, module in model.named_modules()
    }


def copying(target):
    """Every layer of ``target`` keeps a packed copy of its weight, where this machine has such."""
    weight = target.linears[0].weight
    route = available_routes(weight)[-1]
    shapes = {linear.shape for linear in target.linears}
    target.use_routes(RouteTable({shape: [route] * len(ROW_BUCKETS) for shape in shapes}))


def logits(target):
    target.reset(64)
    target.prefill(PROMPT)
    return target.verify(DraftTree.root_only(33)).logits


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_after_a_call_a_model_is_what_it_was(training, dtype):
    model = make_target("gemma3").to(dtype).train(training)
    model.get_decoder().layers[2].eval()  # frozen by its owner
    before = fingerprint(model)
    target = Target(model, (0, 2, 4))
    copying(target)
    logits(target)
    assert fingerprint(model) == before
    with pytest.raises(IndexError):
        target.verify(DraftTree.root_only(10**6))  # no such token: the forward raises
    assert fingerprint(model) == before
    copies = set(COPYING) & set(available_routes(target.linears[0].weight))
    assert bool(copies) == any(linear._packs for linear in target.linears)


def test_during_a_stream_too():
    model = make_target("llama")
    before = fingerprint(model)
    speculator = assemble(model, make_tokenizer(), "lookup", calibrate="never")
    for _ in speculator.stream("w7 w8 w9 w7 w8", max_new_tokens=6, ignore_eos=True):
        assert fingerprint(model) == before


def merged(model):
    """As adapters are merged: past PyTorch's count of changes."""
    for layer in model.get_decoder().layers:
        layer.mlp.down_proj.weight.data += 0.5 * torch.randn_like(layer.mlp.down_proj.weight)


def noised(model):
    with torch.no_grad():
        for weight in model.get_decoder().layers.parameters():
            weight.add_(0.3 * torch.randn_like(weight))


def loaded(model):
    model.load_state_dict(make_target("llama", seed=5).state_dict())


def assigned(model):
    model.load_state_dict(make_target("llama", seed=5).state_dict(), assign=True)


def halved(model):
    model.to(torch.bfloat16)


def halved_and_back(model):
    model.bfloat16().float()


def wrapped(model):
    """As adapter libraries put themselves around a layer."""

    class Adapter(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base

        def forward(self, x):
            return self.base(x) + 0.7 * x.sum(-1, keepdim=True)

    for layer in model.get_decoder().layers:
        layer.mlp.down_proj = Adapter(layer.mlp.down_proj)


@pytest.mark.parametrize(
    "change", [merged, noised, loaded, assigned, halved, halved_and_back, wrapped]
)
def test_what_the_owner_changes_between_two_calls_is_seen(change):
    torch.manual_seed(0)
    model = make_target("llama")
    target = Target(model, exact=False)
    copying(target)
    before = logits(target)
    change(model)
    found = logits(target)
    fresh = Target(copy.deepcopy(model), exact=False)
    tolerance = 1e-4 if found.dtype == torch.float32 else 0.2
    torch.testing.assert_close(found, logits(fresh), atol=tolerance, rtol=tolerance)
    if change not in (halved, halved_and_back):
        assert not torch.allclose(found, before, atol=0.05)


def test_a_hook_of_the_owner_on_a_linear_layer_runs():
    model = make_target("llama")
    target = Target(model)
    before = logits(target)
    layer = model.get_decoder().layers[0].mlp.down_proj
    layer.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    assert not torch.allclose(logits(target), before, atol=1e-3)


def test_a_model_is_copied_pickled_and_saved_as_its_owner_made_it(tmp_path):
    model = make_target("llama")
    target = Target(model, (1, 2))
    copying(target)
    expected = logits(target)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert {type(m) for m in other.modules()} == {type(m) for m in model.modules()}
        torch.testing.assert_close(logits(Target(other)), expected, atol=1e-4, rtol=1e-4)
    torch.save(model, io.BytesIO())
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(Target(again)), expected, atol=1e-4, rtol=1e-4)


def test_two_targets_of_one_model_do_not_mind_each_other():
    model = make_target("llama")
    one, two = Target(model, (0, 1)), Target(model, (2,))
    copying(one)
    alone = logits(Target(make_target("llama")))
    for target in (one, two, one, two):
        torch.testing.assert_close(logits(target), alone, atol=1e-4, rtol=1e-4)
    assert one.feature_layers == (0, 1)
    assert one.verify(DraftTree.root_only(3)).features.shape == (1, 64)
    assert two.verify(DraftTree.root_only(3)).features.shape == (1, 32)
