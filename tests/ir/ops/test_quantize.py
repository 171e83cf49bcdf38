"""From real numbers to codes, back, and between scales: against fractions and ONNX Runtime."""

import math
from fractions import Fraction

import numpy as np
import pytest
from check_op import check_op, operand_types, run_onnx

from planish.ir import dtypes
from planish.ir.errors import VerifyError
from planish.ir.ops.quantize import Dequantize, FromCodes, Quantize, Requantize, ScaleBy, ToCodes
from planish.ir.types import Quant, TensorType

RNG = np.random.default_rng(11)
LEAST, MOST = -(2**31), 2**31 - 1


def coded(dtype, *shape, scale=0.5, zero=0, axis=None):
    scales = scale if isinstance(scale, tuple) else (scale,)
    return TensorType(dtype, shape, Quant(scales, zero, axis))


def random_codes(dtype, shape):
    return RNG.integers(dtype.min, dtype.max, shape, endpoint=True, dtype=np.int64).astype(dtype.storage)


def factors(ratios):
    """Fractions with the 31-bit multipliers of the definition: the largest has 31 bits, all have one shift <= 62."""
    shift = 62
    while math.floor(Fraction(max(ratios)) * 2**shift + Fraction(1, 2)) >= 2**31:
        shift -= 1
    return [Fraction(math.floor(Fraction(r) * 2**shift + Fraction(1, 2)), 2**shift) for r in ratios]


def requantized(q, ratio, zero_in, zero, to):
    exact = math.floor((int(q) - zero_in) * ratio + Fraction(1, 2)) + zero
    return min(max(exact, to.min), to.max)


@pytest.mark.parametrize(("to", "zero"), [(dtypes.u8, 128), (dtypes.i8, -7), (dtypes.u16, 1000), (dtypes.i16, 0)])
def test_quantizing_agrees_with_onnx_runtime(to, zero):
    x = np.concatenate([RNG.normal(0, 40, 500), [0.0, -0.0, 0.25, 0.75, -0.25, 1e9, -1e9]]).astype(np.float32)
    scale = np.float32(0.5)
    expected = run_onnx("QuantizeLinear", x, np.array(scale), np.array(zero, to.storage))
    op = Quantize(float(scale), zero, to)
    np.testing.assert_array_equal(check_op(op, x)[0], expected)
    assert op.infer(operand_types(x)[0]) == TensorType(to, x.shape, Quant((0.5,), zero))


def test_quantizing_rounds_ties_to_even_saturates_and_takes_nan_for_zero():
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, np.inf, -np.inf, np.nan, 3e38, -3e38], np.float32)
    assert check_op(Quantize(1.0, 3, dtypes.i8), x)[0].tolist() == [3, 5, 5, 3, 1, 127, -128, 3, 127, -128]


def test_quantizing_to_32_bits_saturates():
    x = np.array([1e30, -1e30, 7.0], np.float32)
    assert check_op(Quantize(1.0, 0, dtypes.i32), x)[0].tolist() == [MOST, LEAST, 7]


@pytest.mark.parametrize(("dtype", "zero"), [(dtypes.u8, 100), (dtypes.i8, 0), (dtypes.i16, -5), (dtypes.i32, 0)])
def test_dequantizing_is_the_scaled_distance_from_the_zero_point(dtype, zero):
    x = random_codes(dtype, (3, 50))
    (y,) = check_op(Dequantize(), x, quants=[Quant((0.0371,), zero)])
    real = np.array([[float((int(q) - zero) * Fraction(0.0371)) for q in row] for row in x])
    np.testing.assert_allclose(y, real, rtol=2.0**-22)
    assert y.dtype == np.float32


