"""The randomness of sampling: Gumbel noise for every token at every position of a text.

The arg-max of log p + g over tokens, g standard Gumbel and independent, is a draw from p (the
Gumbel-max trick). Beside the inverse distribution function it has a merit that counts here: two
computations of p that differ by rounding draw different tokens only where the best two sums are
that close. The edges of a cumulated distribution lie so densely over a large vocabulary that
rounding crosses one every few hundred tokens.

Everything is integer arithmetic but the last step, so that a seed means the same on every machine.
"""

from __future__ import annotations

from torch import Tensor

_MASK = (1 << 64) - 1  # 64-bit words
_GOLDEN = 0x9E3779B97F4A7C15  # of SplitMix64: 2^64 by the golden ratio
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # of SplitMix64
_SHIFTS = (30, 27, 31)  # of SplitMix64: Steele, Lea and Flood, 2014


def gumbel(seed: int, position: int, tokens: Tensor) -> Tensor:
    """Standard Gumbel noise of some tokens at one absolute position.

    Output number ``token`` of a SplitMix64 stream that starts at output number ``position`` of the
    stream that starts at the scrambled seed, as one of 2**52 uniforms.

    Args:
        seed: a 64-bit integer, signed or unsigned. position: 0 or more.
        tokens: int64 [n] ids.

    Returns:
        float64 [n] on the device of ``tokens``, between -3.7 and 36.8.
    """
    start = _scramble((seed + _GOLDEN) & _MASK)
    state = _scramble((start + (position + 1) * _GOLDEN) & _MASK)
    bits = _scramble_all((tokens + 1) * _signed(_GOLDEN) + _signed(state))
    return _gumbel_of(_unsigned_shift(bits, 12))


def _gumbel_of(bits: Tensor) -> Tensor:
    """Gumbel noise of 52 random bits, always finite: no uniform comes out as 0 or 1."""
    uniforms = (bits.double() + 0.5) * 2.0**-52
    return uniforms.neg_().log1p_().neg_().log_().neg_()


def _scramble(z: int) -> int:
    z = ((z ^ (z >> _SHIFTS[0])) * _FACTORS[0]) & _MASK
    z = ((z ^ (z >> _SHIFTS[1])) * _FACTORS[1]) & _MASK
    return z ^ (z >> _SHIFTS[2])


def _scramble_all(z: Tensor) -> Tensor:
    """`_scramble` of 64-bit patterns held in int64, whose products wrap around."""
    z ^= _unsigned_shift(z, _SHIFTS[0])
    z *= _signed(_FACTORS[0])
    z ^= _unsigned_shift(z, _SHIFTS[1])
    z *= _signed(_FACTORS[1])
    z ^= _unsigned_shift(z, _SHIFTS[2])
    return z


def _unsigned_shift(z: Tensor, count: int) -> Tensor:
    # int64 shifts copies of the sign in; the mask takes them out again
    return (z >> count) & ((1 << (64 - count)) - 1)


def _signed(value: int) -> int:
    """The int64 of the same 64 bits."""
    return value - (1 << 64) if value >> 63 else value
