"""The dialect without multiplications: which ops it has, and the lowerings that are other than elsewhere.

The integers are those of the ordinary lowerings, to the bit. Products of matrices, convolutions, Requantize and IntAdd
share their lowerings with those, which ask the dialect how to multiply; what divides or takes roots is written here.
"""

from __future__ import annotations

from math import isqrt

import numpy as np
import onnx_ir as onnx

from planish.backends.onnx import (
    lower_elementwise,
    lower_int_products,
    lower_int_softmax,
    lower_integer,
    lower_pool,
    lower_reduce,
    lower_shape,
    lower_tokens,
    without_multiply_tokens,
)
from planish.backends.onnx.casts import cast, i64
from planish.backends.onnx.emitter import Emitter, Lowered, Lowering
from planish.backends.onnx.lower_int_softmax import below_max
from planish.backends.onnx.lower_integer import centred, looked_up, saturated, shift_right
from planish.backends.onnx.shift_arithmetic import by_row, divided, left, right, root, square, times, word
from planish.ir import dtypes, ops
from planish.ir.graph import Node
from planish.ir.op import Op, constant
from planish.ir.ops.int_norm import NORM_BITS, RECIPROCAL_BITS
from planish.ir.ops.int_softmax import SOFTMAX_UNIT
from planish.ir.ops.quantize import quant_of
from planish.ir.types import TensorType

Operands = list["onnx.Value | None"]


def _widest(type_: TensorType) -> int:
    """Largest absolute value of codes less their zero point."""
    zero = quant_of("x", type_).zero
    return max(type_.dtype.max - zero, zero - type_.dtype.min)


def _constant_mul(e: Emitter, node: Node, x: Operands) -> Lowered:
    """Plain integers by a constant, modulo 2**bits."""
    dtype = node.result.tensor.dtype
    for value, number, factor in zip(x, reversed(x), reversed(node.operands), strict=True):
        data = constant(factor)
        if data is not None and dtype.is_integer and np.max(np.abs(data.numpy().astype(np.float64)), initial=0) < 2**60:
            e.spare(number)
            return cast(e, times(e, cast(e, value, dtypes.u64), data.numpy().astype(np.int64)), dtype)
    e.refuse(f"Mul of {dtype} without a constant")
    raise AssertionError  # unreachable; keeps type checkers content


def _mul(e: Emitter, node: Node, x: Operands) -> Lowered:
    """a b = floor((a + b)**2 / 4) - floor((a - b)**2 / 4), by one table of quarters of squares."""
    types = [value.tensor for value in node.inputs]
    a, b = (centred(e, v, type_, dtypes.i32) for v, type_ in zip(x, types, strict=True))
    table = np.arange(sum(map(_widest, types)) + 1, dtype=np.int64) ** 2 // 4
    ends = [e.op("Abs", e.op(step, a, b)) for step in ("Add", "Sub")]
    plus, minus = (looked_up(e, table.astype(np.int32), end, node.result) for end in ends)
    return e.op("Sub", plus, minus)


def _weighted_mean(e: Emitter, node: Node, x: Operands) -> Lowered:
    """floor((2**bits * total + weight / 2) / weight) with |total| <= 128 * weight: 128 * weight on top, 128 off."""
    op, weights = node.op, node.inputs[0].tensor
    assert isinstance(op, ops.IntWeightedMean)
    lift = 7
    total = cast(e, lower_int_products.product(e, node, x), dtypes.u64)
    sums = e.op("ReduceSum", cast(e, x[0], dtypes.i32), e.ints((-1,)), keepdims=1)
    weight = cast(e, e.op("Max", sums, e.constant(np.asarray(1, np.int32), "integer")), dtypes.u64)
    lifted = e.op("Add", total, left(e, weight, lift))
    dividend = e.op("Add", left(e, lifted, op.bits), right(e, weight, 1))
    length = weights.dims[-1]
    most = length * weights.dtype.max if isinstance(length, int) else dtypes.i32.max  # sums of weights have 32 bits
    mean = divided(e, dividend, weight, op.bits + lift + 1, most)
    return cast(e, e.op("Sub", mean, i64(e, 1 << (op.bits + lift))), dtypes.i32)


def _softmax(e: Emitter, node: Node, x: Operands) -> Lowered:
    """The table also holds the exponentials times the levels; the sum is at least that of the row's greatest."""
    op, type_ = node.op, node.inputs[0].tensor
    assert isinstance(op, ops.IntSoftmax)
    table = op.table(type_)
    distance = below_max(e, cast(e, x[0], dtypes.i32), len(table))
    power, scaled = (looked_up(e, t, distance, node.result) for t in (table, table * op.levels))
    total = e.op("ReduceSum", power, e.ints((-1,)), keepdims=1)
    length = type_.dims[-1]
    most = length * SOFTMAX_UNIT if isinstance(length, int) else 1 << 46
    weight = cast(e, total, dtypes.u64)
    dividend = e.op("Add", cast(e, scaled, dtypes.u64), right(e, weight, 1))
    return cast(e, divided(e, dividend, weight, op.levels.bit_length(), most), op.to)


