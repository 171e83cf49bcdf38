"""Elementwise ops on plain numbers as expressions of TIR: float32, integers and booleans.

Operands are named once (`let`), since expressions mention them several times and nest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm import float_math
from planish.backends.tvm.float_math import clip, is_nan, let, real
from planish.backends.tvm.scope import Expr, Index
from planish.ir import dtypes, ops
from planish.ir.graph import Node
from planish.ir.op import Op, constant
from planish.ir.types import TensorType

if TYPE_CHECKING:
    from planish.backends.tvm.expressions import Expression, Reader

_NUMBERS = (dtypes.f32, dtypes.i8, dtypes.i16, dtypes.i32, dtypes.i64, dtypes.u8, dtypes.u16, dtypes.u32, dtypes.u64)


def why_not(node: Node) -> str | None:
    """Why kernels on plain numbers can't take a node's element types; None if they can."""
    for value in (*node.inputs, *node.results):
        type_ = value.type
        if not isinstance(type_, TensorType) or type_.dtype not in (*_NUMBERS, dtypes.boolean):
            return f"{node.op.name} of {type_.dtype if isinstance(type_, TensorType) else type_}"
    if isinstance(node.op, ops.Pow | ops.ReduceL2 | ops.MatMul) and not node.inputs[0].tensor.dtype.is_float:
        return f"{node.op.name} of integers"
    if isinstance(node.op, ops.ReluMLP):
        known = [constant(value) for value in node.inputs[1:]]
        if not all(data is not None and data.size for data in known):
            return f"{node.op.name} of weights that aren't constant, or empty"
    return None


def number(value: float, dtype: dtypes.DType) -> Expr:
    """A constant of an element type."""
    if dtype.is_float:
        return real(value)
    return tirx.const(bool(value) if dtype == dtypes.boolean else int(value), str(dtype.storage))


def larger(x: Expr, y: Expr, dtype: dtypes.DType) -> Expr:
    """The greater of two; NaN if either is."""
    if not dtype.is_float:
        return T.Select(x >= y, x, y) if dtype != dtypes.boolean else T.Or(x, y)
    return let(x, lambda a: let(y, lambda b: T.Select(T.Or(a > b, is_nan(a)), a, b)))


def smaller(x: Expr, y: Expr, dtype: dtypes.DType) -> Expr:
    """The lesser of two; NaN if either is."""
    if not dtype.is_float:
        return T.Select(x <= y, x, y) if dtype != dtypes.boolean else T.And(x, y)
    return let(x, lambda a: let(y, lambda b: T.Select(T.Or(a < b, is_nan(a)), a, b)))


def _unary(function: Callable[[Expr], Expr]) -> Expression:
    def expression(node: Node, reader: Reader, index: Index) -> Expr:
        return let(reader.operand(node, 0, index), function)

    return expression


def _binary(function: Callable[[Expr, Expr, dtypes.DType], Expr]) -> Expression:
    def expression(node: Node, reader: Reader, index: Index) -> Expr:
        dtype = node.inputs[0].tensor.dtype
        return let(
            reader.operand(node, 0, index),
            lambda x: let(reader.operand(node, 1, index), lambda y: function(x, y, dtype)),
        )

    return expression


def _activation(function: Callable[[Op, Expr], Expr]) -> Expression:
    def expression(node: Node, reader: Reader, index: Index) -> Expr:
        return let(reader.operand(node, 0, index), lambda x: function(node.op, x))

    return expression


def _typed(function: Callable[[Expr, dtypes.DType], Expr]) -> Expression:
    def expression(node: Node, reader: Reader, index: Index) -> Expr:
        return let(reader.operand(node, 0, index), lambda x: function(x, node.inputs[0].tensor.dtype))

    return expression


def _absolute(x: Expr, dtype: dtypes.DType) -> Expr:
    if dtype.is_float:
        return T.reinterpret("float32", T.reinterpret("int32", x) & T.int32(0x7FFFFFFF))
    return x if dtype.kind == "uint" else T.Select(x < number(0, dtype), number(0, dtype) - x, x)


def _negative(x: Expr, dtype: dtypes.DType) -> Expr:
    return x * real(-1) if dtype.is_float else number(0, dtype) - x


def _sign(x: Expr, dtype: dtypes.DType) -> Expr:
    zero = number(0, dtype)
    above = T.Select(x > zero, number(1, dtype), x)  # zeros and NaN stay
    return above if dtype.kind == "uint" else T.Select(x < zero, number(-1, dtype), above)


def _signs(op: Op, x: Expr) -> Expr:
    assert isinstance(op, ops.Binarize)
    return T.Select(x >= real(0) if op.zero == 1 else x > real(0), real(1), real(-1))


def _rectified(x: Expr, dtype: dtypes.DType) -> Expr:
    return T.Select(x < number(0, dtype), number(0, dtype), x)


def _whole(x: Expr) -> Expr:
    """The nearest integer, halves to the even one: adding 2**23 leaves no room for a fraction."""

    def of(size: Expr) -> Expr:
        rounded = let(size + real(2.0**23), lambda sum_: T.Select(size < real(2.0**23), sum_ - real(2.0**23), size))
        sign = T.reinterpret("int32", x) & tirx.const(-(2**31), "int32")
        return T.reinterpret("float32", T.reinterpret("int32", rounded) | sign)

    return let(_absolute(x, dtypes.f32), of)


def _floor(x: Expr) -> Expr:
    return let(_whole(x), lambda r: T.Select(r > x, r - real(1), r))


def _ceil(x: Expr) -> Expr:
    return let(_whole(x), lambda r: T.Select(r < x, r + real(1), r))


def _softplus(x: Expr) -> Expr:
    rest = float_math.log(real(1) + float_math.exp(_absolute(x, dtypes.f32) * real(-1)))
    return _rectified(x, dtypes.f32) + rest


def _elu(op: Op, x: Expr) -> Expr:
    assert isinstance(op, ops.Elu)
    return T.Select(x < real(0), real(op.alpha) * (float_math.exp(x) - real(1)), x)


def _swish(op: Op, x: Expr) -> Expr:
    assert isinstance(op, ops.Swish)
    return x / (real(1) + float_math.exp(x * real(-op.alpha)))


def _leaky(op: Op, x: Expr) -> Expr:
    assert isinstance(op, ops.LeakyRelu)
    return T.Select(x < real(0), real(op.alpha) * x, x)


def _hard_sigmoid(op: Op, x: Expr) -> Expr:
    assert isinstance(op, ops.HardSigmoid)
    return clip(real(op.alpha) * x + real(op.beta), 0, 1)


def _hard_swish(x: Expr) -> Expr:
    return x * clip(x * real(1 / 6) + real(0.5), 0, 1)


def _gelu(op: Op, x: Expr) -> Expr:
    assert isinstance(op, ops.Gelu)
    return float_math.gelu(x, op.approximate)


def _clip(node: Node, reader: Reader, index: Index) -> Expr:
    op, dtype = node.op, node.result.tensor.dtype
    assert isinstance(op, ops.Clip)
    x = reader.operand(node, 0, index)
    if op.lo is not None:
        low = number(op.lo, dtype)
        x = let(x, lambda v: T.Select(v < low, low, v))
    if op.hi is not None:
        high = number(op.hi, dtype)
        x = let(x, lambda v: T.Select(v > high, high, v))
    return x


def _quotient(x: Expr, y: Expr, dtype: dtypes.DType) -> Expr:
    return x / y if dtype.is_float else T.truncdiv(x, _divisor(y, dtype))


def _divisor(y: Expr, dtype: dtypes.DType) -> Expr:
    """y, or 1 where it is 0: what that gives is undefined, but it must not stop the program."""
    return T.Select(tirx.EQ(y, number(0, dtype)), number(1, dtype), y)


def _remainder(node: Node, reader: Reader, index: Index) -> Expr:
    op, dtype = node.op, node.result.tensor.dtype
    assert isinstance(op, ops.Mod)
    x, y = (reader.operand(node, i, index) for i in (0, 1))
    if dtype.is_float:
        return T.call_pure_extern("float32", "fmodf", x, y)  # exact, which no short expression is
    function = T.truncmod if op.fmod else T.floormod
    return let(y, lambda v: function(x, _divisor(v, dtype)))


def _power(node: Node, reader: Reader, index: Index) -> Expr:
    x, y = (reader.operand(node, i, index) for i in (0, 1))
    data = constant(node.inputs[1])
    if data is not None and data.size == 1:
        exponent = float(data.numpy().reshape(()))
        if exponent == 2:
            return let(x, lambda v: v * v)
        if exponent == 3:
            return let(x, lambda v: v * v * v)
        if exponent == 0.5:
            return T.sqrt(x)
    return T.pow(x, T.cast(y, "float32"))


def _differ(x: Expr, y: Expr) -> Expr:
    """Of truth values, which can't be compared as numbers."""
    return T.Or(T.And(x, T.Not(y)), T.And(y, T.Not(x)))


