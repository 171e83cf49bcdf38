"""Arithmetic without multiplications: products, quotients and roots of shifts, additions, comparisons and look-ups.

All of it on unsigned words, which ONNX shifts in every operator set and which wrap around, so that negative numbers are
their two's complement. Results are those of the multiplications and divisions that they stand for, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as onnx

from planish.backends.onnx.casts import cast, i64
from planish.backends.onnx.emitter import Emitter
from planish.ir import dtypes, signed_digits
from planish.ir.dtypes import DType


def word(e: Emitter, number: object, dtype: DType = dtypes.u64) -> onnx.Value:
    """A constant of an unsigned dtype."""
    return e.constant(np.asarray(number, dtype.storage), "word")


def left(e: Emitter, x: onnx.Value, by: int | np.ndarray, dtype: DType = dtypes.u64) -> onnx.Value:
    """x << by, for words of `dtype`. ONNX Runtime adds twice as fast as it shifts, so that doubling is an addition."""
    if not np.any(by):
        return x
    if isinstance(by, int) and by == 1:
        return e.op("Add", x, x)
    return e.op("BitShift", x, word(e, by, dtype), direction="LEFT")


def right(e: Emitter, x: onnx.Value, by: int, dtype: DType = dtypes.u64) -> onnx.Value:
    """x >> by, for words of `dtype`."""
    return e.op("BitShift", x, word(e, by, dtype), direction="RIGHT")


def times(e: Emitter, x: onnx.Value, factor: np.ndarray) -> onnx.Value:
    """x * factor for words of 64 bits and a constant (int64, any sign) whose shape broadcasts against x.

    One shift for each signed digit. Elements of the factor have digits at places of their own, and where one has fewer
    than others, Min with 0 leaves out the term.
    """
    total: onnx.Value | None = None
    for step, mask in zip(("Add", "Sub"), signed_digits.bit_masks(factor), strict=True):
        for shifts, present in signed_digits.terms(mask):
            part = x
            if not present.all():
                part = e.op("Min", part, word(e, np.where(present, ~np.uint64(0), np.uint64(0))))
            part = left(e, part, int(shifts.item()) if shifts.size == 1 else shifts)
            if total is None and step == "Add":
                total = part
            else:
                total = e.op(step, word(e, 0) if total is None else total, part)
    return e.op("Sub", x, x) if total is None else total


def added(e: Emitter, parts: Sequence[tuple[onnx.Value, int]]) -> onnx.Value:
    """Sum of int32 times powers of two, given as exponents, as int32; it may wrap around in between."""
    total: onnx.Value | None = None
    for part, exponent in parts:
        lifted = left(e, cast(e, part, dtypes.u32), exponent, dtypes.u32)
        total = lifted if total is None else e.op("Add", total, lifted)
    assert total is not None
    return cast(e, total, dtypes.i32) if len(parts) > 1 or parts[0][1] else parts[0][0]


def divided(e: Emitter, dividend: onnx.Value, divisor: onnx.Value, bits: int, most: int) -> onnx.Value:
    """floor(dividend / divisor) as int64, for words of 64 bits, a divisor of 1 to `most` and a quotient below 2**bits.

    Restoring division in one register: the dividend is doubled, and the divisor, lifted by `bits`, taken off it where
    that leaves no negative number, which would wrap around and be the greater one. Taking off one less leaves a 1 in
    the lowest bit, which the doubling has made free: in the end the quotient fills the low bits.
    In 32 bits where they have room. Raises UnsupportedOp where 64 haven't.
    """
    dtype = dtypes.u32 if most << (bits + 1) <= 1 << 32 else dtypes.u64
    if most << (bits + 1) > 1 << 64:
        e.refuse(f"a division by up to {most} with a quotient of {bits} bits")
    register, wide = (x if dtype == dtypes.u64 else cast(e, x, dtype) for x in (dividend, divisor))
    lifted = e.op("Sub", left(e, wide, bits, dtype), word(e, 1, dtype))
    for _ in range(bits):
        register = left(e, register, 1, dtype)
        register = e.op("Min", register, e.op("Sub", register, lifted))
    spare = dtype.bits - bits
    return cast(e, right(e, left(e, register, spare, dtype), spare, dtype), dtypes.i64)


def square(e: Emitter, x: onnx.Value, most: int) -> onnx.Value:
    """x * x for words of 64 bits up to `most` < 2**31: of halves by table, 2 h l as (h + l)**2 - h**2 - l**2."""
    half = -(-most.bit_length() // 2)
    table = word(e, np.arange(1 << (half + 1), dtype=np.uint64) ** 2)
    high = right(e, x, half)
    low = e.op("Sub", x, left(e, high, half))
    hh, ll, sums = (e.op("Gather", table, cast(e, part, dtypes.i64)) for part in (high, low, e.op("Add", high, low)))
    between = e.op("Sub", e.op("Sub", sums, hh), ll)
    return e.op("Add", e.op("Add", left(e, hh, 2 * half), left(e, between, half)), ll)


def by_row(e: Emitter, x: onnx.Value, row: onnx.Value, most: int) -> onnx.Value:
    """x * row for int64 x [..., C] with |x| <= most and one word of 64 bits per row, [..., 1]; the words wrap around.

    The multiples of each row's number by 0 to 255 are made by doubling a list of them, and looked up by the bytes of x,
    which is made non-negative first.
    """
    multiples = e.op("Sub", row, row)
    for i in range(8):
        more = e.op("Add", multiples, left(e, row, i))
        multiples = e.op("Concat", multiples, more, axis=-1)
    count = -(-(most.bit_length() + 1) // 8)
    lift = 8 * count - 1
    lifted = cast(e, e.op("Add", x, i64(e, 1 << lift)), dtypes.u64)
    total: onnx.Value | None = None
    for i in range(count):
        byte = cast(e, lifted if i == 0 else right(e, lifted, 8 * i), dtypes.u8)
        part = left(e, e.op("GatherElements", multiples, cast(e, byte, dtypes.i32), axis=-1), 8 * i)
        total = part if total is None else e.op("Add", total, part)
    return e.op("Sub", total, left(e, row, lift))


def root(e: Emitter, v: onnx.Value, most: int) -> onnx.Value:
    """floor(sqrt(v)), at least 1, of words v of 64 bits up to `most` < 2**62: one bit at a time, from the highest.

    From what is left, (2 root + bit) * bit is taken, where that leaves no negative number.
    """
    rest, found = v, e.op("Sub", v, v)
    for i in reversed(range(-(-most.bit_length() // 2))):
        step = e.op("Add", left(e, found, i + 1), word(e, 1 << (2 * i)))
        after = e.op("Min", rest, e.op("Sub", rest, step))
        bit = cast(e, e.op("Less", after, rest), dtypes.u64)
        found, rest = e.op("Add", found, left(e, bit, i)), after
    return e.op("Max", found, word(e, 1))
