"""8-bit weights of drafters' layers: who may have them, and that the clock decides."""

import pytest
import torch
from torch import nn

from specblock.drafters.light import light_rows, route_drafter
from specblock.kernels.linear import RoutedLinear, has_light
from specblock.kernels.route_table import ROW_BUCKETS

needs_light = pytest.mark.skipif(
    not has_light(nn.Linear(32, 32)), reason="no product with 8-bit weights in this build"
)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj, self.odd = nn.Linear(32, 64), nn.Linear(33, 64)
        self.down_proj = nn.Linear(64, 32)
        self.shift_proj = nn.ModuleList([nn.Linear(64, 32)])
        self.lm_head = nn.Linear(64, 96, bias=False)


@needs_light
def test_layers_may_but_the_head_those_with_outliers_and_those_without_a_kernel():
    network = Network()
    linears = route_drafter(network)
    assert len(linears) == 5
    assert [linear for linear in linears if linear.light] == [network.proj]


@needs_light
@pytest.mark.parametrize("most", [0, 1, 8, ROW_BUCKETS[-1]])
def test_the_clock_says_for_how_many_rows(monkeypatch, most):
    network, now = Network(), [0.0]
    route_drafter(network)
    compute = RoutedLinear.compute

    def timed(self, x, route):
        now[0] += 1.0 if route != "light" else 0.5 if len(x) <= most else 2.0
        return compute(self, x, route)

    monkeypatch.setattr(RoutedLinear, "compute", timed)
    monkeypatch.setattr("specblock.drafters.light.time.perf_counter", lambda: now[0])
    assert light_rows([network.proj, network.odd], [network.lm_head]) == most


def test_nothing_to_measure_where_no_layer_can():
    assert light_rows([RoutedLinear(nn.Linear(33, 64), light=True)], []) == 0
    assert light_rows([], []) == 0


def test_the_layers_compute_as_before_until_a_table_says_otherwise():
    network = Network()
    x = torch.randn(1, 32)
    with torch.inference_mode():
        before = network.proj(x)
        route_drafter(network)
        assert torch.equal(network.proj(x), before)
