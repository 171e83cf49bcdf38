"""Products of codes against sums of Python's integers."""

import itertools

import numpy as np
import pytest
from check_op import check_op, operand_types, run_onnx

from planish.ir import dtypes
from planish.ir.errors import VerifyError
from planish.ir.ops.int_linear import IntConv, IntLinear, IntLinearDequantize, IntMatMul, IntMul, IntReduceSum
from planish.ir.types import Quant, TensorType

RNG = np.random.default_rng(14)
OPERANDS = [(dtypes.u8, 130), (dtypes.i8, -7), (dtypes.u16, 30000), (dtypes.i16, 0)]


def coded(dtype, *shape, scale=0.5, zero=0, axis=None):
    return TensorType(dtype, shape, Quant(scale if isinstance(scale, tuple) else (scale,), zero, axis))


def random_codes(dtype, shape):
    return RNG.integers(dtype.min, dtype.max, shape, endpoint=True, dtype=np.int64).astype(dtype.storage)


def weights(*shape):
    return random_codes(dtypes.i8, shape)


def product(a, b):
    """Matrix product of nested lists."""
    return [[sum(x * y for x, y in zip(row, column, strict=True)) for column in zip(*b, strict=True)] for row in a]


def less(array, zero):
    return (array.astype(object) - zero).tolist()


@pytest.mark.parametrize(("dtype", "zero"), OPERANDS)
@pytest.mark.parametrize("biased", [False, True])
def test_a_linear_layer_sums_products_exactly(dtype, zero, biased):
    x, w, b = random_codes(dtype, (3, 70)), weights(70, 5), random_codes(dtypes.i32, 5) // 4
    quants = [Quant((0.5,), zero), Quant((0.25,)), Quant((0.125,))]
    (y,) = check_op(IntLinear(), x, w, *([b] if biased else []), quants=quants[: 2 + biased])
    bias = b.tolist() if biased else [0] * 5
    expected = [[v + o for v, o in zip(row, bias, strict=True)] for row in product(less(x, zero), less(w, 0))]
    assert y.tolist() == expected
    assert y.dtype == np.int32


def test_a_linear_layer_keeps_leading_axes():
    x, w = random_codes(dtypes.u8, (2, 3, 4)), weights(4, 6)
    quants = [Quant((0.5,), 9), Quant((0.25,))]
    (y,) = check_op(IntLinear(), x, w, quants=quants)
    (flat,) = check_op(IntLinear(), x.reshape(6, 4), w, quants=quants)
    np.testing.assert_array_equal(y.reshape(6, 6), flat)
    np.testing.assert_array_equal(check_op(IntLinear(), x[0, 0], w, quants=quants)[0], y[0, 0])


def test_saturated_codes_and_the_least_weight_are_exact():
    for code, zero in ((255, 0), (0, 255), (255, 128)):
        x, w = np.full((1, 3000), code, np.uint8), np.full((3000, 2), -128, np.int8)
        w[0, 0] = 1
        (y,) = check_op(IntLinear(), x, w, quants=[Quant((0.5,), zero), Quant((0.25,))])
        assert y.tolist() == [[(code - zero) * (1 - 128 * 2999), (code - zero) * -128 * 3000]]


def test_the_order_of_the_sum_and_the_size_of_the_batch_change_nothing():
    x, w = random_codes(dtypes.u8, (9, 200)), weights(200, 7)
    quants = [Quant((0.5,), 100), Quant((0.25,))]
    (y,) = check_op(IntLinear(), x, w, quants=quants)
    order = RNG.permutation(200)
    np.testing.assert_array_equal(check_op(IntLinear(), x[:, order], w[order], quants=quants)[0], y)
    for i in range(9):
        np.testing.assert_array_equal(check_op(IntLinear(), x[i : i + 1], w, quants=quants)[0], y[i : i + 1])


