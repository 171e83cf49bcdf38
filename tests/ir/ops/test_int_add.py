"""Sums of codes of two scales, against fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest
from check_op import check_op, operand_types

from planish.ir import dtypes
from planish.ir.errors import VerifyError
from planish.ir.ops.int_add import IntAdd
from planish.ir.types import Quant, TensorType

RNG = np.random.default_rng(12)


def coded(dtype, *shape, scale=(0.5,), zero=0, axis=None):
    return TensorType(dtype, shape, Quant(scale, zero, axis))


def random_codes(dtype, shape):
    return RNG.integers(dtype.min, dtype.max, shape, endpoint=True, dtype=np.int64).astype(dtype.storage)


def half_up(x):
    return math.floor(x + Fraction(1, 2))


def on_scale(q, scale, zero, target):
    """A code on the scale of the result, by a multiplier of 31 bits."""
    ratio, shift = Fraction(scale / target), 62
    while half_up(ratio * 2**shift) >= 2**31:
        shift -= 1
    return half_up((int(q) - zero) * Fraction(half_up(ratio * 2**shift), 2**shift))


@pytest.mark.parametrize(("to", "zero"), [(dtypes.i16, 0), (dtypes.u8, 100), (dtypes.i8, -5), (dtypes.i32, 0)])
@pytest.mark.parametrize("kinds", [(dtypes.i16, dtypes.i32), (dtypes.i16, dtypes.i16), (dtypes.u8, dtypes.i8)])
def test_each_operand_is_rounded_on_its_own_before_the_sum_is_clipped(to, zero, kinds):
    a, b = random_codes(kinds[0], 200), random_codes(kinds[1], 200)
    (sa, za), (sb, zb) = (0.31, 130 if kinds[0] == dtypes.u8 else 0), (0.0007, 0)
    (y,) = check_op(IntAdd(0.21, zero, to), a, b, quants=[Quant((sa,), za), Quant((sb,), zb)])
    totals = [on_scale(p, sa, za, 0.21) + on_scale(q, sb, zb, 0.21) + zero for p, q in zip(a, b, strict=True)]
    assert y.tolist() == [min(max(t, to.min), to.max) for t in totals]


def test_two_halves_are_rounded_up_twice():
    half = np.array([1, -1, 3], np.int16)
    (y,) = check_op(IntAdd(2.0, 0, dtypes.i16), half, half, quants=[Quant((1.0,))] * 2)
    assert y.tolist() == [2, 0, 4]


def test_extremes_saturate():
    a = np.array([-(2**31), 2**31 - 1, -(2**31), 2**31 - 1], np.int32)
    b = np.array([-(2**31), 2**31 - 1, 2**31 - 1, -(2**31)], np.int32)
    (y,) = check_op(IntAdd(1.0, 0, dtypes.i32), a, b, quants=[Quant((1.0,))] * 2)
    assert y.tolist() == [-(2**31), 2**31 - 1, -1, -1]


def test_shapes_broadcast_and_order_does_not_matter():
    a, b = random_codes(dtypes.i16, (2, 1, 3)), random_codes(dtypes.i8, (4, 1))
    quants = [Quant((0.1,)), Quant((0.2,))]
    op = IntAdd(0.3, 0, dtypes.i16)
    (y,) = check_op(op, a, b, quants=quants)
    assert y.shape == (2, 4, 3)
    np.testing.assert_array_equal(y, check_op(op, b, a, quants=quants[::-1])[0])
    assert y[1, 2, 0] == on_scale(a[1, 0, 0], 0.1, 0, 0.3) + on_scale(b[2, 0], 0.2, 0, 0.3)


def test_an_operand_may_have_a_scale_per_channel():
    a, b = random_codes(dtypes.i32, (3, 2)) // 2**20, random_codes(dtypes.i16, (2,))
    quants = [Quant((0.5, 0.125), 0, 1), Quant((0.25,))]
    (y,) = check_op(IntAdd(0.25, 0, dtypes.i32), a, b, quants=quants)
    np.testing.assert_array_equal(y[:, 0], 2 * a[:, 0] + b[0])
    np.testing.assert_array_equal(y[:, 1], (a[:, 1] + 1) // 2 + b[1])


def test_the_result_has_the_scale_that_the_attributes_say():
    x = random_codes(dtypes.i16, (2, 3))
    types = operand_types(x, x, quants=[Quant((0.1,)), Quant((0.2,))])
    assert IntAdd(0.3, 4, dtypes.u8).infer(*types) == coded(dtypes.u8, 2, 3, scale=(0.3,), zero=4)


@pytest.mark.parametrize(
    ("a", "b", "match"),
    [
        (TensorType(dtypes.i16, (2,)), coded(dtypes.i16, 2), "codes with a scale"),
        (coded(dtypes.i16, 2), TensorType(dtypes.f32, (2,)), "codes with a scale"),
        (coded(dtypes.i64, 2), coded(dtypes.i16, 2), "C1"),
        (coded(dtypes.i16, 2), coded(dtypes.u32, 2), "C1"),
        (coded(dtypes.i32, 2, zero=1), coded(dtypes.i16, 2), "C1"),
        (coded(dtypes.i16, 2, scale=(1.0, 2.0), axis=0), coded(dtypes.i16, 3, 2), "C2"),
        (coded(dtypes.i16, 2, scale=(2.0**31,)), coded(dtypes.i16, 2), "ratio of scales"),
        (coded(dtypes.i16, 2), coded(dtypes.i16, 3), "2 and 3|broadcast"),
    ],
)
def test_operands_that_do_not_fit_are_refused(a, b, match):
    with pytest.raises(VerifyError, match=match):
        IntAdd(0.5, 0, dtypes.i16).infer(a, b)


@pytest.mark.parametrize("op", [IntAdd(0.0), IntAdd(1.0, 200), IntAdd(1.0, 0, dtypes.f32)])
def test_results_that_cannot_be_are_refused(op):
    with pytest.raises(VerifyError):
        op.infer(coded(dtypes.i16, 2), coded(dtypes.i16, 2))
