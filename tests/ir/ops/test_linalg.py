"""Products: evaluation against ONNX Runtime, types, decomposition."""

import numpy as np
import pytest
from check_op import check_decompose, check_op, run_onnx

from planish.ir import dtypes
from planish.ir.errors import VerifyError
from planish.ir.ops.linalg import Conv, Linear, MatMul
from planish.ir.types import tensor

RNG = np.random.default_rng(4)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("a", "b"),
    [((3, 5), (5, 7)), ((2, 1, 3, 5), (4, 5, 7)), ((5,), (2, 5, 7)), ((2, 3, 5), (5,)), ((5,), (5,))],
)
def test_matmul_agrees_with_onnx_runtime(a, b):
    x, y = normal(*a), normal(*b)
    np.testing.assert_allclose(check_op(MatMul(), x, y)[0], run_onnx("MatMul", x, y), rtol=1e-4, atol=1e-5)


def test_linear_is_a_matrix_product_with_bias():
    x, w, b = normal(2, 3, 5), normal(5, 7), normal(7)
    np.testing.assert_allclose(check_op(Linear(), x, w, b)[0], x @ w + b, rtol=1e-6)
    check_decompose(Linear(), x, w, b)
    check_decompose(Linear(), x, w)


@pytest.mark.parametrize(
    ("op", "x", "w"),
    [
        (Conv((2,), (1, 2), (2,)), (2, 3, 11), (4, 3, 3)),
        (Conv((2, 1), (1, 0, 2, 1), (1, 2), 2), (2, 4, 9, 8), (6, 2, 3, 2)),
        (Conv((1, 1), (1, 1, 1, 1), (1, 1), 4), (1, 4, 5, 6), (4, 1, 3, 3)),
        (Conv((4, 4), (0, 0, 0, 0), (1, 1)), (2, 3, 9, 8), (5, 3, 4, 4)),
        (Conv((1, 2, 1), (0,) * 6, (1, 1, 1)), (1, 2, 3, 5, 4), (3, 2, 2, 2, 2)),
    ],
)
@pytest.mark.parametrize("biased", [True, False])
def test_conv_agrees_with_onnx_runtime(op, x, w, biased):
    operands = [normal(*x), normal(*w), *([normal(w[0])] if biased else [])]
    expected = run_onnx("Conv", *operands, strides=op.strides, pads=op.pads, dilations=op.dilations, group=op.group)
    np.testing.assert_allclose(check_op(op, *operands)[0], expected, rtol=1e-4, atol=1e-5)


def test_half_precision_products_are_accumulated_in_float32():
    a, b = normal(3, 64).astype(np.float16), normal(64, 5).astype(np.float16)
    expected = (a.astype(np.float32) @ b.astype(np.float32)).astype(np.float16)
    np.testing.assert_array_equal(check_op(MatMul(), a, b)[0], expected)


def test_conv_infers_symbolic_extents():
    x, w = tensor(dtypes.f32, "batch", 3, "16*h", 224), tensor(dtypes.f32, 384, 3, 16, 16)
    y = Conv((16, 16), (0, 0, 0, 0), (1, 1)).infer(x, w)
    assert y.dims[0] == "batch"
    assert y.dims[1] == 384
    assert y.dims[3] == 14


def test_violated_constraints_are_named():
    with pytest.raises(VerifyError, match="C5"):
        MatMul().infer(tensor(dtypes.f32, 2, 3), tensor(dtypes.f32, 4, 5))
    with pytest.raises(VerifyError, match="C5"):
        Linear().infer(tensor(dtypes.f32, 2, 3), tensor(dtypes.f32, 3, 5), tensor(dtypes.f32, 3))
    with pytest.raises(VerifyError, match="C6"):
        Conv((1,), (0, 0), (1,)).infer(tensor(dtypes.f32, 1, 3, 9), tensor(dtypes.f32, 4, 2, 3))
    with pytest.raises(VerifyError, match="C7"):
        Conv((1,), (0, 0), (1,)).infer(tensor(dtypes.f32, 1, 3, 2), tensor(dtypes.f32, 4, 3, 5))
