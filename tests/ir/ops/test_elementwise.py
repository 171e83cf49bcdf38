"""Elementwise ops: evaluation against ONNX Runtime, types, known contents."""

import math

import ml_dtypes
import numpy as np
import pytest
from check_op import check_decompose, check_op, run_onnx

from planish.ir import dtypes, ops
from planish.ir.errors import VerifyError
from planish.ir.ops import numerics
from planish.ir.types import TensorType, tensor

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 1, 7)).astype(np.float32) * 3
Y = RNG.normal(size=(5, 7)).astype(np.float32)
INTS = RNG.integers(-50, 50, size=(3, 7))

UNARY = [
    *(ops.Abs(), ops.Neg(), ops.Sign(), ops.Exp(), ops.Erf(), ops.Sin(), ops.Cos(), ops.Floor(), ops.Ceil()),
    *(ops.Round(), ops.Reciprocal(), ops.Tanh(), ops.Sigmoid(), ops.Relu(), ops.Softplus(), ops.IsNaN()),
]
WITH_ATTRIBUTES = [
    (ops.HardSwish(), {}),
    (ops.HardSigmoid(0.3, 0.4), {"alpha": 0.3, "beta": 0.4}),
    (ops.LeakyRelu(0.2), {"alpha": 0.2}),
    (ops.Elu(0.7), {"alpha": 0.7}),
    (ops.Gelu(), {}),
    (ops.Gelu("tanh"), {"approximate": "tanh"}),
]
BINARY = [ops.Add(), ops.Sub(), ops.Mul(), ops.Div(), ops.Max(), ops.Min()]
RELATIONS = [ops.Equal(), ops.Less(), ops.LessOrEqual(), ops.Greater(), ops.GreaterOrEqual()]


def contents(*known: int | str) -> TensorType:
    return TensorType(dtypes.i64, (len(known),), known=known)


