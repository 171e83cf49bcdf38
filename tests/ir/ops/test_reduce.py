"""Reductions: evaluation against ONNX Runtime, types, known contents."""

import numpy as np
import pytest
from check_op import check_op, run_onnx

from planish.ir import dtypes
from planish.ir.errors import VerifyError
from planish.ir.ops import reduce
from planish.ir.types import TensorType, tensor

X = np.random.default_rng(1).normal(size=(3, 5, 7)).astype(np.float32)
NAMES = ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2", "ReduceSumSquare"]


@pytest.mark.parametrize("keepdims", [True, False])
@pytest.mark.parametrize("axes", [(-1,), (-3, -1), (-3, -2, -1)])
@pytest.mark.parametrize("name", NAMES)
def test_reduction_agrees_with_onnx_runtime(name, axes, keepdims):
    (y,) = check_op(getattr(reduce, name)(axes, keepdims), X)
    expected = run_onnx(name, X, np.array(axes), keepdims=int(keepdims))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_reduction_of_integers_agrees_with_onnx_runtime(name):
    x = np.random.default_rng(2).integers(-9, 9, size=(3, 5)).astype(np.int32)
    (y,) = check_op(getattr(reduce, name)((-1,), False), x)
    np.testing.assert_array_equal(y, run_onnx(name, x, np.array([-1]), keepdims=0))


def test_half_precision_mean_is_accumulated_in_float32():
    x = np.full((2, 4096), 100, np.float16)
    assert check_op(reduce.ReduceMean((-1,), False), x)[0].tolist() == [100, 100]


def test_maximum_of_nothing_is_the_least_value():
    x = np.zeros((2, 0), np.float32)
    assert check_op(reduce.ReduceMax((-1,), False), x)[0].tolist() == [-np.inf, -np.inf]
    assert check_op(reduce.ReduceMin((-1,), False), x.astype(np.int8))[0].tolist() == [127, 127]


@pytest.mark.parametrize("keepdims", [True, False])
def test_argmax_takes_the_first_of_equals(keepdims):
    x = np.array([[1, 5, 5, 2], [3, 0, 3, 3]], np.float32)
    (y,) = check_op(reduce.ArgMax(-1, keepdims), x)
    np.testing.assert_array_equal(y, run_onnx("ArgMax", x, axis=-1, keepdims=int(keepdims)))
    assert y.reshape(-1).tolist() == [1, 0]


def test_product_and_sum_of_a_shape_are_known():
    shape = TensorType(dtypes.i64, (3,), known=("batch", 196, 2))
    assert reduce.ReduceProd((-1,), False).infer(shape).known == ("392*batch",)
    assert reduce.ReduceSum((-1,), True).infer(shape).known == ("batch+198",)


@pytest.mark.parametrize("axes", [(), (0,), (-1, -2), (-4,)])
def test_axes_outside_the_normal_form_are_refused(axes):
    with pytest.raises(VerifyError, match="C3"):
        reduce.ReduceSum(axes, True).infer(tensor(dtypes.f32, 2, 3, 4))
