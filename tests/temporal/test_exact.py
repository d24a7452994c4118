"""Wide integers in limbs against Python's own."""

import math
import struct
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.temporal import exact_kernels as exact
from featurestore.testing.window_oracle import rounded

U64 = np.uint64
# Patterns of long runs of ones and zeros are where carries and ties are lost.
_edges = st.sampled_from([0, 1, 2, 3, 2**52, 2**53 - 1, 2**53, 2**53 + 1, 2**63, 2**64 - 1])
words = st.one_of(st.integers(0, 2**64 - 1), _edges)
finite = st.floats(allow_nan=False, allow_infinity=False)


def limbs_of(value: int, count: int) -> exact.UInt64Array:
    return np.array([(value >> (64 * k)) & (2**64 - 1) for k in range(count)], np.uint64)


def number_of(limbs: exact.UInt64Array) -> int:
    return sum(int(limb) << (64 * k) for k, limb in enumerate(limbs))


@settings(max_examples=500, deadline=None)
@given(words, words, words, words)
def test_a_wide_integer_rounds_to_the_nearest_double_ties_to_even(a3: int, a2: int, a1: int, a0: int) -> None:
    value = (a3 << 192) | (a2 << 128) | (a1 << 64) | a0
    assert exact.double_of_256(U64(a3), U64(a2), U64(a1), U64(a0)) == float(value)
    number, exponent = exact.double_of_limbs(limbs_of(value, 5), 5)
    assert exponent % 2 == 0
    assert rounded(Fraction(number) * 2**exponent) == float(value)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(words, st.integers(0, 150), st.booleans()), max_size=8))
def test_limbs_add_and_subtract_like_integers(steps: list[tuple[int, int, bool]]) -> None:
    limbs, value = np.zeros(5, np.uint64), 0
    for word, shift, plus in steps:
        change = exact.limbs_add if plus else exact.limbs_subtract
        change(limbs, 5, U64(word), shift)
        value += (word << shift) if plus else -(word << shift)
    out = np.zeros(5, np.uint64)
    assert exact.limbs_magnitude(limbs, 5, out) == (value < 0)
    assert number_of(out) == abs(value)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.integers(-(2**84), 2**84), min_size=1, max_size=6))
def test_the_spread_is_exact_before_it_is_rounded(values: list[int]) -> None:
    n, total, squares = len(values), abs(sum(values)), sum(v * v for v in values)
    wanted = n * squares - total * total
    s, q = limbs_of(total, 2), limbs_of(squares, 3)
    assert exact.spread_of(U64(n), q[2], q[1], q[0], s[1], s[0]) == float(wanted)
    out = np.zeros(5, np.uint64)
    used = exact.limbs_spread(U64(n), q, 3, s, 2, out)
    assert number_of(out[:used]) == wanted


@settings(max_examples=500, deadline=None)
@given(finite)
def test_a_double_is_its_mantissa_and_exponent(value: float) -> None:
    raw = struct.unpack("<q", struct.pack("<d", value))[0]
    mantissa, exponent = int(exact.float_mantissa(raw)), int(exact.float_exponent(raw))
    assert Fraction(mantissa) * Fraction(2) ** (exponent - 1075) == abs(Fraction(value))


@given(finite, st.integers(-3000, 3000))
def test_scaling_rounds_once(value: float, exponent: int) -> None:
    wanted = rounded(Fraction(value) * Fraction(2) ** exponent)
    assert exact.scale_by(value, exponent) == wanted or math.isinf(wanted)
