"""Pooling: evaluation against ONNX Runtime, types, quantization."""

import numpy as np
import pytest
from check_op import check_op, run_onnx

from planish.ir import dtypes
from planish.ir.errors import VerifyError
from planish.ir.ops.pool import AveragePool, MaxPool
from planish.ir.types import tensor

RNG = np.random.default_rng(5)
SHAPES = [
    ((3,), (2,), (1, 1), (2, 3, 11)),
    ((2, 2), (2, 2), (0, 0, 0, 0), (2, 3, 9, 8)),
    ((3, 2), (1, 2), (1, 0, 2, 1), (1, 4, 9, 8)),
    ((2, 3, 2), (2, 1, 1), (0, 1, 0, 1, 1, 0), (1, 2, 5, 6, 4)),
]


@pytest.mark.parametrize(("kernel", "strides", "pads", "shape"), SHAPES)
@pytest.mark.parametrize("dilation", [1, 2])
def test_max_pool_agrees_with_onnx_runtime(kernel, strides, pads, shape, dilation):
    x = RNG.normal(size=shape).astype(np.float32)
    op = MaxPool(kernel, strides, pads, (dilation,) * len(kernel))
    expected = run_onnx("MaxPool", x, kernel_shape=op.kernel, strides=op.strides, pads=op.pads, dilations=op.dilations)
    np.testing.assert_array_equal(check_op(op, x)[0], expected)


@pytest.mark.parametrize(("kernel", "strides", "pads", "shape"), SHAPES)
@pytest.mark.parametrize("counted", [True, False])
def test_average_pool_agrees_with_onnx_runtime(kernel, strides, pads, shape, counted):
    x = RNG.normal(size=shape).astype(np.float32)
    op = AveragePool(kernel, strides, pads, counted)
    expected = run_onnx(
        "AveragePool", x, kernel_shape=kernel, strides=strides, pads=pads, count_include_pad=int(counted)
    )
    np.testing.assert_allclose(check_op(op, x)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_the_largest_code_wins_even_below_zero(dtype):
    info = np.iinfo(dtype)
    x = RNG.integers(info.min, info.min + 9, (2, 3, 7, 7)).astype(dtype)
    op = MaxPool((3, 3), (2, 2), (1, 1, 1, 1), (1, 1))
    expected = run_onnx("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    np.testing.assert_array_equal(check_op(op, x)[0], expected)


def test_a_window_wider_than_its_padding_is_needed():
    with pytest.raises(VerifyError, match="C4"):
        MaxPool((2, 2), (1, 1), (2, 0, 0, 0), (1, 1)).infer(tensor(dtypes.f32, 1, 1, 8, 8))


def test_average_pool_rejects_integers():
    with pytest.raises(VerifyError):
        AveragePool((2, 2), (2, 2), (0, 0, 0, 0)).infer(tensor(dtypes.i8, 1, 1, 8, 8))
