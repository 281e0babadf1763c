"""The noise of sampling: fixed for ever, and distributed as it says."""

import math

import pytest
import torch
from scipy import stats

from specblock.tree import noise
from specblock.tree.noise import gumbel

MASK = (1 << 64) - 1
FIXED = [1.9016413323829038, -1.265252013465455, 1.1223968465590066]


def one(seed: int, position: int, token: int) -> float:
    """The same in Python's own integers and floats."""
    state = noise._scramble((seed + noise._GOLDEN) & MASK)
    state = noise._scramble((state + (position + 1) * noise._GOLDEN) & MASK)
    bits = noise._scramble((state + (token + 1) * noise._GOLDEN) & MASK)
    return -math.log(-math.log1p(-((bits >> 12) + 0.5) * 2.0**-52))


def test_the_generator_is_splitmix64():
    # its first output from state 0, a published value
    assert noise._scramble(noise._GOLDEN) == 0xE220A8397B1DCDAF


def test_a_seed_means_the_same_for_ever():
    assert gumbel(0, 0, torch.arange(3)).tolist() == pytest.approx(FIXED, rel=1e-12)
    assert torch.equal(gumbel(-1, 5, torch.arange(9)), gumbel(2**64 - 1, 5, torch.arange(9)))


@pytest.mark.parametrize("seed", [0, 7, -3, 2**63, 2**64 - 1])
def test_tensors_wrap_as_64_bit_integers_do(seed):
    tokens = torch.tensor([0, 1, 2, 999, 49151, 262143])
    for position in (0, 1, 4096, 131071):
        wanted = [one(seed, position, token) for token in tokens.tolist()]
        assert gumbel(seed, position, tokens).tolist() == pytest.approx(wanted, rel=1e-12)


def test_a_token_has_the_same_noise_whatever_else_is_asked_for():
    everything = gumbel(4, 2, torch.arange(1000))
    some = torch.tensor([5, 77, 998])
    assert torch.equal(gumbel(4, 2, some), everything[some])


@pytest.mark.parametrize("vary", ["token", "position", "seed", "all"])
def test_it_is_standard_gumbel_and_uncorrelated(vary):
    if vary == "token":
        values = gumbel(7, 3, torch.arange(20000)).tolist()
    else:
        keys = {
            "position": lambda n: (7, n, 11),
            "seed": lambda n: (n, 3, 11),
            "all": lambda n: (n, 20000 - n, 2 * n),
        }[vary]
        values = [one(*keys(n)) for n in range(20000)]
    assert stats.kstest(values, "gumbel_r").pvalue > 1e-3
    for lag in (1, 2, 64):
        assert stats.spearmanr(values[:-lag], values[lag:]).pvalue > 1e-3


def test_the_extreme_bits_are_finite():
    lowest, highest = noise._gumbel_of(torch.tensor([(1 << 52) - 1, 0])).tolist()
    assert -3.7 < lowest < -3.6
    assert 36.7 < highest < 36.8