def test_dequantizing_takes_each_channel_by_its_scale():
    x = random_codes(dtypes.i32, (2, 3, 4))
    scales = (0.5, 0.25, 2.0)
    (y,) = check_op(Dequantize(), x // 2**10, quants=[Quant(scales, 0, 1)])
    np.testing.assert_array_equal(y, (x // 2**10) * np.array(scales, np.float32)[:, None])
    assert check_op(Dequantize(), np.array(7, np.int8), quants=[Quant((0.5,))])[0] == 3.5


def test_codes_survive_the_way_to_real_numbers_and_back():
    for dtype, zero in ((dtypes.u8, 113), (dtypes.i8, -3), (dtypes.i16, 0)):
        q = np.arange(dtype.min, dtype.max + 1).astype(dtype.storage)
        for scale in (0.1, 0.02, 3.7e-5):
            (real,) = check_op(Dequantize(), q, quants=[Quant((scale,), zero)])
            np.testing.assert_array_equal(Quantize(scale, zero, dtype).evaluate(real), q)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 0.3, 77.7, 1e6, 4e9])
@pytest.mark.parametrize(("source", "zero_in"), [(dtypes.i32, 0), (dtypes.i16, 0), (dtypes.u8, 131), (dtypes.i8, -128)])
@pytest.mark.parametrize(("to", "zero"), [(dtypes.i8, 0), (dtypes.u8, 9), (dtypes.i16, 0), (dtypes.i32, 0)])
def test_requantizing_is_the_rounded_dyadic_product(scale, source, zero_in, to, zero):
    x = np.concatenate([random_codes(source, 60), np.array([source.min, source.max, 0, 1], source.storage)])
    (ratio,) = factors([1.0 / scale])
    (y,) = check_op(Requantize(scale, zero, to), x, quants=[Quant((1.0,), zero_in)])
    assert y.tolist() == [requantized(q, ratio, zero_in, zero, to) for q in x]


def test_requantizing_takes_each_channel_by_its_ratio():
    x = random_codes(dtypes.i32, (5, 4, 2))
    scales = (1e-9, 3e-8, 1.1e-8, 2e-12)
    (y,) = check_op(Requantize(0.5, 3, dtypes.i16), x, quants=[Quant(scales, 0, 1)])
    for channel, ratio in enumerate(factors([s / 0.5 for s in scales])):
        expected = [requantized(q, ratio, 0, 3, dtypes.i16) for q in x[:, channel].reshape(-1)]
        assert y[:, channel].reshape(-1).tolist() == expected


def test_requantizing_ties_go_up():
    x = np.array([-3, -1, 1, 3], np.int32)
    assert check_op(Requantize(2.0), x, quants=[Quant((1.0,))])[0].tolist() == [-1, 0, 1, 2]


def test_requantizing_to_the_same_scale_keeps_the_codes_and_moves_the_zero_point():
    x = np.arange(-128, 128).astype(np.int8)
    (y,) = check_op(Requantize(0.1, 128, dtypes.u8), x, quants=[Quant((0.1,))])
    np.testing.assert_array_equal(y, np.arange(256))


def test_another_unit_is_another_scale():
    x = random_codes(dtypes.i8, (4, 3))
    quant = Quant((0.5, 0.25, 1.0), 0, 1)
    (y,) = check_op(ScaleBy(0.125), x, quants=[quant])
    np.testing.assert_array_equal(y, x)
    assert ScaleBy(0.125).infer(TensorType(dtypes.i8, (4, 3), quant)).quant == Quant((0.0625, 0.03125, 0.125), 0, 1)


def test_integers_become_codes_and_codes_integers():
    x = random_codes(dtypes.u8, (4, 3))
    np.testing.assert_array_equal(check_op(FromCodes(0.5, 7), x)[0], x)
    np.testing.assert_array_equal(check_op(ToCodes(), x, quants=[Quant((0.5,), 7)])[0], x)
    read = FromCodes(0.5, 7).infer(operand_types(x)[0])
    assert read == coded(dtypes.u8, 4, 3, zero=7)
    assert ToCodes().infer(read) == TensorType(dtypes.u8, (4, 3))


@pytest.mark.parametrize(
    ("op", "x", "match"),
    [
        (Quantize(1.0), TensorType(dtypes.f16, (2,)), "C1"),
        (Quantize(1.0), TensorType(dtypes.i8, (2,)), "C1"),
        (Quantize(1.0), TensorType(dtypes.f32, (2,), Quant((1.0,))), "C2"),
        (Quantize(0.0), TensorType(dtypes.f32, (2,)), "positive"),
        (Quantize(-1.0), TensorType(dtypes.f32, (2,)), "positive"),
        (Quantize(math.inf), TensorType(dtypes.f32, (2,)), "finite"),
        (Quantize(math.nan), TensorType(dtypes.f32, (2,)), "finite"),
        (Quantize(1.0, 128), TensorType(dtypes.f32, (2,)), "zero point"),
        (Quantize(1.0, -1, dtypes.u8), TensorType(dtypes.f32, (2,)), "zero point"),
        (Quantize(1.0, 0, dtypes.i4), TensorType(dtypes.f32, (2,)), "aren't supported"),
        (Quantize(1.0, 0, dtypes.f32), TensorType(dtypes.f32, (2,)), "aren't supported"),
        (Dequantize(), TensorType(dtypes.i8, (2,)), "codes with a scale"),
        (Dequantize(), TensorType(dtypes.f32, (2,)), "codes with a scale"),
        (Requantize(1.0), TensorType(dtypes.i32, (2,)), "codes with a scale"),
        (Requantize(1.0), coded(dtypes.i64, 2), "C1"),
        (Requantize(1.0), coded(dtypes.u32, 2), "C1"),
        (Requantize(1.0), coded(dtypes.i32, 2, zero=1), "C1"),
        (Requantize(0.5), coded(dtypes.i32, 2, scale=2.0**29), "ratio of scales"),
        (Requantize(0.5), coded(dtypes.i32, 2, scale=(0.5, 2.0**30), axis=0), "ratio of scales"),
        (Requantize(-0.5), coded(dtypes.i32, 2), "ratio of scales"),
        (Requantize(1.0, 200), coded(dtypes.i32, 2), "zero point"),
        (ScaleBy(1.0), TensorType(dtypes.i8, (2,)), "codes with a scale"),
        (ScaleBy(0.0), coded(dtypes.i8, 2), "C2"),
        (ScaleBy(math.inf), coded(dtypes.i8, 2), "C2"),
        (ScaleBy(math.nan), coded(dtypes.i8, 2), "C2"),
        (FromCodes(1.0), TensorType(dtypes.f32, (2,)), "C1"),
        (FromCodes(1.0), TensorType(dtypes.i4, (2,)), "C1"),
        (FromCodes(1.0), coded(dtypes.i8, 2), "C2"),
        (FromCodes(1.0, 128), TensorType(dtypes.i8, (2,)), "zero point"),
        (ToCodes(), TensorType(dtypes.i8, (2,)), "codes with a scale"),
        (ToCodes(), coded(dtypes.i8, 2, scale=(1.0, 2.0), axis=0), "per channel"),
    ],
)
def test_operands_that_do_not_fit_are_refused(op, x, match):
    with pytest.raises(VerifyError, match=match):
        op.infer(x)


def test_the_widest_codes_that_can_be_requantized_are_exact():
    x = np.array([LEAST, LEAST + 1, MOST], np.int32)
    for scale in (2.0**31 * 1.001, 2.0**32, 1.0, 0.99999999):
        (ratio,) = factors([1.0 / scale])
        (y,) = check_op(Requantize(scale, 0, dtypes.i32), x, quants=[Quant((1.0,))])
        assert y.tolist() == [requantized(q, ratio, 0, 0, dtypes.i32) for q in x]