def _cast(node: Node, reader: Reader, index: Index) -> Expr:
    before, after = node.inputs[0].tensor.dtype, node.result.tensor.dtype
    x = reader.operand(node, 0, index)
    if after == dtypes.boolean and before.is_float:
        return T.reinterpret("int32", _absolute(x, before)) > 0  # x != 0 would be false of NaN
    if after == dtypes.boolean and before.is_integer:
        return tirx.NE(x, number(0, before))
    return x if before == after else T.cast(x, str(after.storage))


def _where(node: Node, reader: Reader, index: Index) -> Expr:
    condition, x, y = (reader.operand(node, i, index) for i in range(3))
    return T.Select(condition, x, y)


def _batch_norm(node: Node, reader: Reader, index: Index) -> Expr:
    op = node.op
    assert isinstance(op, ops.BatchNorm)
    x, *parameters = node.inputs
    channel = (index[1],)
    data = [constant(value) for value in parameters]
    if all(d is not None for d in data):
        gamma, beta, mean, var = (d.numpy().astype(np.float64) for d in data if d is not None)
        scale = gamma / np.sqrt(var + op.eps)
        factor = reader.scope.constant((node, "scale"), scale.astype(np.float32))
        offset = reader.scope.constant((node, "offset"), (beta - mean * scale).astype(np.float32))
        return T.fma(reader.at(x, index), factor[channel], offset[channel])
    gamma_at, beta_at, mean_at, var_at = (reader.at(value, channel) for value in parameters)
    return (reader.at(x, index) - mean_at) / T.sqrt(var_at + real(op.eps)) * gamma_at + beta_at


