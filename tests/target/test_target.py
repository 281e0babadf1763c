"""The target verifies trees as if every path had been decoded alone."""

import pytest
import torch
from transformers import LlamaConfig

from specblock.errors import ContextError, ModelError
from specblock.target.model import Target
from specblock.tree.draft_tree import DraftTree
from tests.tiny import ARCHITECTURES, make_target

TREE = DraftTree(
    tokens=torch.tensor([10, 11, 12, 13, 14, 15]),
    parents=torch.tensor([-1, 0, 0, 1, 2, 4]),
    depths=torch.tensor([0, 1, 1, 2, 2, 3]),
    scores=-torch.tensor([0.0, 1, 1, 2, 2, 3]),
    log_probs=-torch.tensor([0.0, 1, 1, 1, 1, 1]),
    buckets=torch.zeros(6, dtype=torch.int64),
)
LAYERS = (0, 2, 5)


def prompt(count: int) -> torch.Tensor:
    return torch.randint(3, 97, (count,), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def full_forward(model, ids):
    output = model(input_ids=ids[None], output_hidden_states=True, use_cache=False)
    return output.logits[0]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("count", [3, 14, 30])  # around and beyond the sliding windows
def test_every_node_sees_its_own_path(name, count):
    ids = prompt(count)
    reference = make_target(name)
    target = Target(make_target(name), LAYERS, prefill_chunk=5)
    target.reset(64)
    target.prefill(ids)
    output = target.verify(TREE)
    for path in TREE.paths():
        nodes = path[path >= 0]
        logits = full_forward(reference, torch.cat((ids, TREE.tokens[nodes])))
        torch.testing.assert_close(output.logits[nodes], logits[count:], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_kept_path_is_as_good_as_decoded(name):
    ids, path = prompt(14), torch.tensor([0, 2, 4])
    kept, decoded = (Target(make_target(name), LAYERS) for _ in range(2))
    for target in (kept, decoded):
        target.reset(64)
    kept.prefill(ids)
    kept.verify(TREE)
    kept.commit(path)
    decoded.prefill(torch.cat((ids, TREE.tokens[path])))
    assert kept.length == decoded.length == 17
    root = DraftTree.root_only(33)
    ours, theirs = kept.verify(root), decoded.verify(root)
    torch.testing.assert_close(ours.logits, theirs.logits, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(ours.features, theirs.features, atol=2e-4, rtol=2e-4)


def test_features_are_outputs_of_the_named_layers():
    model, ids = make_target("llama"), prompt(9)
    with torch.inference_mode():
        states = model(input_ids=ids[None], output_hidden_states=True).hidden_states
    target = Target(make_target("llama"), (0, 4), prefill_chunk=4)
    target.reset(16)
    features = target.prefill(ids).features
    expected = torch.cat((states[1][0], states[5][0]), dim=-1)
    torch.testing.assert_close(features, expected, atol=2e-4, rtol=2e-4)


def test_a_reset_forgets_and_reuses_the_cache():
    target = Target(make_target("llama"))
    target.reset(32)
    first = target.prefill(prompt(8)).logits
    cache = target.cache
    target.reset(32)
    assert target.length == 0
    assert target.cache is cache
    torch.testing.assert_close(target.prefill(prompt(8)).logits, first)


def test_a_full_cache_and_a_long_prompt_are_refused():
    target = Target(make_target("llama", max_position_embeddings=16))
    target.reset(64)
    with pytest.raises(ContextError, match="17 tokens.*holds 16"):
        target.prefill(prompt(17))
    target = Target(make_target("llama"))
    target.reset(4)
    with pytest.raises(ContextError, match="larger capacity"):
        target.prefill(prompt(5))


def test_feature_layers_that_do_not_exist_are_refused():
    with pytest.raises(ModelError, match=r"\[6\] do not exist.*0 to 5"):
        Target(make_target("llama"), (0, 6))


def test_layers_without_a_position_cache_are_refused():
    model = make_target("llama")
    model.config.layer_types = ["linear_attention"] * 6
    with pytest.raises(ModelError, match="linear_attention"):
        Target(model)


def test_eager_attention_works_too():
    torch.manual_seed(0)
    config = LlamaConfig(**make_target("llama").config.to_diff_dict())
    eager = type(make_target("llama"))._from_config(config, attn_implementation="eager")
    eager.load_state_dict(make_target("llama").state_dict())
    outputs = []
    for model in (eager.eval(), make_target("llama")):
        target = Target(model)
        target.reset(32)
        target.prefill(prompt(7))
        outputs.append(target.verify(TREE).logits)
    torch.testing.assert_close(outputs[0], outputs[1], atol=2e-4, rtol=2e-4)
