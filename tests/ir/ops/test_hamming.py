"""Codes of signs, and sums by them, against sums of Python's numbers."""

from fractions import Fraction

import numpy as np
import pytest
from check_op import check_decompose, check_op

from planish.ir import dtypes
from planish.ir.errors import VerifyError
from planish.ir.ops.hamming import AddMatMul, Binarize
from planish.ir.ops.int_linear import IntAddMatMul, IntMatMul
from planish.ir.types import Quant, TensorType, tensor

RNG = np.random.default_rng(31)
UNIT = Quant((1.0,))


def signs(*shape, dtype=np.float32):
    return (RNG.integers(0, 2, shape) * 2 - 1).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("zero", [1, -1])
def test_zeros_of_both_signs_have_the_sign_that_was_asked_for(dtype, zero):
    x = np.array([[0.0, -0.0, 1e-7, -1e-7], [3.0, -3.0, np.inf, -np.inf]], dtype)
    (y,) = check_op(Binarize(zero), x)
    assert y.tolist() == [[zero, zero, 1, -1], [1, -1, 1, -1]]
    check_decompose(Binarize(zero), x)


def test_what_is_no_number_counts_as_negative():
    assert Binarize().evaluate(np.array([np.nan], np.float32)).tolist() == [-1]


def test_zero_becomes_a_sign():
    with pytest.raises(VerifyError, match="C3"):
        Binarize(0).infer(tensor(dtypes.f32, 3))


@pytest.mark.parametrize(
    ("left", "right"),
    [((4, 3), (3, 5)), ((2, 3, 4, 7), (2, 3, 7, 2)), ((1, 3, 1, 5), (2, 1, 5, 3)), ((2, 3), (4, 3, 1))],
)
def test_rows_are_added_and_subtracted(left, right):
    a, b = signs(*left), RNG.normal(size=right).astype(np.float32)
    (c,) = check_op(AddMatMul(), a, b)
    for index in np.ndindex(c.shape):
        lead = index[:-2]
        rows = np.broadcast_to(a, (*c.shape[:-2], *left[-2:]))[(*lead, index[-2])]
        column = np.broadcast_to(b, (*c.shape[:-2], *right[-2:]))[lead][:, index[-1]]
        total = sum(Fraction(float(v)) if s > 0 else -Fraction(float(v)) for s, v in zip(rows, column, strict=True))
        assert float(c[index]) == pytest.approx(float(total), rel=1e-5, abs=1e-5)
    check_decompose(AddMatMul(), a, b)


@pytest.mark.parametrize("other", [0.0, 0.5, -2.0, np.nan])
def test_another_code_is_refused(other):
    a = signs(3, 4)
    a[1, 2] = other
    with pytest.raises(VerifyError, match="other numbers than -1 and"):
        AddMatMul().evaluate(a, RNG.normal(size=(4, 2)).astype(np.float32))


@pytest.mark.parametrize(("dtype", "zero"), [(dtypes.u8, 130), (dtypes.i8, -7), (dtypes.u16, 30000), (dtypes.i16, 0)])
def test_codes_are_added_exactly(dtype, zero):
    a = signs(2, 3, 4, 37, dtype=np.int8)
    b = RNG.integers(dtype.min, dtype.max, (2, 1, 37, 5), endpoint=True).astype(dtype.storage)
    quants = [UNIT, Quant((0.25,), zero)]
    (c,) = check_op(IntAddMatMul(), a, b, quants=quants)
    expected = np.sum(
        np.where(a[..., None] > 0, 1, -1) * (b.astype(np.int64) - zero)[:, :, None], axis=3
    )  # [2, 3, 4, 5]
    np.testing.assert_array_equal(c, expected)
    types = [TensorType(dtypes.of(x), x.shape, quant) for x, quant in zip((a, b), quants, strict=True)]
    assert IntAddMatMul().infer(*types).quant == Quant((0.25,))
    np.testing.assert_array_equal(c, IntMatMul().evaluate(a, b, types=types))


def test_a_code_that_is_no_sign_is_refused():
    a, b = signs(2, 3, dtype=np.int8), np.ones((3, 2), np.int8)
    a[0, 0] = 0
    types = [TensorType(dtypes.i8, x.shape, UNIT) for x in (a, b)]
    with pytest.raises(VerifyError, match="other numbers"):
        IntAddMatMul().evaluate(a, b, types=types)


@pytest.mark.parametrize(
    ("a", "b", "what"),
    [
        (TensorType(dtypes.i8, (2, 3), Quant((0.5,))), TensorType(dtypes.i8, (3, 2), UNIT), "C1"),
        (TensorType(dtypes.i8, (2, 3), Quant((1.0,), 1)), TensorType(dtypes.i8, (3, 2), UNIT), "C1"),
        (TensorType(dtypes.u8, (2, 3), UNIT), TensorType(dtypes.i8, (3, 2), UNIT), "C1"),
        (TensorType(dtypes.i8, (3,), UNIT), TensorType(dtypes.i8, (3, 2), UNIT), "C4"),
        (TensorType(dtypes.i8, (2, 3), UNIT), TensorType(dtypes.i8, (4, 2), UNIT), "C5"),
    ],
)
def test_constraints_of_sums_of_codes(a, b, what):
    with pytest.raises(VerifyError, match=what):
        IntAddMatMul().infer(a, b)


@pytest.mark.parametrize(
    ("a", "b", "what"),
    [
        (tensor(dtypes.i32, 2, 3), tensor(dtypes.i32, 3, 2), "a"),
        (tensor(dtypes.f32, 3), tensor(dtypes.f32, 3, 2), "C4"),
        (tensor(dtypes.f32, 2, 3), tensor(dtypes.f16, 3, 2), "C3"),
        (tensor(dtypes.f32, 2, 3), tensor(dtypes.f32, 4, 2), "C5"),
    ],
)
def test_constraints_of_sums(a, b, what):
    with pytest.raises(VerifyError, match=what):
        AddMatMul().infer(a, b)