FLOAT_POINTWISE: Mapping[type[Op], Expression] = {
    ops.Abs: _typed(_absolute),
    ops.Neg: _typed(_negative),
    ops.Sign: _typed(_sign),
    ops.Binarize: _activation(_signs),
    ops.Relu: _typed(_rectified),
    ops.Sqrt: _unary(T.sqrt),
    ops.Reciprocal: _unary(lambda x: real(1) / x),
    ops.Exp: _unary(float_math.exp),
    ops.Log: _unary(float_math.log),
    ops.Erf: _unary(float_math.erf),
    ops.Tanh: _unary(float_math.tanh),
    ops.Sigmoid: _unary(float_math.sigmoid),
    ops.Sin: _unary(T.sin),
    ops.Cos: _unary(T.cos),
    ops.Floor: _unary(_floor),
    ops.Ceil: _unary(_ceil),
    ops.Round: _unary(_whole),
    ops.Not: _unary(T.Not),
    ops.IsNaN: _unary(is_nan),
    ops.Softplus: _unary(_softplus),
    ops.HardSwish: _unary(_hard_swish),
    ops.Gelu: _activation(_gelu),
    ops.Swish: _activation(_swish),
    ops.Elu: _activation(_elu),
    ops.LeakyRelu: _activation(_leaky),
    ops.HardSigmoid: _activation(_hard_sigmoid),
    ops.Clip: _clip,
    ops.Cast: _cast,
    ops.Add: _binary(lambda x, y, _: x + y),
    ops.Sub: _binary(lambda x, y, _: x - y),
    ops.Mul: _binary(lambda x, y, _: x * y),
    ops.Div: _binary(_quotient),
    ops.Mod: _remainder,
    ops.Pow: _power,
    ops.Max: _binary(larger),
    ops.Min: _binary(smaller),
    ops.Equal: _binary(lambda x, y, dtype: T.Not(_differ(x, y)) if dtype == dtypes.boolean else tirx.EQ(x, y)),
    ops.Less: _binary(lambda x, y, _: x < y),
    ops.LessOrEqual: _binary(lambda x, y, _: x <= y),
    ops.Greater: _binary(lambda x, y, _: x > y),
    ops.GreaterOrEqual: _binary(lambda x, y, _: x >= y),
    ops.And: _binary(lambda x, y, _: T.And(x, y)),
    ops.Or: _binary(lambda x, y, _: T.Or(x, y)),
    ops.Xor: _binary(lambda x, y, _: _differ(x, y)),
    ops.Where: _where,
    ops.BatchNorm: _batch_norm,
}
"""Ops that compute each element of their result from the elements of their operands at the same place."""
