"""Normalisations: evaluation against ONNX Runtime and the ONNX reference, types, decompositions."""

import numpy as np
import pytest
from check_op import check_decompose, check_op, run_onnx

from planish.ir import dtypes
from planish.ir.errors import VerifyError
from planish.ir.ops.norm import BatchNorm, InstanceNorm, LayerNorm, LogSoftmax, RMSNorm, Softmax
from planish.ir.types import tensor

RNG = np.random.default_rng(3)
X = RNG.normal(size=(2, 3, 5, 7)).astype(np.float32) * 2 + 1


def weights(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    return RNG.normal(size=shape).astype(np.float32), RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("axis", [-1, -2])
def test_layer_norm_agrees_with_onnx_runtime(axis):
    gamma, beta = weights(*X.shape[axis:])
    (y,) = check_op(LayerNorm(axis, 1e-3), X, gamma, beta)
    expected = run_onnx("LayerNormalization", X, gamma, beta, axis=axis, epsilon=1e-3)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_rms_norm_agrees_with_the_onnx_reference():
    gamma, _ = weights(7)
    (y,) = check_op(RMSNorm(-1, 1e-3), X, gamma)
    expected = run_onnx("RMSNormalization", X, gamma, opset=23, reference=True, axis=-1, epsilon=1e-3)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_batch_norm_agrees_with_onnx_runtime():
    gamma, beta = weights(3)
    mean, var = weights(3)
    (y,) = check_op(BatchNorm(1e-3), X, gamma, beta, mean, np.abs(var))
    expected = run_onnx("BatchNormalization", X, gamma, beta, mean, np.abs(var), epsilon=1e-3)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_instance_norm_agrees_with_onnx_runtime():
    gamma, beta = weights(3)
    (y,) = check_op(InstanceNorm(1e-3), X, gamma, beta)
    expected = run_onnx("InstanceNormalization", X, gamma, beta, epsilon=1e-3)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [-1, -3])
@pytest.mark.parametrize("kind", [Softmax, LogSoftmax])
def test_softmax_agrees_with_onnx_runtime_on_large_numbers(kind, axis):
    (y,) = check_op(kind(axis), X * 100)
    np.testing.assert_allclose(y, run_onnx(kind.__name__, X * 100, axis=axis), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_layer_norm_equals_its_decomposition(count):
    check_decompose(LayerNorm(-2, 1e-5), X, *weights(5, 7)[:count], atol=1e-5)


def test_layer_norm_with_beta_alone_equals_its_decomposition():
    check_decompose(LayerNorm(-1, 1e-5), X, None, weights(7)[1], atol=1e-5)


def test_decomposed_norms_of_half_floats_do_not_overflow():
    x = (X * 300).astype(np.float16)
    gamma = weights(7)[0].astype(np.float16)
    check_decompose(LayerNorm(-1, 1e-5), x, gamma, atol=1e-2)
    check_decompose(RMSNorm(-1, 1e-5), x, gamma, atol=1e-2)
    check_decompose(RMSNorm(-1, 1e-5), x, atol=1e-2)


def test_violated_constraints_are_named():
    x = tensor(dtypes.f32, "batch", 197, 384)
    with pytest.raises(VerifyError, match="C3"):
        LayerNorm(2, 1e-5).infer(x)
    with pytest.raises(VerifyError, match="C4"):
        LayerNorm(-1, 1e-5).infer(x, tensor(dtypes.f32, 197))
    with pytest.raises(VerifyError, match="C4"):
        RMSNorm(-1, 1e-5).infer(x, tensor(dtypes.f16, 384))
    with pytest.raises(VerifyError, match="C3"):
        Softmax(-4).infer(x)
