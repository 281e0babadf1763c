"""Every route of a linear layer is the same product."""

import copy
import pickle

import pytest
import torch
from torch import nn

from specblock.kernels.linear import RoutedLinear, has_int8, has_light, route_linears, routed
from specblock.kernels.products import COPYING, available_routes
from specblock.kernels.route_plan import choose_routes
from specblock.kernels.route_table import ROW_BUCKETS, RouteTable
from specblock.kernels.routes import measure_routes

ROUTES = ("direct", "transposed", "packed", "blocked")


needs_light = pytest.mark.skipif(
    not has_light(nn.Linear(32, 32)), reason="no product with 8-bit weights in this build"
)
needs_int8 = pytest.mark.skipif(not has_int8(), reason="no 8-bit product on this processor")


def make_linear(bias: bool = False, dtype=torch.float32) -> RoutedLinear:
    torch.manual_seed(0)
    return RoutedLinear(nn.Linear(48, 80, bias=bias).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("route", ROUTES)
@torch.inference_mode()
def test_routes_agree_and_are_contiguous(route, bias, dtype):
    linear = make_linear(bias, dtype)
    if route not in available_routes(linear.weight):
        pytest.skip(f"this machine has no {route} route for {dtype}")
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for shape in ((1, 48), (1, 7, 48), (3, 33, 48), (200, 48)):
        x = torch.randn(shape).to(dtype)
        exact = nn.functional.linear(
            x.double(),
            linear.weight.double(),
            None if linear.bias is None else linear.bias.double(),
        )
        y = linear.compute(x, route)
        assert y.shape == (*shape[:-1], 80)
        assert y.is_contiguous()
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), exact, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("route", COPYING)
@torch.inference_mode()
def test_a_changed_weight_is_seen_after_refresh(route):
    linear = make_linear(bias=True)
    if route not in available_routes(linear.weight):
        pytest.skip(f"this build of PyTorch has no {route} route")
    x = torch.randn(5, 48)
    linear.compute(x, route)
    linear.weight.data.mul_(2)
    linear.refresh()
    torch.testing.assert_close(
        linear.compute(x, route),
        nn.functional.linear(x, linear.weight, linear.bias),
        atol=1e-5,
        rtol=1e-5,
    )


def test_gradients_take_the_direct_route():
    linear = make_linear(bias=True)
    linear.use(RouteTable({linear.shape: ["transposed"] * len(ROW_BUCKETS)}))
    linear(torch.randn(3, 48)).sum().backward()
    assert linear.weight.grad is not None


def test_the_table_is_looked_up_by_rows():
    routes = [f"r{rows}" for rows in ROW_BUCKETS]
    table = RouteTable({(4, 3): routes})
    assert table.route((4, 3), 1) == "r1"
    assert table.route((4, 3), 3) == "r3"
    assert table.route((4, 3), 5) == "r8"
    assert table.route((4, 3), 16) == "r16"
    assert table.route((4, 3), 100) == f"r{ROW_BUCKETS[-1]}"
    assert table.route((4, 3), 5000) == "direct"
    assert table.route((9, 9), 1) == "direct"
    assert RouteTable.from_dict(table.to_dict()) == table
    screened = RouteTable(table.routes, frozenset({(4, 3)}), 8)
    assert RouteTable.from_dict(screened.to_dict()) == screened != table
    with pytest.raises(ValueError, match="row counts"):  # of another version
        RouteTable.from_dict({"4x3": routes[1:], "screened": [], "light_rows": 0})


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_8_bit_product_is_near_and_follows_the_weight(dtype):
    linear = make_linear(dtype=dtype)
    x = torch.randn(2, 3, 48).to(dtype)
    x[0, 0] *= 1000  # a row of its own scale
    x[1, 1] = 0
    for _ in range(2):
        with torch.inference_mode():
            exact = nn.functional.linear(x.float(), linear.weight.float())
            found = linear.approximate(x)
        assert found.dtype == torch.float32
        error = (found - exact).norm(dim=-1)
        assert (error <= 0.03 * exact.norm(dim=-1)).all()
        assert error.sum() > 0
        with torch.no_grad():
            linear.weight.mul_(-2)
        linear.refresh()


@needs_int8
def test_a_screened_layer_keeps_no_copy_but_that_of_8_bits():
    linear, routes = make_linear(), ["transposed"] * len(ROW_BUCKETS)
    linear.use(RouteTable({linear.shape: routes}, frozenset({linear.shape})))
    assert linear.screened
    with torch.inference_mode():
        linear.approximate(torch.randn(1, 48))
    assert linear._packs
    linear.use(RouteTable({linear.shape: routes}))
    assert not linear.screened
    assert not linear._packs


def test_swapping_keeps_parameters_and_names():
    model = nn.Sequential(nn.Linear(4, 5), nn.Sequential(nn.Linear(5, 6), nn.ReLU()))
    before = dict(model.state_dict())
    assert len(route_linears(model)) == 2
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(before[name] is after[name] or before[name].equal(after[name]) for name in before)
    assert not any(type(module) is nn.Linear for module in model.modules())


def test_measuring_names_a_route_for_every_bucket_and_respects_the_memory_bound():
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(2)), nn.Linear(16, 8))
    route_linears(model)
    table = measure_routes(routed(model), repetitions=1, max_extra_bytes=0)
    assert set(table.routes) == {(16, 16), (8, 16)}
    for routes in table.routes.values():
        assert len(routes) == len(ROW_BUCKETS)
        assert not set(routes) & set(COPYING)