@pytest.mark.parametrize("op", UNARY, ids=repr)
def test_unary_op_agrees_with_onnx_runtime(op):
    (y,) = check_op(op, X)
    np.testing.assert_allclose(y, run_onnx(op.name, X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("op", "attrs"), WITH_ATTRIBUTES, ids=repr)
def test_activation_agrees_with_onnx_runtime(op, attrs):
    (y,) = check_op(op, X)
    np.testing.assert_allclose(y, run_onnx(op.name, X, **attrs), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("op", [ops.Sqrt(), ops.Log()], ids=repr)
def test_root_and_logarithm_agree_with_onnx_runtime_on_positive_numbers(op):
    (y,) = check_op(op, np.abs(X))
    np.testing.assert_allclose(y, run_onnx(op.name, np.abs(X)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("op", BINARY + RELATIONS, ids=repr)
def test_binary_op_broadcasts_and_agrees_with_onnx_runtime(op):
    (z,) = check_op(op, X, Y)
    np.testing.assert_allclose(z, run_onnx(op.name, X, Y), rtol=1e-6)


@pytest.mark.parametrize("op", BINARY + RELATIONS, ids=repr)
def test_binary_op_agrees_with_onnx_runtime_on_integers(op):
    divisor = np.array([-7, -3, -1, 1, 2, 5, 9])
    (z,) = check_op(op, INTS, divisor)
    np.testing.assert_array_equal(z, run_onnx(op.name, INTS, divisor))


@pytest.mark.parametrize("op", [ops.And(), ops.Or(), ops.Xor()], ids=repr)
def test_logic_agrees_with_onnx_runtime(op):
    (z,) = check_op(op, X > 0, Y > 0)
    np.testing.assert_array_equal(z, run_onnx(op.name, X > 0, Y > 0))


@pytest.mark.parametrize("fmod", [False, True])
def test_mod_agrees_with_onnx_runtime(fmod):
    divisor = np.array([-7, -3, -1, 1, 2, 5, 9])
    (z,) = check_op(ops.Mod(fmod), INTS, divisor)
    np.testing.assert_array_equal(z, run_onnx("Mod", INTS, divisor, fmod=int(fmod)))


def test_pow_takes_an_integer_exponent_and_keeps_the_base_dtype():
    exponent = np.array([0, 1, 2, 3, 2, 1, 0])
    (z,) = check_op(ops.Pow(), X, exponent)
    np.testing.assert_allclose(z, run_onnx("Pow", X, exponent), rtol=1e-5)
    np.testing.assert_array_equal(check_op(ops.Pow(), INTS, exponent)[0], INTS**exponent)


def test_where_clip_not_identity_agree_with_their_formulas():
    np.testing.assert_array_equal(check_op(ops.Where(), X > 0, X, Y)[0], np.where(X > 0, X, Y))
    np.testing.assert_array_equal(check_op(ops.Clip(-1.0, 2.0), X)[0], np.clip(X, -1, 2))
    np.testing.assert_array_equal(check_op(ops.Clip(hi=3), INTS)[0], np.minimum(INTS, 3))
    np.testing.assert_array_equal(check_op(ops.Not(), X > 0)[0], X <= 0)
    np.testing.assert_array_equal(check_op(ops.Identity(), X)[0], X)


@pytest.mark.parametrize("storage", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("op", [ops.Exp(), ops.Gelu(), ops.Swish(1.7), ops.Softplus(), ops.Clip(-1.0, 1.0)], ids=repr)
def test_other_float_widths_are_rounded_from_a_wider_result(op, storage):
    x = X.astype(storage)
    (y,) = check_op(op, x)
    expected = op.evaluate(x.astype(np.float32)).astype(storage)
    np.testing.assert_allclose(y.astype(np.float64), expected.astype(np.float64), rtol=1e-5, atol=1e-6)


def test_erf_is_accurate_to_double_precision():
    x = np.concatenate([np.linspace(-7, 7, 20011), [1e-310, 1e-9, -0.0, 30.0]])
    expected = np.array([math.erf(v) for v in x])
    np.testing.assert_allclose(numerics.erf(x), expected, rtol=4e-16, atol=0)
    assert np.isnan(numerics.erf(np.array([np.nan]))).all()


@pytest.mark.parametrize("op", [ops.Gelu(), ops.Gelu("tanh"), ops.Swish(), ops.Swish(1.7), ops.HardSwish()], ids=repr)
def test_activation_equals_its_decomposition(op):
    check_decompose(op, X)
    check_decompose(op, X.astype(np.float16), atol=1e-2)


@pytest.mark.parametrize("to", [dtypes.f16, dtypes.f64, dtypes.bf16, dtypes.i32, dtypes.i8, dtypes.boolean], ids=str)
def test_cast_agrees_with_onnx_runtime(to):
    (y,) = check_op(ops.Cast(to), X)
    code = {"f16": 10, "f64": 11, "bf16": 16, "i32": 6, "i8": 3, "bool": 9}[to.name]
    expected = run_onnx("Cast", X, to=code, reference=True)
    np.testing.assert_array_equal(y.astype(np.float64), np.asarray(expected).astype(np.float64))


def test_cast_saturates_eight_bit_floats_and_wraps_four_bit_integers():
    big = np.array([1e6, -1e6, np.inf, 1.0], np.float32)
    assert check_op(ops.Cast(dtypes.f8e4m3fn), big)[0].astype(np.float32).tolist() == [448, -448, 448, 1]
    assert check_op(ops.Cast(dtypes.i4), np.array([7, 8, -9, 16]))[0].astype(int).tolist() == [7, -8, 7, 0]


def test_integer_division_truncates_and_overflow_wraps():
    assert check_op(ops.Div(), np.array([-7, 7, -7]), np.array([2, -2, -2]))[0].tolist() == [-3, -3, 3]
    assert check_op(ops.Add(), np.array([127], np.int8), np.array([1], np.int8))[0].tolist() == [-128]


def test_known_contents_follow_arithmetic_with_symbols():
    shape = contents("batch", 196, 384)
    assert ops.Add().infer(shape, contents(1)).known == ("batch+1", 197, 385)
    assert ops.Mul().infer(shape, shape).known == ("batch*batch", 196 * 196, 384 * 384)
    assert ops.Sub().infer(shape, contents(1, 2, 3)).known == ("batch-1", 194, 381)
    assert ops.Div().infer(contents("8*batch", -7), contents(4, 2)).known == ("2*batch", -3)
    assert ops.Max().infer(contents("batch", 3), contents(0, 5)).known == ("batch", 5)
    assert ops.Min().infer(contents("batch"), contents(7)).known is None
    assert ops.Cast(dtypes.i32).infer(shape).known == shape.known
    assert ops.Cast(dtypes.i32).infer(contents(2**40)).known is None


def test_comparison_with_minus_one_is_decided_for_dimensions():
    shape = contents("batch", -1, 384)
    condition = ops.Equal().infer(shape, contents(-1))
    assert condition.known == (0, 1, 0)
    assert ops.Where().infer(condition, contents(1, 1, 1), shape).known == ("batch", 1, 384)
    assert ops.Equal().infer(contents("batch"), contents(3)).known is None


def test_violated_constraints_are_named():
    with pytest.raises(VerifyError, match="C1"):
        ops.Exp().infer(tensor(dtypes.i64, 3))
    with pytest.raises(VerifyError, match="C3"):
        ops.Add().infer(tensor(dtypes.f32, 3), tensor(dtypes.f16, 3))
    with pytest.raises(VerifyError, match="broadcast"):
        ops.Add().infer(tensor(dtypes.f32, 3), tensor(dtypes.f32, 4))
    with pytest.raises(VerifyError, match="C3"):
        ops.Clip(0.5).infer(tensor(dtypes.i64, 3))
    with pytest.raises(VerifyError, match="C4"):
        ops.Mod().infer(tensor(dtypes.f32, 3), tensor(dtypes.f32, 3))
