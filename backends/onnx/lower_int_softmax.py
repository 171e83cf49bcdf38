"""Softmax and GELU of codes to ONNX: tables by GatherElements, shifts on uint64."""

from __future__ import annotations

import numpy as np
import onnx_ir as onnx

from planish.backends.onnx.casts import cast, i64
from planish.backends.onnx.emitter import Emitter, Lowered, Lowering
from planish.backends.onnx.lower_integer import centred, looked_up
from planish.ir import dtypes, ops
from planish.ir.graph import Node
from planish.ir.op import Op
from planish.ir.ops.int_gelu import GELU_BITS, GELU_STEPS
from planish.ir.ops.int_softmax import EXP_ENTRIES, SHIFT_STEPS, SOFTMAX_UNIT

Operands = list["onnx.Value | None"]


def _i32(e: Emitter, number: int) -> onnx.Value:
    return e.constant(np.asarray(number, np.int32), "integer")


def _row_max(e: Emitter, x: onnx.Value) -> onnx.Value:
    if e.opset >= 18:
        return e.op("ReduceMax", x, e.ints((-1,)), keepdims=1)
    return e.op("ReduceMax", x, axes=(-1,), keepdims=1)


def below_max(e: Emitter, x: onnx.Value, entries: int) -> onnx.Value:
    """min(row max - x, entries - 1) of int32."""
    return e.op("Min", e.op("Sub", _row_max(e, x), x), _i32(e, entries - 1))


def _exp(e: Emitter, node: Node, x: Operands) -> Lowered:
    op, type_ = node.op, node.inputs[0].tensor
    assert isinstance(op, ops.IntExp)
    codes = cast(e, x[0], dtypes.i32)
    keep = x[1] if len(x) > 1 else None
    if keep is not None:
        codes = e.op("Where", keep, codes, _i32(e, type_.dtype.min))
    distance = below_max(e, codes, EXP_ENTRIES)
    y = looked_up(e, op.table(type_).astype(np.uint8), distance, node.result)
    return y if keep is None else e.op("Where", keep, y, e.constant(np.asarray(0, np.uint8), "integer"))


def _softmax(e: Emitter, node: Node, x: Operands) -> Lowered:
    op, type_ = node.op, node.inputs[0].tensor
    assert isinstance(op, ops.IntSoftmax)
    table = op.table(type_)
    length = type_.dims[-1]
    # e * levels and half the sum stay below 2**30 each
    narrow = op.levels <= SOFTMAX_UNIT and isinstance(length, int) and length < 1 << 15
    wide = dtypes.i32 if narrow else dtypes.i64

    def number(n: int) -> onnx.Value:
        return e.constant(np.asarray(n, wide.storage), "integer")

    distance = below_max(e, cast(e, x[0], dtypes.i32), len(table))
    power = looked_up(e, table.astype(wide.storage), distance, node.result)
    total = e.op("ReduceSum", power, e.ints((-1,)), keepdims=1)
    dividend = e.op("Add", e.op("Mul", power, number(op.levels)), e.op("Div", total, number(2)))
    return cast(e, e.op("Div", dividend, total), op.to)


def shift_exp(e: Emitter, distance: onnx.Value, unit: int, steps: int) -> onnx.Value:
    """`fixedpoint.shift_exp` of int64 >= 0: halves and sixteenths are quotients, since nothing is negative."""
    half = e.op("Div", e.op("Add", distance, i64(e, 1)), i64(e, 2))
    sixteenth = e.op("Div", e.op("Add", distance, i64(e, 15)), i64(e, 16))
    p = e.op("Min", e.op("Sub", e.op("Add", distance, half), sixteenth), i64(e, steps * unit))
    q = e.op("Div", p, i64(e, unit))
    mantissa = e.op("Sub", i64(e, 2 * unit), e.op("Sub", p, e.op("Mul", q, i64(e, unit))))
    amount = cast(e, e.op("Sub", i64(e, steps), q), dtypes.u64)
    lifted = e.op("BitShift", cast(e, mantissa, dtypes.u64), amount, direction="LEFT")
    one = e.constant(np.asarray(1, np.uint64), "shift")
    return cast(e, e.op("BitShift", lifted, one, direction="RIGHT"), dtypes.i64)


def _shiftmax(e: Emitter, node: Node, x: Operands) -> Lowered:
    op, type_ = node.op, node.inputs[0].tensor
    assert isinstance(op, ops.Shiftmax)
    codes = centred(e, x[0], type_, dtypes.i32)
    distance = cast(e, e.op("Sub", _row_max(e, codes), codes), dtypes.i64)
    power = shift_exp(e, distance, op.unit(type_), SHIFT_STEPS)
    factor = e.op("Div", i64(e, 2**31 - 1), e.op("ReduceSum", power, e.ints((-1,)), keepdims=1))
    y = e.op("Div", e.op("Mul", power, factor), i64(e, 1 << (32 - op.bits)))
    return cast(e, y, node.result.tensor.dtype)


def _shift_gelu(e: Emitter, node: Node, x: Operands) -> Lowered:
    op, type_ = node.op, node.inputs[0].tensor
    assert isinstance(op, ops.ShiftGelu)
    codes = cast(e, x[0], dtypes.i64)
    unit = op.unit(type_)
    one = i64(e, unit << GELU_STEPS)
    power = shift_exp(e, e.op("Abs", codes), unit, GELU_STEPS)
    numerator = e.op("Where", e.op("GreaterOrEqual", codes, i64(e, 0)), one, power)
    factor = e.op("Div", i64(e, 2**31 - 1), e.op("Add", power, one))
    sigmoid = e.op("Div", e.op("Mul", numerator, factor), i64(e, 1 << (32 - GELU_BITS)))
    return cast(e, e.op("Mul", codes, sigmoid), dtypes.i32)


LOWERINGS: dict[type[Op], Lowering] = {
    ops.IntExp: _exp,
    ops.IntSoftmax: _softmax,
    ops.Shiftmax: _shiftmax,
    ops.ShiftGelu: _shift_gelu,
}