def seconds_of(**by_route):
    """The same seconds in every bucket: ``{route: seconds}`` of one shape."""
    return [dict(by_route) for _ in ROW_BUCKETS]


def test_a_copy_that_wins_anywhere_is_used_wherever_it_does_not_lose():
    timed = seconds_of(direct=2.0, transposed=3.0, packed=1.0, blocked=1.5)
    timed[0] = {"direct": 1.0, "transposed": 3.0, "packed": 1.04, "blocked": 1.0}
    timed[1] = {"direct": 1.0, "transposed": 3.0, "packed": 1.2, "blocked": 1.0}
    routes = choose_routes({(4, 4): timed})[4, 4]
    assert routes == ["packed", "direct"] + ["packed"] * (len(ROW_BUCKETS) - 2)


def test_a_large_matrix_decides_for_itself(monkeypatch):
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(8, 400))
    route_linears(model)
    asked = []

    def chosen(seconds):
        asked.append(set(seconds))
        return {shape: ["direct"] * len(ROW_BUCKETS) for shape in seconds}

    monkeypatch.setattr("specblock.kernels.routes.choose_routes", chosen)
    table = measure_routes(routed(model), repetitions=1)
    assert asked == [{(400, 8)}, {(16, 16), (8, 16)}]
    assert set(table.routes) == {(400, 8), (16, 16), (8, 16)}
    asked.clear()
    measure_routes([*routed(model)] * 20, repetitions=1)  # now it is a twentieth of them
    assert asked == [{(400, 8), (16, 16), (8, 16)}]


def test_noise_copies_nothing():
    timed = seconds_of(direct=1.0, transposed=0.97, packed=0.97, blocked=1.1)
    assert set(choose_routes({(4, 4): timed})[4, 4]) == {"direct"}


def test_the_sum_over_all_shapes_decides_and_shapes_without_the_copy_run_direct():
    """One shape's odd figure does not make it an exception; one without the copy cannot take it."""
    large = seconds_of(direct=10.0, transposed=20.0, packed=5.0)
    odd = seconds_of(direct=0.1, transposed=0.2, packed=0.3)
    poor = seconds_of(direct=1.0, transposed=2.0)
    chosen = choose_routes({(64, 64): large, (8, 8): odd, (4, 4): poor})
    assert set(chosen[64, 64]) == set(chosen[8, 8]) == {"packed"}
    assert set(chosen[4, 4]) == {"direct"}


def test_a_better_route_without_a_copy_is_taken():
    timed = seconds_of(direct=1.0, transposed=0.5, packed=0.49, blocked=0.9)
    assert set(choose_routes({(4, 4): timed})[4, 4]) == {"transposed"}


@pytest.mark.parametrize("route", ROUTES)
@torch.inference_mode()
def test_a_copy_computes_with_its_own_weight(route):
    linear, x = make_linear(), torch.randn(4, 48)
    if route not in available_routes(linear.weight):
        pytest.skip(f"this build of PyTorch has no {route} route")
    linear.use(RouteTable({linear.shape: [route] * len(ROW_BUCKETS)}))
    expected = linear(x)
    copied = copy.deepcopy(linear)
    copied.weight.mul_(2)
    torch.testing.assert_close(copied(x), 2 * expected)
    torch.testing.assert_close(linear(x), expected)
    assert pickle.loads(pickle.dumps(linear))(x).equal(linear(x))


def light_linear(bias=False, dtype=torch.float32):
    linear = RoutedLinear(nn.Linear(96, 64, bias=bias, dtype=dtype), light=True)
    linear.use(RouteTable(light_rows=4))
    return linear


@needs_light
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_8_bit_weights_are_near_for_few_rows_and_follow_the_weight(bias, dtype):
    linear, x = light_linear(bias, dtype), torch.randn(2, 2, 96).to(dtype)
    x[0, 0, 3] *= 1000  # an outlier costs the other inputs nothing
    for _ in range(2):
        exact = x.float() @ linear.weight.float().t() + (linear.bias.float() if bias else 0)
        found = linear(x)
        assert found.dtype == dtype
        error = (found.float() - exact).norm(dim=-1)
        assert (error <= 0.015 * exact.norm(dim=-1)).all()
        assert error.sum() > 0
        linear.weight.mul_(-2)
        linear.refresh()
    assert linear(x).shape == (2, 2, 64)
    many = torch.randn(5, 96).to(dtype)
    torch.testing.assert_close(linear(many), nn.functional.linear(many, linear.weight, linear.bias))


@needs_light
def test_8_bit_weights_are_for_layers_that_allow_them_alone():
    table = RouteTable(light_rows=4)
    assert table.route((64, 96), 4, light=True) == "light"
    assert table.route((64, 96), 5, light=True) == "direct"
    assert table.route((64, 96), 1) == "direct"
    assert not RoutedLinear(nn.Linear(96, 64)).light
    assert not RoutedLinear(nn.Linear(95, 64), light=True).light  # no kernel for its shape
    linear = light_linear()
    with torch.inference_mode():
        linear(torch.randn(1, 96))
    assert linear._packs
    linear.use(RouteTable())
    assert not linear._packs


@needs_light
def test_gradients_pass_by_8_bit_weights():
    linear = light_linear()
    linear(torch.randn(1, 96)).sum().backward()
    assert linear.weight.grad is not None