def _norm(e: Emitter, node: Node, x: Operands) -> Lowered:
    """Squares by table, the root bit by bit, its reciprocal by restoring division, and a product with it by rows."""
    op, type_ = node.op, node.inputs[0].tensor
    assert isinstance(op, ops.IntLayerNorm | ops.IntRMSNorm)
    channels, most, widest = int(type_.dims[-1]), _widest(type_), op.widest(type_)
    factor = np.asarray(channels, np.int64)
    codes = centred(e, x[0], type_)
    table = np.arange(most + 1, dtype=np.int64) ** 2
    squares = looked_up(e, table, e.op("Abs", codes), node.result)
    squared = cast(e, e.op("ReduceSum", squares, e.ints((-1,)), keepdims=1), dtypes.u64)
    variance = times(e, squared, factor)
    lifted = times(e, cast(e, codes, dtypes.u64), factor)
    if op.centre:
        total = e.op("ReduceSum", codes, e.ints((-1,)), keepdims=1)
        size = cast(e, e.op("Abs", total), dtypes.u64)
        variance = e.op("Sub", variance, square(e, size, channels * most))
        lifted = e.op("Sub", lifted, cast(e, total, dtypes.u64))
    deviation = root(e, e.op("Add", variance, word(e, op.epsilon(type_))), widest)
    least, top = max(1, isqrt(op.epsilon(type_))), isqrt(widest)
    bits = ((1 << RECIPROCAL_BITS) // least).bit_length()
    reciprocal = divided(e, word(e, 1 << RECIPROCAL_BITS), deviation, bits, top)
    scaled = by_row(e, cast(e, lifted, dtypes.i64), cast(e, reciprocal, dtypes.u64), 2 * channels * most)
    z = shift_right(e, cast(e, scaled, dtypes.i64), RECIPROCAL_BITS - NORM_BITS)
    return _affine(e, node, x, z)


def _affine(e: Emitter, node: Node, x: Operands, z: onnx.Value) -> onnx.Value:
    op, gamma = node.op, constant(node.operands[1])
    assert isinstance(op, ops.IntLayerNorm | ops.IntRMSNorm)
    if gamma is None:
        e.refuse(f"{op.name} with a gamma that isn't constant")
        raise AssertionError  # unreachable; keeps type checkers content
    e.spare(x[1])
    y = cast(e, times(e, cast(e, z, dtypes.u64), gamma.numpy().astype(np.int64)), dtypes.i64)
    if len(x) > 2 and x[2] is not None:
        y = e.op("Add", y, x[2])
    shift = op.shift(node.inputs[0].tensor, node.inputs[1].tensor)
    return saturated(e, shift_right(e, y, shift, op.zero), op.to)


def _at_the_border(lowering: Lowering) -> Lowering:
    """Real numbers are scaled where they come in and where they go out, and nowhere else."""

    def lower(e: Emitter, node: Node, x: Operands) -> Lowered:
        outside = node.inputs[0].node is None or all(user.op.is_return for user in node.result.users)
        if not outside:
            e.refuse(f"{node.op.name} inside the graph")
        return lowering(e, node, x)

    return lower


_KEPT: tuple[tuple[dict[type[Op], Lowering], tuple[type[Op], ...]], ...] = (
    (
        lower_shape.LOWERINGS,
        (
            *(ops.Reshape, ops.DynamicReshape, ops.Transpose, ops.Concat, ops.Gather, ops.Split, ops.Slice),
            *(ops.Squeeze, ops.Unsqueeze, ops.Tile, ops.Expand, ops.Shape, ops.ConstantOfShape, ops.Pad),
        ),
    ),
    (
        lower_elementwise.LOWERINGS,
        (
            *(ops.Add, ops.Sub, ops.Neg, ops.Abs, ops.Max, ops.Min, ops.Clip, ops.Relu, ops.Identity, ops.Cast),
            *(ops.Equal, ops.Less, ops.Greater, ops.LessOrEqual, ops.GreaterOrEqual, ops.Where),
            *(ops.And, ops.Or, ops.Xor, ops.Not),
        ),
    ),
    (lower_reduce.LOWERINGS, (ops.ReduceSum, ops.ReduceMax, ops.ReduceMin, ops.ArgMax)),
    (lower_pool.LOWERINGS, (ops.MaxPool,)),
    (lower_tokens.LOWERINGS, (ops.TopTokens, ops.TakeTokens, ops.PlaceTokens)),
    (
        lower_integer.LOWERINGS,
        (ops.Requantize, ops.IntAdd, ops.IntTable, ops.ScaleBy, ops.FromCodes, ops.ToCodes),
    ),
    (
        lower_int_products.LOWERINGS,
        (ops.IntLinear, ops.IntMatMul, ops.IntAddMatMul, ops.IntBinaryMatMul, ops.IntConv, ops.IntReduceSum),
    ),
    (lower_int_softmax.LOWERINGS, (ops.IntExp,)),
)
"""Ops whose ordinary lowerings don't multiply, or not in this dialect."""

LOWERINGS: dict[type, Lowering] = {
    **{kind: lowerings[kind] for lowerings, kinds in _KEPT for kind in kinds},
    **{kind: _at_the_border(lower_integer.LOWERINGS[kind]) for kind in (ops.Quantize, ops.Dequantize)},
    **without_multiply_tokens.LOWERINGS,
    ops.Mul: _constant_mul,
    ops.IntMul: _mul,
    ops.IntWeightedMean: _weighted_mean,
    ops.IntSoftmax: _softmax,
    **dict.fromkeys((ops.IntLayerNorm, ops.IntRMSNorm), _norm),
}
"""How each op class is written without multiplications; all others are refused."""
