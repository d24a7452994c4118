"""Exact arithmetic inside compiled loops: wide integers as 64-bit limbs, rounded once at the end.

A double is `mantissa * 2**(exponent - 1075)`. Scaled by the smallest exponent of the rows at hand it is an
integer; integers add and subtract without error and in any order, so a sum depends on the set of rows and
on nothing else.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import intrinsic

from featurestore.temporal.jit import kernel

UInt64Array = npt.NDArray[np.uint64]
U64 = np.uint64

_ZERO, _ONE, _SIXTY_FOUR = U64(0), U64(1), U64(64)
_FRACTION, _IMPLICIT = U64((1 << 52) - 1), U64(1 << 52)


def _wide(builder: Any, value: Any) -> tuple[Any, Any]:
    """Return the 128-bit integer type and `value` widened to it (the type's class comes from the value)."""
    wide = type(value.type)(128)
    return wide, builder.zext(value, wide)


@intrinsic
def _mul_high(_context: Any, a: Any, b: Any) -> Any:  # noqa: ARG001 -- numba's signature
    """Return the upper 64 bits of `a * b`."""

    def build(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        wide, x = _wide(builder, args[0])
        _, y = _wide(builder, args[1])
        return builder.trunc(builder.lshr(builder.mul(x, y), wide(64)), args[0].type)

    return types.uint64(types.uint64, types.uint64), build


@intrinsic
def _shift_high(_context: Any, a: Any, count: Any) -> Any:  # noqa: ARG001 -- numba's signature
    """Return bits 64 to 127 of `a << count`, for `count` below 128."""

    def build(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        wide, x = _wide(builder, args[0])
        _, by = _wide(builder, args[1])
        return builder.trunc(builder.lshr(builder.shl(x, by), wide(64)), args[0].type)

    return types.uint64(types.uint64, types.uint64), build


@intrinsic
def _shift_low(_context: Any, a: Any, count: Any) -> Any:  # noqa: ARG001 -- numba's signature
    """Return bits 0 to 63 of `a << count`, for `count` below 128."""

    def build(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        _, x = _wide(builder, args[0])
        _, by = _wide(builder, args[1])
        return builder.trunc(builder.shl(x, by), args[0].type)

    return types.uint64(types.uint64, types.uint64), build


@intrinsic
def _leading_zeros(_context: Any, a: Any) -> Any:  # noqa: ARG001 -- numba's signature
    """Count the zero bits above the highest one; 64 for zero."""

    def build(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.ctlz(args[0], type(args[0].type)(1)(0))

    return types.uint64(types.uint64), build


_Binary = Callable[[np.uint64, np.uint64], np.uint64]
mul_high = cast("_Binary", _mul_high)
shift_high = cast("_Binary", _shift_high)
shift_low = cast("_Binary", _shift_low)
leading_zeros = cast("Callable[[np.uint64], np.uint64]", _leading_zeros)


@kernel
def float_exponent(bits: int) -> int:
    """Return the biased exponent of a double's bits, 1 for subnormals and zeros, 2047 for NaN, infinity."""
    return max((bits >> 52) & 2047, 1)


@kernel
def float_mantissa(bits: int) -> np.uint64:
    """Return the integer mantissa of a finite double's bits, below 2**53."""
    raw = U64(bits)
    if (bits >> 52) & 2047:
        return (raw & _FRACTION) | _IMPLICIT
    return raw & _FRACTION


@kernel
def magnitude(bits: int, kind: int) -> np.uint64:
    """Return the integer magnitude of a value: a double's mantissa (kind 0), |int64| (1), uint64 (2)."""
    if kind == 0:
        return float_mantissa(bits)
    if kind == 1 and bits < 0:
        return _ZERO - U64(bits)
    return U64(bits)


@kernel
def double_of_128(high: np.uint64, low: np.uint64) -> float:
    """Round an unsigned 128-bit integer to the nearest double, ties to even."""
    if high == _ZERO:
        return np.float64(low)
    shift = leading_zeros(high)
    if shift > _ZERO:
        top = (high << shift) | (low >> (_SIXTY_FOUR - shift))
        low <<= shift
    else:
        top = high
    if low != _ZERO:
        top |= _ONE  # a sticky bit: 64 bits are more than the two that rounding looks at
    return math.ldexp(np.float64(top), 64 - int(shift))


@kernel
def double_of_limbs(limbs: UInt64Array, count: int) -> tuple[float, int]:
    """Round an unsigned integer of `count` limbs to `(d, e)`, its value being `d * 2**e`; e is even."""
    top = count - 1
    while top > 0 and limbs[top] == _ZERO:
        top -= 1
    if top == 0:
        return np.float64(limbs[0]), 0
    low = limbs[top - 1]
    for k in range(top - 1):
        if limbs[k] != _ZERO:
            low |= _ONE
            break
    return double_of_128(limbs[top], low), 64 * (top - 1)


@kernel
def double_of_256(a3: np.uint64, a2: np.uint64, a1: np.uint64, a0: np.uint64) -> float:
    """Round an unsigned 256-bit integer to the nearest double, ties to even."""
    if a3 != _ZERO:
        return double_of_128(a3, a2 | U64((a1 | a0) != _ZERO)) * 2.0**128
    if a2 != _ZERO:
        return double_of_128(a2, a1 | U64(a0 != _ZERO)) * 2.0**64
    return double_of_128(a1, a0)


@kernel
def spread_of(
    n: np.uint64, q2: np.uint64, q1: np.uint64, q0: np.uint64, s1: np.uint64, s0: np.uint64
) -> float:
    """Round `n * q - s * s` to a double, with `q` of 192 bits and `s` of 128; it is not negative."""
    # n * q
    a0 = n * q0
    carry = mul_high(n, q0)
    a1 = n * q1 + carry
    carry = mul_high(n, q1) + U64(a1 < carry)
    a2 = n * q2 + carry
    a3 = mul_high(n, q2) + U64(a2 < carry)
    # s * s = s0*s0 + 2*s0*s1 << 64 + s1*s1 << 128
    b0, b1 = s0 * s0, mul_high(s0, s0)
    c0, c1 = s0 * s1, mul_high(s0, s1)
    b2, b3 = s1 * s1, mul_high(s1, s1)
    for _ in range(2):
        b1 += c0
        carry = U64(b1 < c0)
        b2 += carry
        b3 += U64(b2 < carry)
        b2 += c1
        b3 += U64(b2 < c1)
    # a - b
    borrow = U64(a0 < b0)
    d0 = a0 - b0
    d1 = a1 - b1
    next_borrow = U64(a1 < b1) | (U64(d1 < borrow))
    d1 -= borrow
    d2 = a2 - b2
    borrow = next_borrow
    next_borrow = U64(a2 < b2) | (U64(d2 < borrow))
    d2 -= borrow
    return double_of_256(a3 - b3 - next_borrow, d2, d1, d0)


@kernel
def limbs_add(limbs: UInt64Array, count: int, value: np.uint64, shift: int) -> None:
    """Add `value << shift` to a two's complement integer of `count` limbs."""
    word, bit = shift >> 6, U64(shift & 63)
    low, high = shift_low(value, bit), shift_high(value, bit)
    limbs[word] += low
    carry = U64(limbs[word] < low)
    word += 1
    while word < count and (high != _ZERO or carry != _ZERO):
        old = limbs[word]
        part = old + high
        over = U64(part < old)
        limbs[word] = part + carry
        carry = over | U64(limbs[word] < carry)
        high = _ZERO
        word += 1


@kernel
def limbs_subtract(limbs: UInt64Array, count: int, value: np.uint64, shift: int) -> None:
    """Subtract `value << shift` from a two's complement integer of `count` limbs."""
    word, bit = shift >> 6, U64(shift & 63)
    low, high = shift_low(value, bit), shift_high(value, bit)
    old = limbs[word]
    limbs[word] = old - low
    borrow = U64(old < low)
    word += 1
    while word < count and (high != _ZERO or borrow != _ZERO):
        old = limbs[word]
        part = old - high
        under = U64(old < high)
        limbs[word] = part - borrow
        borrow = under | U64(part < borrow)
        high = _ZERO
        word += 1


@kernel
def limbs_magnitude(limbs: UInt64Array, count: int, out: UInt64Array) -> bool:
    """Copy the absolute value of a two's complement integer; True where it was negative."""
    negative = bool((limbs[count - 1] >> U64(63)) != _ZERO)
    carry = U64(negative)
    for k in range(count):
        if negative:
            out[k] = ~limbs[k] + carry
            carry = U64(carry != _ZERO and out[k] == _ZERO)
        else:
            out[k] = limbs[k]
    return negative


@kernel
def limbs_spread(
    n: np.uint64,
    squares: UInt64Array,
    n_squares: int,
    total: UInt64Array,
    n_total: int,
    out: UInt64Array,
) -> int:
    """Write `n * squares - total**2` (never negative) to `out`; return its count of limbs."""
    count = n_squares + 1
    carry = _ZERO
    for k in range(n_squares):
        low = n * squares[k] + carry
        carry = mul_high(n, squares[k]) + U64(low < carry)
        out[k] = low
    out[n_squares] = carry
    for i in range(n_total):
        if total[i] == _ZERO:
            continue
        for j in range(n_total):
            if i + j < count and total[j] != _ZERO:
                limbs_subtract(out, count, total[i] * total[j], 64 * (i + j))
                if i + j + 1 < count:
                    limbs_subtract(out, count, mul_high(total[i], total[j]), 64 * (i + j + 1))
    return count


@kernel
def scale_by(value: float, exponent: int) -> float:
    """Return `value * 2**exponent`, rounded once."""
    return math.ldexp(value, min(max(exponent, -5000), 5000))
