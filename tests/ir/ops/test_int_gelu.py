"""GELU by shifts against Python's integers and the true function."""

import math
from fractions import Fraction

import numpy as np
import pytest
from check_op import check_op, operand_types

from planish.ir import dtypes
from planish.ir.errors import VerifyError
from planish.ir.ops.int_gelu import ShiftGelu
from planish.ir.types import Quant, TensorType

CODES = np.arange(-128, 128).astype(np.int8)


def exponential(distance, unit):
    """unit * 2**15 * exp(-distance / unit) with the chord for powers of two, as I-ViT writes it."""
    d = -distance
    p = max(d + (d >> 1) - (d >> 4), -15 * unit)
    q = -p // unit
    return math.floor((Fraction(p + q * unit, 2) + unit) * 2 ** (15 - q))


def shift_gelu(x, scale):
    unit = math.ceil(1 / (1.702 * scale))
    one, e = unit << 15, exponential(abs(x), unit)
    return x * (((one if x >= 0 else e) * ((2**31 - 1) // (e + one))) >> 24)


@pytest.mark.parametrize("scale", [0.02, 0.05, 0.1, 0.7, 3.0])
def test_every_code_of_8_bits_is_that_of_the_published_algorithm(scale):
    (y,) = check_op(ShiftGelu(), CODES, quants=[Quant((scale,))])
    assert y.dtype == np.int32
    assert y.tolist() == [shift_gelu(int(x), scale) for x in CODES]


def test_codes_of_16_bits_are_too():
    x = np.concatenate([np.random.default_rng(15).integers(-32768, 32768, 300), [-32768, 32767, 0, 1, -1]])
    (y,) = check_op(ShiftGelu(), x.astype(np.int16), quants=[Quant((0.0005,))])
    assert y.tolist() == [shift_gelu(int(v), 0.0005) for v in x]


@pytest.mark.parametrize(("scale", "bound"), [(0.02, 0.0455), (0.05, 0.0505), (0.1, 0.0995)])
def test_the_error_against_the_true_function_is_as_measured_for_all_codes(scale, bound):
    (y,) = check_op(ShiftGelu(), CODES, quants=[Quant((scale,))])
    true = [scale * x * 0.5 * (1 + math.erf(scale * x / math.sqrt(2))) for x in CODES.tolist()]
    assert np.abs(y * (scale / 128) - true).max() < bound


def test_numbers_far_below_zero_give_almost_nothing():
    x = np.full((3, 5), -128, np.int8)  # rows without a positive number, where the published maximum overflows
    (y,) = check_op(ShiftGelu(), x, quants=[Quant((0.1,))])
    np.testing.assert_array_equal(y, 0)
    (y,) = check_op(ShiftGelu(), np.arange(-128, 0).astype(np.int8), quants=[Quant((0.1,))])
    assert np.all(y <= 0)
    assert y.min() * 0.1 / 128 > -0.27  # the true minimum is -0.17, and the error 0.0995


def test_an_element_depends_on_no_other():
    x = np.random.default_rng(16).permutation(np.repeat(CODES, 2)).reshape(8, 64)
    (y,) = check_op(ShiftGelu(), x, quants=[Quant((0.05,))])
    alone = [[shift_gelu(int(v), 0.05) for v in row] for row in x]
    assert y.tolist() == alone


def test_the_scale_of_the_result_has_7_bits_more():
    (x,) = operand_types(CODES, quants=[Quant((0.5,))])
    assert ShiftGelu().infer(x) == TensorType(dtypes.i32, (256,), Quant((0.5 / 128,)))


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (TensorType(dtypes.i8, (2,)), "codes with a scale"),
        (TensorType(dtypes.i8, (2,), Quant((1.0, 2.0), 0, 0)), "per channel"),
        (TensorType(dtypes.i32, (2,), Quant((1.0,))), "C1"),
        (TensorType(dtypes.i8, (2,), Quant((1.0,), 1)), "C1"),
        (TensorType(dtypes.i8, (2,), Quant((1 / (1.702 * 32767.5),))), "C2"),
    ],
)
def test_operands_that_do_not_fit_are_refused(x, match):
    with pytest.raises(VerifyError, match=match):
        ShiftGelu().infer(x)


def test_the_finest_scale_that_fits_stays_in_32_bits():
    scale = 1 / (1.702 * 32766.5)
    x = np.array([-32768, -1, 0, 1, 32767], np.int16)
    (y,) = check_op(ShiftGelu(), x, quants=[Quant((scale,))])
    assert y.tolist() == [shift_gelu(int(v), scale) for v in x]
