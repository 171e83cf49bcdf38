"""Norms of codes to ONNX, in int64 on rows; the square root by Newton's method from a seed of the right size."""

from __future__ import annotations

import numpy as np
import onnx_ir as onnx

from planish.backends.onnx.casts import cast, i64
from planish.backends.onnx.emitter import Emitter, Lowered, Lowering
from planish.backends.onnx.lower_integer import centred, saturated, shift_right
from planish.ir import dtypes, ops
from planish.ir.fixedpoint import NEWTON_STEPS
from planish.ir.graph import Node
from planish.ir.op import Op
from planish.ir.ops.int_norm import NORM_BITS, RECIPROCAL_BITS

Operands = list["onnx.Value | None"]


def isqrt(e: Emitter, v: onnx.Value) -> onnx.Value:
    """floor(sqrt(v)), at least 1, of int64 v [..., 1] >= 0: as `fixedpoint.isqrt`, step by step."""
    powers = i64(e, np.int64(1) << np.arange(62, dtype=np.int64))
    reached = cast(e, e.op("GreaterOrEqual", v, powers), dtypes.i64)
    bits = e.op("ReduceSum", reached, e.ints((-1,)), keepdims=1)
    exponent = cast(e, e.op("Div", e.op("Add", bits, i64(e, 1)), i64(e, 2)), dtypes.u64)
    one = e.constant(np.asarray(1, np.uint64), "integer")
    root = cast(e, e.op("BitShift", one, exponent, direction="LEFT"), dtypes.i64)
    for _ in range(NEWTON_STEPS):
        quotient = e.op("Div", v, e.op("Max", root, i64(e, 1)))
        root = e.op("Min", root, e.op("Div", e.op("Add", root, quotient), i64(e, 2)))
    return e.op("Max", root, i64(e, 1))


def _norm(e: Emitter, node: Node, x: Operands) -> Lowered:
    op, type_ = node.op, node.inputs[0].tensor
    assert isinstance(op, ops.IntLayerNorm | ops.IntRMSNorm)
    channels = int(type_.dims[-1])
    codes = centred(e, x[0], type_)
    squares = e.op("ReduceSum", e.op("Mul", codes, codes), e.ints((-1,)), keepdims=1)
    variance = e.op("Mul", squares, i64(e, channels))
    lifted = e.op("Mul", codes, i64(e, channels))
    if op.centre:
        total = e.op("ReduceSum", codes, e.ints((-1,)), keepdims=1)
        variance = e.op("Sub", variance, e.op("Mul", total, total))
        lifted = e.op("Sub", lifted, total)
    root = isqrt(e, e.op("Add", variance, i64(e, op.epsilon(type_))))
    reciprocal = e.op("Div", i64(e, np.int64(1) << RECIPROCAL_BITS), root)
    z = shift_right(e, e.op("Mul", lifted, reciprocal), RECIPROCAL_BITS - NORM_BITS)
    return _affine(e, node, x, z)


def _published(e: Emitter, node: Node, x: Operands) -> Lowered:
    """ShiftLayerNorm. Dividends that may be negative are lifted by a multiple of the divisor."""
    type_ = node.inputs[0].tensor
    channels = int(type_.dims[-1])
    codes = centred(e, x[0], type_)
    total = e.op("ReduceSum", codes, e.ints((-1,)), keepdims=1)
    lift = 1 << 20  # more than any code
    dividend = e.op("Add", e.op("Mul", total, i64(e, 2)), i64(e, channels + 2 * channels * lift))
    mean = e.op("Sub", e.op("Div", dividend, i64(e, 2 * channels)), i64(e, lift))
    distance = e.op("Sub", codes, mean)
    root = isqrt(e, e.op("ReduceSum", e.op("Mul", distance, distance), e.ints((-1,)), keepdims=1))
    scaled = e.op("Mul", distance, e.op("Div", i64(e, 2**31 - 1), root))
    even = e.op("Add", scaled, i64(e, 1 << 40))  # >> 1 of a number made non-negative by an even one
    return _affine(e, node, x, e.op("Sub", e.op("Div", even, i64(e, 2)), i64(e, 1 << 39)))


def _affine(e: Emitter, node: Node, x: Operands, z: onnx.Value) -> onnx.Value:
    op = node.op
    assert isinstance(op, ops.IntLayerNorm | ops.IntRMSNorm | ops.ShiftLayerNorm)
    y = e.op("Mul", z, cast(e, x[1], dtypes.i64))
    if len(x) > 2 and x[2] is not None:
        y = e.op("Add", y, x[2])
    shift = op.shift(node.inputs[0].tensor, node.inputs[1].tensor)
    return saturated(e, shift_right(e, y, shift, op.zero), op.to)


LOWERINGS: dict[type[Op], Lowering] = {
    **dict.fromkeys((ops.IntLayerNorm, ops.IntRMSNorm), _norm),
    ops.ShiftLayerNorm: _published,
}
