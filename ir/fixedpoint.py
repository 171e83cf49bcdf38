"""Exact integer arithmetic of quantized ops: dyadic multipliers, rounding shifts, square roots, exponentials, tables.

All of it is computed in int64 with numpy, and everything that stems from real numbers (multipliers, tables) is made
once from float64, so that every backend works with the same integers. `>>` floors; rounding is half up, floor(x + 1/2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from planish.ir.dtypes import DType
from planish.ir.errors import VerifyError

MULTIPLIER_BITS = 31
MAX_SHIFT = 62  # of a product of 31 by 31 bits; what would be shifted further is zero


@dataclass(frozen=True, slots=True)
class Dyadic:
    """A positive real factor as multiplier / 2**shift, or one per channel (int64 array) with a shift in common."""

    multiplier: np.ndarray
    shift: int

    @property
    def is_one(self) -> bool:
        """True if multiplying changes nothing, exactly."""
        return bool(np.all(self.multiplier == 1 << self.shift))

    def reshape(self, *shape: int) -> Dyadic:
        return Dyadic(self.multiplier.reshape(shape), self.shift)

    def times(self, q: np.ndarray) -> np.ndarray:
        """round(q * factor) as int64, half up: (q * multiplier + 2**(shift - 1)) >> shift, for |q| <= 2**31."""
        return np.asarray((q.astype(np.int64) * self.multiplier + (1 << (self.shift - 1))) >> self.shift)


def dyadic(ratio: float | Sequence[float] | np.ndarray) -> Dyadic:
    """Multipliers of at most 31 bits and their shift, for positive real factors (Jacob et al. 2018, section 2.2).

    The largest factor gets all 31 bits, and the others the same shift: what they lose is as little, on the scale of
    the result, as what the largest loses. A factor below 2**-32 makes zero of every 32-bit integer.
    Raises VerifyError for a factor that isn't in (0, 2**30), or that rounds up to 2**30.
    """
    factors = np.asarray(ratio, np.float64)
    if not np.all(np.isfinite(factors) & (factors > 0) & (factors < 2.0 ** (MULTIPLIER_BITS - 1))):
        raise VerifyError(f"a ratio of scales is outside (0, 2**{MULTIPLIER_BITS - 1})", remedy="check the scales")
    exponent = int(np.frexp(np.max(factors))[1])
    shift = MULTIPLIER_BITS - exponent
    if np.floor(np.ldexp(np.max(factors), shift) + 0.5) == 2.0**MULTIPLIER_BITS:
        shift -= 1  # it rounds up to a power of two
    if shift < 1:
        raise VerifyError(f"a ratio of scales rounds to 2**{MULTIPLIER_BITS - 1}", remedy="check the scales")
    shift = min(shift, MAX_SHIFT)
    return Dyadic(np.floor(np.ldexp(factors, shift) + 0.5).astype(np.int64), shift)


def saturate(q: np.ndarray, dtype: DType) -> np.ndarray:
    """Integers clipped to the range of `dtype`, stored as it."""
    return np.asarray(np.clip(q, dtype.min, dtype.max)).astype(dtype.storage)


def exact_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Matrix product of integer arrays as int64, exact. Raises VerifyError if sums could leave 53 bits.

    Uses floating-point products of a width in which every partial sum is exact, since numpy has no fast integer ones.
    """
    largest = float(_magnitude(a)) * float(_magnitude(b)) * a.shape[-1]
    if largest >= 2.0**53:
        raise VerifyError(f"sums of {a.shape[-1]} products may need more than 53 bits")
    width = np.float32 if largest < 2.0**24 else np.float64
    return np.asarray(np.matmul(a.astype(width), b.astype(width))).astype(np.int64)


def _magnitude(q: np.ndarray) -> int:
    """Largest absolute value, 0 of nothing; in Python, since numpy's abs(int8(-128)) is -128."""
    return max(int(np.max(q, initial=0)), -int(np.min(q, initial=0)))


def accumulator(total: np.ndarray, what: str) -> np.ndarray:
    """The sums as int32. Raises VerifyError if one doesn't fit: the interval analysis should have seen to it."""
    if total.size and (total.max() > 2**31 - 1 or total.min() < -(2**31)):
        raise VerifyError(f"an accumulator of {what} leaves 32 bits")
    return total.astype(np.int32)


def isqrt(v: np.ndarray) -> np.ndarray:
    """floor(sqrt(v)) of int64 values 0 <= v < 2**62, by Newton's method from 2**ceil(bits / 2) downwards.

    Integer Newton from above falls until it reaches the floor and never passes it, so the minimum of successive steps
    is exact after `NEWTON_STEPS`: the seed is at most twice the root, and each step squares the relative error.
    """
    root = np.int64(1) << ((bit_length(v) + 1) >> 1)
    for _ in range(NEWTON_STEPS):
        root = np.minimum(root, (root + v // np.maximum(root, 1)) >> 1)
    return np.asarray(root)


NEWTON_STEPS = 6


def bit_length(v: np.ndarray) -> np.ndarray:
    """Number of bits of int64 values v >= 0."""
    return np.asarray(np.searchsorted(_POWERS, v, side="right").astype(np.int64))


_POWERS = np.int64(1) << np.arange(63, dtype=np.int64)


def shift_exp(distance: np.ndarray, unit: int, steps: int) -> np.ndarray:
    """unit * 2**steps * exp(-distance / unit) by shifts (I-ViT, algorithm ShiftExp), for int64 distance >= 0.

    x * log2(e) is taken as x + x/2 - x/16, its integer part as a shift, and 2**f for the fraction as 1 + f/2.
    """
    p = np.minimum(distance + ((distance + 1) >> 1) - ((distance + 15) >> 4), steps * unit)
    q = p // unit
    return np.asarray(((2 * unit - (p - q * unit)) << (steps - q)) >> 1)


def exp_table(scale: float, levels: int, entries: int) -> np.ndarray:
    """round(levels * exp(-d * scale)) for d in 0..entries-1, as int64; the last entry, for all beyond, is 0."""
    table = np.floor(levels * np.exp(-scale * np.arange(entries)) + 0.5).astype(np.int64)
    table[-1] = 0
    return np.asarray(table)


def code_table(
    function: Callable[[np.ndarray], np.ndarray],
    source: tuple[DType, float, int],
    target: tuple[DType, float, int],
) -> np.ndarray:
    """Codes of function(real) for each code of `source`, ascending; (dtype, scale, zero) describe source and target."""
    dtype, scale, zero = source
    codes = np.arange(dtype.min, dtype.max + 1, dtype=np.int64)
    return quantized(function(scale * (codes - zero).astype(np.float64)), *target)


def quantized(real: np.ndarray, dtype: DType, scale: float | np.ndarray, zero: int = 0) -> np.ndarray:
    """Codes of real numbers, rounded half up in float64 and saturated: how constants and tables are made."""
    return saturate(np.floor(np.asarray(real, np.float64) / scale + 0.5) + zero, dtype)
