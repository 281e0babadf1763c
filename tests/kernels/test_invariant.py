"""No row's result depends on the others: verified trees repeat plain decoding, bit for bit."""

import pytest
import torch
from tests import families
from tests.tiny import ARCHITECTURES, make_target
from torch.nn import functional as F

from specblock.engine.machine.exactness import give_up_unless_exact, repeats_plain, safe_routes
from specblock.errors import ModelError
from specblock.kernels.attention import grouped_sdpa
from specblock.kernels.invariant import block_length, invariant_attention, keeps_one_order
from specblock.kernels.route_plan import choose_routes
from specblock.kernels.route_table import ROW_BUCKETS
from specblock.target.cache import PathCache
from specblock.target.masks import additive, tree_mask, within_window
from specblock.target.model import Target


def random_tree(count: int, seed: int) -> torch.Tensor:
    """Ancestors-or-self of every node, bool [n, n]."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.eye(count, dtype=torch.bool)
    for node in range(1, count):
        mask[node] |= mask[int(torch.randint(0, node, (1,), generator=generator))]
    return mask


def exact_target(name: str, dtype: torch.dtype) -> Target:
    """A target whose layers take their rows in tiles; skips where attention has no one order."""
    if not keeps_one_order(block_length() + 128):
        pytest.skip("this machine's matrix products depend on the number of keys")
    target = Target(make_target(name, max_position_embeddings=1024).to(dtype), exact=True)
    target.use_routes(safe_routes(target))
    return target


@pytest.mark.parametrize("context", [0, 5, 250, 256, 300, 700])
@pytest.mark.parametrize("rows", [1, 4, 40])
@pytest.mark.parametrize("groups", [1, 3])
def test_it_is_attention(context, rows, groups):
    generator = torch.Generator().manual_seed(context + rows)
    heads, dim = 2 * groups, 8
    query = torch.randn(1, heads, rows, dim, generator=generator)
    key, value = (torch.randn(1, 2, context + rows, dim, generator=generator) for _ in range(2))
    visible = tree_mask(random_tree(rows, context), context)
    mask = None if rows == 1 else additive(visible, torch.float32)[None, None]
    ours, weights = invariant_attention(None, query, key, value, mask, scaling=0.3)
    wide = [x.repeat_interleave(groups, 1).double() for x in (key, value)]
    theirs = F.scaled_dot_product_attention(query.double(), *wide, visible, scale=0.3)
    assert weights is None
    torch.testing.assert_close(ours, theirs.transpose(1, 2).float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [5, 9, 12])  # 9 is the keys' width and the ones
@pytest.mark.parametrize("exact", [True, False])
def test_values_of_another_width_than_the_keys(width, exact):
    generator = torch.Generator().manual_seed(width)
    cache = PathCache(1, 40, exact=exact)
    key, value = (torch.randn(1, 2, 10, size, generator=generator) for size in (8, width))
    cache.update(key[:, :, :6], value[:, :, :6], 0)
    cache.advance(6)
    kept = cache.update(key[:, :, 6:], value[:, :, 6:], 0)
    query = torch.randn(1, 4, 4, 8, generator=generator)
    visible = tree_mask(random_tree(4, 1), 6)
    mask = additive(visible, torch.float32)[None, None]
    wide = [x.repeat_interleave(2, 1) for x in (key, value)]
    expected = F.scaled_dot_product_attention(query, *wide, visible).transpose(1, 2)
    if exact:
        ours, _ = invariant_attention(None, query, *kept, mask)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
        assert kept[1].shape[-1] == width + 1
    ours, _ = grouped_sdpa(None, query, key, value, mask)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    ours, _ = invariant_attention(None, query, key, value, mask)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


# what they keep is a latent that they expand, or values that they repeat or make a mask of
@pytest.mark.parametrize("case", ["deepseek_v3", "diffllama", "doge"])
def test_layers_that_change_what_they_kept_are_not_exact(case):
    model = families.make(case).to(torch.bfloat16)
    target = Target(model)
    target.reset(16)
    assert not target.exact
    assert target.prefill(torch.arange(5, 14)).logits.isfinite().all()
    with pytest.raises(ModelError, match="keep keys and values as it reads them"):
        Target(model, exact=True)


def test_windows_and_the_default_scale():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 2, 6, 8, generator=generator)
    key, value = (torch.randn(1, 2, 306, 8, generator=generator) for _ in range(2))
    tree = random_tree(6, 1)
    positions = 300 + tree.sum(-1) - 1
    visible = within_window(tree_mask(tree, 300), positions, 300, 100)
    ours, _ = invariant_attention(
        None, query, key, value, additive(visible, query.dtype)[None, None]
    )
    theirs = F.scaled_dot_product_attention(query, key, value, visible)
    torch.testing.assert_close(ours, theirs.transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("masked", [True, False])
def test_other_masks_than_a_tree_s_are_understood(masked):
    """transformers' own masks are boolean, or left out for a causal chain."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 6, 8, generator=generator) for _ in range(3))
    visible = torch.ones(6, 6, dtype=torch.bool).tril()
    module = torch.nn.Module()
    module.is_causal = True
    ours, _ = invariant_attention(
        module, query, key, value, visible[None, None] if masked else None, scaling=0.3
    )
    theirs = F.scaled_dot_product_attention(query, key, value, visible, scale=0.3)
    torch.testing.assert_close(ours, theirs.transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_verified_trees_repeat_plain_decoding_to_the_bit(name, dtype):
    assert repeats_plain(exact_target(name, dtype), seed=1)


def test_a_kernel_that_minds_its_rows_is_noticed():
    target = exact_target("llama", torch.float32)
    layer = target.model.get_decoder().layers[1].mlp.down_proj
    layer.register_forward_hook(lambda _, x, y: y * (1 + (len(x[0][0]) > 20) * 1e-6))
    assert not repeats_plain(target)


def test_a_machine_that_cannot_be_exact_is_told_so(monkeypatch, caplog):
    model = make_target("llama").to(torch.bfloat16)
    targets = [Target(model), Target(model, (1,))]
    assert all(target.exact for target in targets)
    monkeypatch.setattr("specblock.engine.machine.exactness.repeats_plain", lambda target: False)
    give_up_unless_exact(targets)
    assert not any(target.exact for target in targets)
    assert "near-ties" in caplog.text
    assert {target.loan.attention for target in targets} == {"specblock_sdpa"}


def test_a_machine_that_cannot_be_exact_refuses_it_by_name(monkeypatch):
    target = Target(make_target("llama"), exact=True)
    monkeypatch.setattr("specblock.engine.machine.exactness.repeats_plain", lambda target: False)
    with pytest.raises(ModelError, match="leave exact out"):
        give_up_unless_exact([target])


def test_half_precision_on_the_cpu_is_exact_unless_told_otherwise():
    assert not Target(make_target("llama")).exact
    model = make_target("llama").to(torch.bfloat16)
    target = Target(model)
    target.reset(32)
    target.prefill(torch.arange(5, 14))
    assert target.exact
    assert {layer.keys.dtype for layer in target.cache.layers} == {torch.float32}
    assert not Target(model, exact=False).exact


def test_exact_is_refused_for_attention_that_cannot_be_replaced():
    model = make_target("llama")
    model.set_attn_implementation("eager")
    with pytest.raises(ModelError, match="leave exact out"):
        Target(model, exact=True)
    assert not Target(model.to(torch.bfloat16)).exact


def buckets(**by_route):
    return [dict(by_route) for _ in ROW_BUCKETS]


def test_routes_that_do_not_agree_are_not_mixed():
    seconds = {(4, 4): buckets(direct=1.0, transposed=2.0, packed=1.5)}
    seconds[4, 4][0]["direct"] = 0.5
    names = ("direct", "transposed", "packed", "blocked")
    agreement = buckets(**{name: {name} for name in names})
    assert set(choose_routes(seconds, agreement)[4, 4]) == {"direct"}
    agreement[4]["direct"] = set()  # direct products of 5 to 8 rows differ from single ones
    assert set(choose_routes(seconds, agreement)[4, 4]) == {"packed"}
    for bucket in agreement:
        bucket["transposed"] |= {"packed"}  # and so may serve beside it, but is slower
    assert set(choose_routes(seconds, agreement)[4, 4]) == {"packed"}
    seconds[4, 4][5]["transposed"] = 0.1
    chosen = ["packed"] * len(ROW_BUCKETS)
    chosen[5] = "transposed"
    assert choose_routes(seconds, agreement)[4, 4] == chosen


def test_where_no_route_agrees_the_fastest_is_taken():
    seconds = {(4, 4): buckets(direct=1.0, transposed=0.5)}
    agreement = buckets(**{name: set() for name in ("direct", "transposed", "packed", "blocked")})
    assert set(choose_routes(seconds, agreement)[4, 4]) == {"transposed"}
