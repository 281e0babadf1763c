"""A kernel is one of the machine's only where it runs and is right; tiles keep rows apart."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from specblock.kernels import products
from specblock.kernels.linear import RoutedLinear, has_light, router_of
from specblock.kernels.products import COPYING, DIRECT, KERNELS, Kernel, available_routes, in_tiles
from specblock.kernels.route_plan import choose_exact_routes
from specblock.kernels.route_table import ROW_BUCKETS, RouteTable
from specblock.kernels.routes import agreeing_routes, measure_routes, sample

HALF = [torch.float32, torch.bfloat16]


def raising(*_):
    raise RuntimeError("bf16 path needs the cpu support avx_ne_convert")


def wrong(weight, bias, pack, rows):
    """Right for few rows, as a kernel may be."""
    return lambda x: F.linear(x, weight, bias) * (2 if rows > 16 else 1)


def halves(weight, bias, pack, rows):
    return lambda x: F.linear(x, weight, bias).half()


@pytest.fixture
def kernels(monkeypatch):
    """Another set of kernels, tried anew."""

    def put(**more):
        monkeypatch.setattr(products, "KERNELS", {DIRECT: KERNELS[DIRECT], **more})
        products.runs.cache_clear()

    yield put
    products.runs.cache_clear()


@pytest.mark.parametrize(
    "kernel",
    [
        Kernel((torch.float32,), raising, wrong),
        Kernel((torch.float32,), None, raising),
        Kernel((torch.float32,), None, wrong),
        Kernel((torch.float32,), None, halves),
        Kernel((torch.bfloat16,), None, KERNELS[DIRECT].bind),
    ],
    ids=["does not pack", "raises", "wrong", "other dtype", "not for this dtype"],
)
def test_what_does_not_run_or_is_wrong_is_not_among_the_routes(kernel, kernels):
    kernels(odd=kernel)
    assert available_routes(torch.zeros(4, 4)) == (DIRECT,)


def test_what_is_right_is_among_the_routes_and_direct_always(kernels):
    kernels(good=Kernel((torch.float32,), None, KERNELS[DIRECT].bind))
    assert available_routes(torch.zeros(4, 4)) == (DIRECT, "good")
    assert available_routes(torch.zeros(4, 4, dtype=torch.float64)) == (DIRECT,)


@pytest.mark.parametrize("dtype", HALF)
def test_a_route_that_this_machine_lacks_is_computed_directly(dtype, monkeypatch):
    """A table may come from another machine, and some name their route."""
    monkeypatch.setattr("specblock.kernels.linear.available_routes", lambda weight: (DIRECT,))
    linear = RoutedLinear(nn.Linear(32, 48, dtype=dtype))
    for route in (*COPYING, "transposed"):
        linear.use(RouteTable({linear.shape: [route] * len(ROW_BUCKETS)}))
        x = torch.randn(5, 32).to(dtype)
        with torch.inference_mode():
            assert linear(x).equal(F.linear(x, linear.weight, linear.bias))


def test_without_8_bit_products_there_are_no_light_layers(monkeypatch):
    monkeypatch.setattr(torch, "_weight_int8pack_mm", raising)
    products.has_int8_weights.cache_clear()
    try:
        assert not has_light(nn.Linear(32, 32))
    finally:
        products.has_int8_weights.cache_clear()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("tile", [4, 8])
@pytest.mark.parametrize("kernel", KERNELS)
@torch.inference_mode()
def test_in_tiles_no_row_depends_on_the_others(kernel, tile, dtype):
    linear = RoutedLinear(nn.Linear(1536, 64, dtype=dtype))
    if kernel not in available_routes(linear.weight):
        pytest.skip(f"this machine has no {kernel} route for {dtype}")
    x = torch.randn(40, 1536).to(dtype)
    route = f"{kernel}/{tile}"
    alone = torch.cat([linear.compute(row[None], route) for row in x])
    for rows in (1, 2, 3, 4, 5, 8, 9, 31, 40):
        found = linear.compute(x[None, :rows], route)
        assert found.shape == (1, rows, 64)
        assert found.is_contiguous()
        assert found[0].equal(alone[:rows])
    torch.testing.assert_close(alone, F.linear(x, linear.weight, linear.bias), atol=0.05, rtol=0.05)


def test_tiles_are_filled_up_and_cut_again():
    seen = []

    def product(x):
        seen.append(x.shape)
        return 2 * x

    x = torch.arange(21.0).view(1, 7, 3)
    assert in_tiles(product, 4)(x).equal(2 * x)
    assert seen == [(4, 3), (4, 3)]


def seconds_of(**by_route):
    return [dict(by_route) for _ in ROW_BUCKETS]


def agreement_of(*steady):
    """The named routes repeat their own single rows, others nothing."""
    return [{name: {name} if name in steady else set() for name in KERNELS} for _ in ROW_BUCKETS]


def test_shapes_without_an_exact_kernel_take_one_in_tiles():
    timed = {
        (4, 4): seconds_of(direct=2.0, blocked=1.0),
        (4, 9): seconds_of(direct=2.0, blocked=1.0),
    }
    timed[4, 9][ROW_BUCKETS.index(4)] = {"direct": 0.1, "blocked": 0.4}  # ten times two tiles
    agreements = {(4, 4): agreement_of("blocked"), (4, 9): agreement_of()}
    chosen = choose_exact_routes(timed, agreements)
    assert set(chosen[4, 4]) == {"blocked"}
    assert set(chosen[4, 9]) == {"direct/4"}


def test_shapes_whose_exact_kernels_differ_each_take_their_own():
    timed = {
        (4, 4): seconds_of(direct=2.0, blocked=1.0),
        (4, 9): seconds_of(direct=2.0, blocked=1.0),
    }
    agreements = {(4, 4): agreement_of("blocked"), (4, 9): agreement_of("direct")}
    chosen = choose_exact_routes(timed, agreements)
    assert (set(chosen[4, 4]), set(chosen[4, 9])) == ({"blocked"}, {"direct"})
    free = choose_exact_routes(timed, {(4, 4): agreement_of("direct")})
    assert (set(free[4, 4]), set(free[4, 9])) == ({"direct"}, {"direct"})  # together


@torch.inference_mode()
def test_measured_exact_routes_keep_rows_apart_on_this_machine():
    linears = [RoutedLinear(nn.Linear(1536, 64)), RoutedLinear(nn.Linear(64, 1536))]
    table = measure_routes(linears, repetitions=1, exact=linears)
    for linear in linears:
        linear.use(table)
        x = torch.randn(70, linear.in_features)
        alone = torch.cat([linear(row[None]) for row in x])
        for rows in (2, 7, 16, 33, 70):
            assert linear(x[:rows]).equal(alone[:rows])
    assert set(agreeing_routes(linears, set())) == {linear.shape for linear in linears}


def test_a_sample_has_every_shape_and_enough(monkeypatch):
    monkeypatch.setattr("specblock.kernels.routes._ENOUGH", 4 * 64 * 10)
    linears = [RoutedLinear(nn.Linear(8, 8)) for _ in range(40)] + [RoutedLinear(nn.Linear(8, 4))]
    chosen = sample(linears)
    assert chosen[-1].shape == (4, 8)
    assert 10 <= len(chosen) <= 12
    assert chosen == [linear for linear in linears if linear in chosen]


def changed_in_place(layer):
    with torch.no_grad():
        layer.weight.mul_(2)


def changed_by_data(layer):
    layer.weight.data *= 2


def changed_in_one_place(layer):
    layer.weight.data[3, 5] += 1


def replaced(layer):
    layer.weight = nn.Parameter(2 * layer.weight.detach())


def loaded(layer):
    layer.load_state_dict({"weight": 2 * layer.weight, "bias": layer.bias})


def assigned(layer):
    layer.load_state_dict({"weight": 2 * layer.weight, "bias": 3 * layer.bias}, assign=True)


def converted(layer):
    layer.to(torch.bfloat16)


@pytest.mark.parametrize(
    "change",
    [
        changed_in_place,
        changed_by_data,
        changed_in_one_place,
        replaced,
        loaded,
        assigned,
        converted,
    ],
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_no_copy_outlives_a_change_of_its_weight(kernel, change):
    layer = nn.Linear(48, 64)
    router = router_of(layer)
    if kernel not in available_routes(layer.weight):
        pytest.skip(f"this machine has no {kernel} route")
    router.use(RouteTable({router.shape: [kernel] * len(ROW_BUCKETS)}))
    x = torch.randn(3, 48)
    router.follow()
    with torch.inference_mode():
        before = router(x)
        change(layer)
        router.follow()
        router.confirm()
        x = x.to(layer.weight)
        tolerance = 1e-5 if x.dtype == torch.float32 else 2e-2
        torch.testing.assert_close(router(x), layer(x), atol=tolerance, rtol=tolerance)
    assert not router(x).equal(before)
    assert router_of(layer) is router


def test_the_routes_of_a_layer_go_with_it():
    layer = nn.Linear(4, 4)
    router_of(layer)
    kept = len(products_of_all())
    del layer
    assert len(products_of_all()) == kept - 1


def products_of_all():
    from specblock.kernels import linear

    return dict(linear._routed)
