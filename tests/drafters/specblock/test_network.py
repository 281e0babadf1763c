"""The drafter network: input fusion, layer-wise shift, rotary positions, rank features."""

import dataclasses
import math

import pytest
import torch

from specblock.drafters.specblock.config import SpecBlockConfig
from specblock.drafters.specblock.forward import run_block, run_trunk
from specblock.drafters.specblock.layers import InputLayer, Rotary
from specblock.drafters.specblock.network import SpecBlockModel, previous_slot, rank_features

TINY = SpecBlockConfig(
    hidden_size=16,
    vocab_size=40,
    target_layers=8,
    feature_layers=(1, 3, 4),
    intermediate_size=24,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    draft_vocab_size=24,
)


def tiny_model(seed=0, **changes):
    """A model whose norms and queries are not at their trivial start."""
    torch.manual_seed(seed)
    model = SpecBlockModel(dataclasses.replace(TINY, **changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif parameter.dim() == 1 or "queries" in name or "slot_up" in name:
                parameter.normal_()
    return model


def random_pairs(config, batch=2, length=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    width = len(config.feature_layers) * config.hidden_size
    features = torch.randn(batch, length, width, generator=generator)
    tokens = torch.randint(config.vocab_size, (batch, length), generator=generator)
    return features, tokens


def brute_force_rank_features(logits):
    """Float64, one row at a time, from the definition."""
    rows = []
    for row in logits.double().tolist():
        z = sorted(row, reverse=True)[:20]
        normaliser = math.log(math.fsum(math.exp(v - z[0]) for v in z)) + z[0]
        lp = [v - normaliser for v in z]
        entropy = -math.fsum(math.exp(v) * v for v in lp)
        rows.append([*lp[:10], z[0] - z[1], z[0] - z[2], z[0] - z[4], math.exp(lp[0]), entropy])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
def test_rank_features_against_brute_force(scale):
    logits = torch.randn(7, 57, generator=torch.Generator().manual_seed(3)) * scale
    features = rank_features(logits)
    assert features.shape == (7, 15)
    assert features.dtype == torch.float32
    torch.testing.assert_close(
        features.double(), brute_force_rank_features(logits), atol=3e-5, rtol=3e-6
    )


def test_rank_features_use_the_top_twenty_alone():
    logits = torch.arange(40.0).flip(0)[None] / 10
    changed = logits.clone()
    changed[0, 20:] = -1e4
    assert torch.equal(rank_features(logits), rank_features(changed))
    changed[0, 19] = -1e4
    assert not torch.equal(rank_features(logits), rank_features(changed))


def test_rank_features_of_half_precision_logits_are_computed_in_fp32():
    logits = (torch.randn(4, 64) * 5).to(torch.bfloat16)
    features = rank_features(logits)
    assert features.dtype == torch.float32
    torch.testing.assert_close(
        features.double(), brute_force_rank_features(logits), atol=3e-5, rtol=3e-6
    )


def test_rank_head_takes_no_gradient_back():
    model = tiny_model()
    hidden = torch.randn(3, TINY.hidden_size, requires_grad=True)
    logits, normed = model.logits(hidden)
    model.rank_logits(normed, logits).square().sum().backward()
    assert hidden.grad is None
    assert model.lm_head.weight.grad is None
    assert model.norm.weight.grad is None
    assert model.rank_head[0].weight.grad.abs().sum() > 0


def test_previous_slot():
    x = torch.arange(8.0).view(1, 4, 2)
    assert previous_slot(x)[0].tolist() == [[0, 1], [0, 1], [2, 3], [4, 5]]


def test_layerwise_shift_is_the_only_way_between_slots_without_attention():
    model = tiny_model().double()
    x = torch.randn(3, 4, TINY.hidden_size, dtype=torch.float64)
    positions = torch.arange(4).expand(3, 4)

    def no_attention(_layer, q, _k, _v):
        return torch.zeros_like(q.flatten(-2))

    out = model.run(x, previous_slot, positions, no_attention)

    def feed_forward(layer, v):
        return v + layer.mlp(layer.post_attention_layernorm(v))

    for row in range(3):
        first = [feed_forward(model.layers[0], x[row, k]) for k in range(4)]
        for k in range(4):
            pair = torch.cat((first[k], first[max(0, k - 1)]))  # own, then the previous slot's
            shifted = model.shift_proj[0].weight @ pair  # replaces, nothing is added
            expected = feed_forward(model.layers[1], shifted)
            torch.testing.assert_close(out[row, k], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("slot_rank", [0, 3])
def test_prefix_broadcast_equals_fusing_every_slot(slot_rank):
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, slot_rank=slot_rank)
    layer = InputLayer(config)
    with torch.no_grad():
        for norm in (layer.condition_norm, layer.token_norm, layer.query_norm):
            norm.weight.uniform_(0.5, 1.5)
        if slot_rank:
            layer.slot_up.normal_()
    condition, tokens = torch.randn(2, 5, config.hidden_size), torch.randint(40, (2, 5))
    out = layer(condition, tokens, 4)
    token = layer.token_norm(layer.embed_tokens(tokens))
    for k in range(4):
        query = layer.query_norm(layer.position_queries.weight[k]).expand_as(token)
        parts = (layer.condition_norm(condition), token, query)
        expected = torch.cat(parts, dim=-1) @ layer.fuse.weight.T
        if slot_rank and k:
            down = layer.slot_down[(k - 1) * slot_rank : k * slot_rank]
            pair = torch.cat(parts[:2], dim=-1)
            expected = expected + pair @ down.T @ layer.slot_up[k - 1].T
        torch.testing.assert_close(out[:, :, k], expected, atol=1e-5, rtol=1e-5)
    # fewer slots are the first of all
    torch.testing.assert_close(layer(condition, tokens, 2), out[:, :, :2], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "millions"),
    [({}, 702.6), ({"vocab_size": 151936, "intermediate_size": 12288}, 652.3)],
)
def test_size_of_the_published_drafters(changes, millions):
    shape = SpecBlockConfig(
        hidden_size=4096,
        vocab_size=128256,
        target_layers=32,
        feature_layers=(1, 15, 28),
        intermediate_size=14336,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    )
    with torch.device("meta"):
        model = SpecBlockModel(dataclasses.replace(shape, **changes))
    count = sum(p.numel() for name, p in model.named_parameters() if "embed_tokens" not in name)
    assert round(count / 1e6, 1) == millions
    assert not model.input_layer.embed_tokens.weight.requires_grad


@pytest.mark.parametrize("sink", [False, True])
def test_rotary_positions_are_pair_plus_one_plus_slot(sink, monkeypatch):
    model = tiny_model(sink=sink)
    seen = []
    original = Rotary.forward
    monkeypatch.setattr(Rotary, "forward", lambda self, p: seen.append(p) or original(self, p))
    features, tokens = random_pairs(model.config)
    trunk = run_trunk(model, features, tokens)
    expected = [[i + 1 + k for k in range(4)] for i in range(5)]
    assert seen[-1].tolist() == ([[0] * 4] if sink else []) + expected
    chosen = torch.tensor([[1, 4], [0, 2]])
    rows = trunk.condition.gather(1, chosen[..., None].expand(-1, -1, 16))
    first = run_block(model, trunk, rows, tokens.gather(1, chosen), chosen)
    wanted = [[[i + 1 + k for k in range(4)] for i in row] for row in chosen.tolist()]
    assert seen[-1].tolist() == wanted
    # a later block takes the same ids: they do not advance with the slot it starts from
    used = torch.tensor([[2, 3], [1, 4]])
    run_block(model, trunk, first.hidden[:, :, 1], tokens[:, :2], chosen, [(first, used)])
    assert seen[-1].tolist() == wanted


def test_angles_stay_fp32_at_large_positions_under_bf16():
    config = dataclasses.replace(TINY, head_dim=8, rope_theta=10000.0)
    rotary = SpecBlockModel(config).to(torch.bfloat16).rotary
    positions = torch.tensor([0, 1, 255, 2047, 2048, 2049, 31999, 32000, 131071])
    cos, sin = rotary(positions)
    assert cos.dtype == sin.dtype == torch.float32
    frequency = 10000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    angle = positions.double()[:, None] * frequency
    angle = torch.cat((angle, angle), dim=-1)[:, None]
    torch.testing.assert_close(cos.double(), angle.cos(), atol=1e-2, rtol=0)
    torch.testing.assert_close(sin.double(), angle.sin(), atol=1e-2, rtol=0)
    # neighbours are told apart, which bf16 positions beyond 256 would not be
    assert (cos[3:-1] - cos[4:]).abs().amax(dim=(1, 2)).min() > 0.1


def test_rotation_is_the_half_rotation():
    model = tiny_model()
    x = torch.randn(1, TINY.hidden_size)
    cos, sin = model.rotary(torch.tensor([3]))
    q = model.layers[0].project(x, cos, sin)[0].detach()
    normed = model.layers[0].input_layernorm(x)
    plain = model.layers[0].self_attn.q_proj(normed).detach().view(4, 4)
    for head in range(4):
        for pair in range(2):
            angle = 3 * 10000.0 ** (-2 * pair / 4)
            a, b = float(plain[head, pair]), float(plain[head, pair + 2])
            turned = (
                a * math.cos(angle) - b * math.sin(angle),
                b * math.cos(angle) + a * math.sin(angle),
            )
            assert float(q[0, head, pair]) == pytest.approx(turned[0], abs=1e-5)
            assert float(q[0, head, pair + 2]) == pytest.approx(turned[1], abs=1e-5)


@pytest.mark.parametrize("cached_slots", [0, 1, 2])
@pytest.mark.parametrize("sink", [False, True])
def test_a_first_block_repeats_the_trunk(cached_slots, sink):
    changes = {"cached_slots": cached_slots, "sink": sink, "feature_norm": sink, "slot_rank": 2}
    model = tiny_model(**changes)
    features, tokens = random_pairs(model.config)
    trunk = run_trunk(model, features, tokens)
    everywhere = torch.arange(5).expand(2, 5)
    block = run_block(model, trunk, trunk.condition, tokens, everywhere)
    kept = model.config.slots_kept
    assert trunk.hidden.shape == (2, 5, kept, 16)
    torch.testing.assert_close(block.hidden[:, :, :kept], trunk.hidden, atol=1e-5, rtol=1e-5)


def test_nothing_reads_the_future():
    model = tiny_model(sink=True)
    features, tokens = random_pairs(model.config)
    before = run_trunk(model, features, tokens).hidden
    features[:, 3:] += 1
    tokens[:, 3:] = (tokens[:, 3:] + 1) % 40
    after = run_trunk(model, features, tokens).hidden
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3], after[:, 3])


def test_a_later_block_sees_the_slots_it_descends_from_and_no_others():
    model = tiny_model()
    features, tokens = random_pairs(model.config, batch=1)
    trunk = run_trunk(model, features, tokens)
    chosen = torch.tensor([[3]])
    first = run_block(model, trunk, trunk.condition[:, 3:4], tokens[:, 3:4], chosen)

    def second(block, used):
        parents = [(block, torch.tensor([[used]]))]
        return run_block(
            model, trunk, first.hidden[:, :, used - 1], tokens[:, 4:5], chosen, parents
        ).hidden

    for used in range(1, 5):
        for slot in range(4):
            values = [v.clone() for v in first.values]
            for value in values:
                value[:, :, slot] += 1
            moved = not torch.equal(
                second(dataclasses.replace(first, values=values), used), second(first, used)
            )
            assert moved == (slot < used)


def test_target_ids_are_draft_ids_plus_offset():
    model = tiny_model()
    model.d2t = torch.arange(24)
    assert model.to_target_ids(torch.tensor([[0, 3], [5, 23]])).tolist() == [[0, 6], [10, 46]]