def test_the_scale_of_a_sum_is_the_product_of_the_scales():
    x, w = coded(dtypes.u8, 2, 4, zero=7), coded(dtypes.i8, 4, 3, scale=0.25)
    assert IntLinear().infer(x, w) == coded(dtypes.i32, 2, 3, scale=0.125)
    w = coded(dtypes.i8, 4, 3, scale=(0.25, 0.5, 1.0), axis=1)
    b = coded(dtypes.i32, 3, scale=(0.125, 0.25, 0.5), axis=0)
    sums = coded(dtypes.i32, 2, 3, scale=(0.125, 0.25, 0.5), axis=1)
    assert IntLinear().infer(x, w, b) == sums
    deeper = IntLinear().infer(coded(dtypes.u8, 5, 2, 4), w)
    assert deeper == coded(dtypes.i32, 5, 2, 3, scale=(0.125, 0.25, 0.5), axis=2)
    assert IntMatMul().infer(coded(dtypes.u8, 2, 4), coded(dtypes.i8, 4, 3, scale=0.25)) == coded(
        dtypes.i32, 2, 3, scale=0.125
    )
    assert IntMul().infer(coded(dtypes.u8, 2), coded(dtypes.i8, 2, scale=0.25)) == coded(dtypes.i32, 2, scale=0.125)
    assert IntReduceSum((-1,)).infer(coded(dtypes.i16, 2, 4, zero=3)) == coded(dtypes.i32, 2, 1)
    image, filters = coded(dtypes.u8, 1, 2, 4, 4, zero=3), coded(dtypes.i8, 2, 2, 1, 1, scale=(0.25, 0.5), axis=0)
    sums = IntConv((1, 1), (0, 0, 0, 0), (1, 1)).infer(image, filters)
    assert sums == coded(dtypes.i32, 1, 2, 4, 4, scale=(0.125, 0.25), axis=1)


def test_a_sum_that_leaves_32_bits_is_refused_and_one_that_just_fits_is_not():
    quants = [Quant((1.0,)), Quant((1.0,)), Quant((1.0,))]
    x, w = np.full((1, 2), 32767, np.int16), np.full((2, 1), 127, np.int8)
    most = 2**31 - 1 - 2 * 32767 * 127
    (y,) = check_op(IntLinear(), x, w, np.array([most], np.int32), quants=quants)
    assert y.item() == 2**31 - 1
    types = operand_types(x, w, np.array([0], np.int32), quants=quants)
    with pytest.raises(VerifyError, match="32 bits"):
        IntLinear().compute([x, w, np.array([most + 1], np.int32)], types)


@pytest.mark.parametrize(("left", "zero"), OPERANDS)
@pytest.mark.parametrize(("right", "centre"), OPERANDS[:2])
def test_a_matrix_product_takes_both_zero_points_off(left, zero, right, centre):
    a, b = random_codes(left, (4, 30)), random_codes(right, (30, 3))
    (c,) = check_op(IntMatMul(), a, b, quants=[Quant((0.5,), zero), Quant((0.25,), centre)])
    assert c.tolist() == product(less(a, zero), less(b, centre))


def test_leading_axes_of_matrices_broadcast():
    a, b = random_codes(dtypes.u8, (2, 1, 3, 8)), random_codes(dtypes.i8, (4, 8, 5))
    (c,) = check_op(IntMatMul(), a, b, quants=[Quant((0.5,), 3), Quant((0.5,))])
    assert c.shape == (2, 4, 3, 5)
    for i, j in itertools.product(range(2), range(4)):
        assert c[i, j].tolist() == product(less(a[i, 0], 3), less(b[j], 0))


def test_matrix_products_do_not_depend_on_order_or_batch():
    a, b = random_codes(dtypes.u8, (3, 5, 64)), random_codes(dtypes.i8, (3, 64, 4))
    quants = [Quant((0.5,), 128), Quant((0.5,))]
    (c,) = check_op(IntMatMul(), a, b, quants=quants)
    order = RNG.permutation(64)
    np.testing.assert_array_equal(check_op(IntMatMul(), a[..., order], b[:, order], quants=quants)[0], c)
    np.testing.assert_array_equal(check_op(IntMatMul(), a[1], b[1], quants=quants)[0], c[1])


def convolved(x, w, b, op, zero):
    """Convolution of [N, C, H, W] with [F, C / group, Kh, Kw], tap by tap; the border is the zero point."""
    top, left, bottom, right = op.pads
    n, _, height, width = x.shape
    filters, part, rows, columns = w.shape
    extent = [
        (size + before + after - dilation * (taps - 1) - 1) // stride + 1
        for size, before, after, dilation, taps, stride in zip(
            (height, width), (top, left), (bottom, right), op.dilations, (rows, columns), op.strides, strict=True
        )
    ]
    y = np.zeros((n, filters, *extent), object)
    for i, f, row, column in np.ndindex(y.shape):
        first = f // (filters // op.group) * part
        total = 0 if b is None else int(b[f])
        for c, j, k in itertools.product(range(part), range(rows), range(columns)):
            at = (row * op.strides[0] + j * op.dilations[0] - top, column * op.strides[1] + k * op.dilations[1] - left)
            if 0 <= at[0] < height and 0 <= at[1] < width:
                total += (int(x[i, first + c, at[0], at[1]]) - zero) * int(w[f, c, j, k])
        y[i, f, row, column] = total
    return y


