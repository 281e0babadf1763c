"""A head that is screened in 8 bits says what the whole head says."""

import pytest
import torch
from torch import nn

from specblock.drafters.shortlist import SPARE, best_logits, screening_pays
from specblock.kernels.linear import RoutedLinear, has_int8
from specblock.kernels.route_table import ROW_BUCKETS, RouteTable

WIDTH, VOCABULARY = 64, 500
needs_int8 = pytest.mark.skipif(not has_int8(), reason="no 8-bit product on this processor")


def make_head(screened: bool, dtype=torch.float32) -> RoutedLinear:
    torch.manual_seed(0)
    head = RoutedLinear(nn.Linear(WIDTH, VOCABULARY, bias=False).to(dtype))
    shapes = {head.shape} if screened else ()
    head.use(RouteTable({head.shape: ["direct"] * len(ROW_BUCKETS)}, frozenset(shapes)))
    return head


def rows(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(*shape, WIDTH, generator=generator).to(dtype)


@torch.inference_mode()
def test_an_unscreened_head_is_all_there_is():
    x = rows(2, 3)
    head = make_head(screened=False)
    best, ids, total = best_logits(head, x, 7)
    logits = x @ head.weight.t()
    torch.testing.assert_close(best, logits.sort(descending=True).values[..., :7])
    torch.testing.assert_close(best, logits.gather(-1, ids))
    torch.testing.assert_close(total, logits.logsumexp(-1, keepdim=True))


@torch.inference_mode()
def test_what_the_rough_product_misses_is_all_that_can_be_lost(monkeypatch):
    """Candidates come from the rough product, their order and logits from the exact one."""
    head, x = make_head(screened=True), rows(5)
    exact = x @ head.weight.t()
    rough = exact + 0.3 * torch.randn(exact.shape, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(RoutedLinear, "approximate", lambda self, x: rough)
    best, ids, total = best_logits(head, x, 20)
    for row in range(5):
        candidates = rough[row].topk(20 + SPARE).indices.tolist()
        expected = sorted(candidates, key=lambda i: -exact[row, i])[:20]
        assert ids[row].tolist() == expected
    torch.testing.assert_close(best, exact.gather(-1, ids))
    torch.testing.assert_close(total, rough.logsumexp(-1, keepdim=True))


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", [1, 20, VOCABULARY - 3, 2 * VOCABULARY])
@torch.inference_mode()
def test_the_8_bit_copy_finds_the_same_tokens(wanted, dtype):
    x = rows(4, 2, dtype=dtype)
    head = make_head(screened=True, dtype=dtype)
    best, ids, total = best_logits(head, x, wanted)
    logits = x.float() @ head.weight.float().t()
    wanted = min(wanted, VOCABULARY)
    expected = logits.topk(wanted).values
    assert ids.shape == (4, 2, wanted)
    assert total.shape == (4, 2, 1)
    torch.testing.assert_close(best, logits.gather(-1, ids), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(best[..., :20], expected[..., :20], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(total, logits.logsumexp(-1, keepdim=True), atol=0.05, rtol=0.01)


@needs_int8
def test_screening_is_chosen_by_the_clock(monkeypatch):
    head = make_head(screened=False)
    slow = {"exact": 1.0, "screened": 1.0}
    now = [0.0]

    def spend(name):
        now[0] += slow[name]

    real = RoutedLinear.approximate
    monkeypatch.setattr(
        RoutedLinear, "approximate", lambda self, x: (spend("screened"), real(self, x))[1]
    )
    forward = RoutedLinear.forward
    monkeypatch.setattr(
        RoutedLinear, "forward", lambda self, x: (spend("exact"), forward(self, x))[1]
    )
    monkeypatch.setattr("specblock.drafters.shortlist.time.perf_counter", lambda: now[0])
    slow["screened"] = 0.5
    assert screening_pays([head], []) == {head.shape}
    slow["screened"] = 2.0
    assert screening_pays([head], []) == frozenset()


def test_no_8_bit_product_no_screening(monkeypatch):
    monkeypatch.setattr("specblock.drafters.shortlist.has_int8", lambda: False)
    assert screening_pays([make_head(screened=False)], []) == frozenset()