@pytest.mark.parametrize(
    ("op", "filters", "kernel"),
    [
        (IntConv((1, 1), (0, 0, 0, 0), (1, 1)), 3, (3, 2)),
        (IntConv((2, 1), (1, 2, 0, 1), (1, 2)), 2, (3, 3)),
        (IntConv((1, 1), (1, 1, 1, 1), (1, 1), 4), 8, (3, 3)),
        (IntConv((3, 2), (0, 0, 0, 0), (1, 1), 2), 4, (3, 2)),
    ],
)
@pytest.mark.parametrize(("dtype", "zero"), OPERANDS[:2])
def test_a_convolution_sums_its_taps_and_pads_with_the_zero_point(op, filters, kernel, dtype, zero):
    x, w = random_codes(dtype, (2, 4, 7, 6)), weights(filters, 4 // op.group, *kernel)
    b = random_codes(dtypes.i32, filters) // 4
    quants = [Quant((0.5,), zero), Quant((0.25,)), Quant((0.125,))]
    (y,) = check_op(op, x, w, b, quants=quants, fixed=range(2, 9))
    assert y.tolist() == convolved(x, w, b, op, zero).tolist()
    (plain,) = check_op(op, x, w, quants=quants[:2], fixed=range(2, 9))
    assert plain.tolist() == convolved(x, w, None, op, zero).tolist()


def test_a_convolution_agrees_with_onnx_runtime():
    x, w = random_codes(dtypes.u8, (2, 3, 9, 8)), weights(4, 3, 3, 3)
    op = IntConv((2, 1), (1, 1, 1, 1), (1, 1))
    zero = np.array(77, np.uint8)
    expected = run_onnx("ConvInteger", x, w, zero, strides=op.strides, pads=op.pads)
    (y,) = check_op(op, x, w, quants=[Quant((0.5,), 77), Quant((0.25,))], fixed=range(2, 10))
    np.testing.assert_array_equal(y, expected)


def test_a_convolution_that_leaves_32_bits_is_refused():
    op = IntConv((1,), (0, 0), (1,))
    arrays = np.full((1, 1, 1), 255, np.uint8), np.full((1, 1, 1), 127, np.int8), np.array([2**31 - 1], np.int32)
    with pytest.raises(VerifyError, match="32 bits"):
        op.compute(arrays, operand_types(*arrays, quants=[Quant((1.0,))] * 3))


@pytest.mark.parametrize(("left", "zero"), OPERANDS)
@pytest.mark.parametrize(("right", "centre"), OPERANDS[:2])
def test_products_of_elements_are_exact_and_broadcast(left, zero, right, centre):
    a = np.concatenate([random_codes(left, 20), np.array([left.min, left.max], left.storage)])
    b = np.concatenate([random_codes(right, 9), np.array([right.min, right.max], right.storage)])[:, None]
    quants = [Quant((0.5,), zero), Quant((0.5,), centre)]
    (c,) = check_op(IntMul(), a, b, quants=quants)
    assert c.tolist() == [[(int(p) - zero) * (int(q) - centre) for p in a] for q in b[:, 0]]
    np.testing.assert_array_equal(check_op(IntMul(), b, a, quants=quants[::-1])[0], c)


@pytest.mark.parametrize(("dtype", "zero"), OPERANDS)
@pytest.mark.parametrize("axes", [(-1,), (-2,), (-3, -1), (-3, -2, -1)])
@pytest.mark.parametrize("keepdims", [True, False])
def test_sums_take_the_zero_point_off_each_term(dtype, zero, axes, keepdims):
    x = random_codes(dtype, (3, 4, 5))
    (y,) = check_op(IntReduceSum(axes, keepdims), x, quants=[Quant((0.5,), zero)])
    expected = np.sum(x.astype(object) - zero, axis=axes, keepdims=keepdims)
    assert np.asarray(y).tolist() == (expected.tolist() if isinstance(expected, np.ndarray) else expected)


def test_a_sum_of_codes_that_leaves_32_bits_is_refused():
    x = np.full(32769, 65535, np.uint16)
    types = operand_types(x, quants=[Quant((1.0,))])
    assert IntReduceSum((-1,)).compute([x[:32768]], types).item() == 32768 * 65535
    with pytest.raises(VerifyError, match="32 bits"):
        IntReduceSum((-1,)).compute([x], types)


X, W, B = coded(dtypes.u8, 2, 4, zero=7), coded(dtypes.i8, 4, 3, scale=0.25), coded(dtypes.i32, 3, scale=0.125)
IMAGE, FILTERS = coded(dtypes.u8, 1, 2, 5, 5), coded(dtypes.i8, 3, 2, 3, 3, scale=0.25)
CONV = IntConv((1, 1), (0, 0, 0, 0), (1, 1))


@pytest.mark.parametrize(
    ("op", "operands", "match"),
    [
        (IntLinear(), (coded(dtypes.i32, 2, 4), W), "C1"),
        (IntLinear(), (coded(dtypes.u8, 2, 2, scale=(1.0, 2.0), axis=1), W), "per channel"),
        (IntLinear(), (TensorType(dtypes.u8, (2, 4)), W), "codes with a scale"),
        (IntLinear(), (X, coded(dtypes.u8, 4, 3)), "C2"),
        (IntLinear(), (X, coded(dtypes.i8, 4, 3, zero=1)), "C2"),
        (IntLinear(), (X, coded(dtypes.i8, 4, 3, scale=(1.0,) * 4, axis=0)), "C2"),
        (IntLinear(), (X, W, coded(dtypes.i32, 3, scale=0.1)), "C3"),
        (IntLinear(), (X, W, coded(dtypes.i32, 3, scale=0.125, zero=1)), "C3"),
        (IntLinear(), (X, W, coded(dtypes.i16, 3, scale=0.125)), "C3"),
        (IntLinear(), (X, coded(dtypes.i8, 5, 3, scale=0.25)), "C4"),
        (IntLinear(), (X, coded(dtypes.i8, 4, scale=0.25)), "C4"),
        (IntLinear(), (coded(dtypes.u8), W), "C4"),
        (IntLinear(), (X, W, coded(dtypes.i32, 4, scale=0.125)), "C4"),
        (IntLinear(), (X, W, coded(dtypes.i32, 1, 3, scale=0.125)), "C4"),
        (IntMatMul(), (coded(dtypes.i32, 2, 4), W), "C1"),
        (IntMatMul(), (X, coded(dtypes.i8, 4, 2, scale=(1.0, 2.0), axis=1)), "per channel"),
        (IntMatMul(), (X, coded(dtypes.i8, 5, 3)), "C5"),
        (IntMatMul(), (X, coded(dtypes.i8)), "C4"),
        (CONV, (coded(dtypes.i16, 1, 2, 5, 5), FILTERS), "C1"),
        (CONV, (coded(dtypes.u8, 1, 2, 5, 5, scale=(1.0, 2.0), axis=1), FILTERS), "per channel"),
        (CONV, (IMAGE, coded(dtypes.u8, 3, 2, 3, 3)), "C2"),
        (CONV, (IMAGE, coded(dtypes.i8, 3, 2, 3, 3, scale=(1.0, 2.0), axis=1)), "C2"),
        (CONV, (IMAGE, FILTERS, coded(dtypes.i32, 3, scale=0.5)), "C3"),
        (CONV, (IMAGE, coded(dtypes.i8, 3, 1, 3, 3)), "C6"),
        (CONV, (IMAGE, coded(dtypes.i8, 3, 2, 7, 3)), "C7"),
        (IntMul(), (coded(dtypes.i32, 2), coded(dtypes.i8, 2)), "C1"),
        (IntMul(), (coded(dtypes.i16, 2), coded(dtypes.i8, 2, scale=(1.0, 2.0), axis=0)), "per channel"),
        (IntMul(), (coded(dtypes.i16, 2), coded(dtypes.u16, 2)), "C2"),
        (IntReduceSum((-1,)), (coded(dtypes.i32, 2),), "C1"),
        (IntReduceSum((-1,)), (coded(dtypes.i16, 2, scale=(1.0, 2.0), axis=0),), "per channel"),
        (IntReduceSum((-2,)), (coded(dtypes.i16, 2),), "axis"),
        (IntReduceSum((0,)), (coded(dtypes.i16, 2),), "axes"),
    ],
)
def test_operands_that_do_not_fit_are_refused(op, operands, match):
    with pytest.raises(VerifyError, match=match):
        op.infer(*operands)


def test_a_linear_layer_with_a_real_result_scales_the_exact_sum():
    x, w, b = random_codes(dtypes.u8, (3, 300)), weights(300, 4), RNG.normal(size=4).astype(np.float32)
    scales = (0.01, 0.002, 0.5, 1e-6)
    (y,) = check_op(IntLinearDequantize(), x, w, b, quants=[Quant((0.03,), 120), Quant(scales, 0, 1)])
    sums = product(less(x, 120), less(w, 0))
    real = [[0.03 * s * v + float(o) for v, s, o in zip(row, scales, b, strict=True)] for row in sums]
    np.testing.assert_allclose(y, real, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "b", "match"),
    [
        (coded(dtypes.i16, 2, 4), TensorType(dtypes.f32, (3,)), "C1"),
        (X, coded(dtypes.i32, 3), "C3"),
        (X, TensorType(dtypes.f16, (3,)), "C3"),
        (X, TensorType(dtypes.f32, (4,)), "C4"),
    ],
)
def test_operands_of_a_real_result_that_do_not_fit_are_refused(x, b, match):
    with pytest.raises(VerifyError, match=match):
        IntLinearDequantize().infer(x, W, b)
