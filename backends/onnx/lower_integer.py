"""Codes to ONNX: scales and zero points, tables, sums of two scales. Integer ops only, but at the float border.

Signed floor shifts go through uint64: ONNX shifts unsigned numbers only. Products of 64 bits are offset by 2**62 first,
which makes them non-negative.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as onnx

from planish.backends.onnx.casts import cast, i64
from planish.backends.onnx.emitter import Emitter, Lowered, Lowering
from planish.backends.onnx.shift_arithmetic import times
from planish.ir import dtypes, ops
from planish.ir.dtypes import DType
from planish.ir.fixedpoint import Dyadic
from planish.ir.graph import Node, Value
from planish.ir.op import Op
from planish.ir.ops.quantize import quant_of, rescaling
from planish.ir.types import TensorType

Operands = list["onnx.Value | None"]
_OFFSET = 62  # the power of two that makes 64-bit products non-negative


def centred(e: Emitter, x: onnx.Value | None, type_: TensorType, to: DType = dtypes.i64) -> onnx.Value:
    """Codes less their zero point, in a wider type."""
    wide = cast(e, x, to) if type_.dtype != to else x
    zero = quant_of("x", type_).zero
    if zero:
        wide = e.op("Sub", wide, e.constant(np.asarray(zero, to.storage), "zero_point"))
    assert wide is not None
    return wide


def shift_right(e: Emitter, x: onnx.Value, shift: int, add: int = 0) -> onnx.Value:
    """(x + 2**(shift - 1)) >> shift + add for int64 x of magnitude at most 2**62: rounding half up."""
    lifted = cast(e, e.op("Add", x, i64(e, (1 << (shift - 1)) + (1 << _OFFSET))), dtypes.u64)
    shifted = e.op("BitShift", lifted, e.constant(np.asarray(shift, np.uint64), "shift"), direction="RIGHT")
    return e.op("Sub", cast(e, shifted, dtypes.i64), i64(e, (1 << (_OFFSET - shift)) - add))


def rescaled(e: Emitter, x: onnx.Value | None, type_: TensorType, factor: Dyadic, add: int = 0) -> onnx.Value:
    """Codes of `type_` times a dyadic factor, rounded, as int64, plus a zero point."""
    q = centred(e, x, type_)
    if factor.is_one:
        return e.op("Add", q, i64(e, add)) if add else q
    if not e.dialect.spellings.multiply:
        scaled = cast(e, times(e, cast(e, q, dtypes.u64), factor.multiplier), dtypes.i64)
        return shift_right(e, scaled, factor.shift, add)
    multiplier = e.constant(factor.multiplier.astype(np.int32), "multiplier")  # half as large in the file
    return shift_right(e, e.op("Mul", q, cast(e, multiplier, dtypes.i64)), factor.shift, add)


def saturated(e: Emitter, x: onnx.Value, to: DType) -> onnx.Value:
    """int64 clipped to the range of `to`, stored as it."""
    return cast(e, e.op("Clip", x, i64(e, to.min), i64(e, to.max)), to)


def looked_up(e: Emitter, table: np.ndarray, index: onnx.Value, shaped: Value) -> onnx.Value:
    """table[index] for an index tensor of the shape of `shaped`. GatherElements on a vector is ORT's fast way."""
    flat = e.op("GatherElements", e.constant(table, "table"), e.op("Reshape", index, e.ints((-1,))), axis=0)
    return e.op("Reshape", flat, shape_of(e, index, shaped))


def shape_of(e: Emitter, x: onnx.Value, shaped: Value) -> onnx.Value:
    """The shape of `x` as an operand of Reshape: constant where at most one dimension is symbolic."""
    extents = shaped.tensor.dims
    if sum(not isinstance(dim, int) for dim in extents) <= 1 and 0 not in extents:
        return e.ints(dim if isinstance(dim, int) else -1 for dim in extents)
    return e.op("Shape", x)


def _quantize(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.Quantize)
    scale, zero = e.constant(np.asarray(op.scale, np.float32), "scale"), np.asarray(op.zero, op.to.storage)
    if op.to.bits == 8 or (op.to.bits == 16 and e.opset >= 21):
        return e.op("QuantizeLinear", x[0], scale, e.constant(zero, "zero_point"))
    rounded = e.op("Round", e.op("Div", x[0], scale))
    bounds = (e.constant(np.asarray(b - op.zero, np.float32), "bound") for b in (op.to.min, op.to.max))
    q = cast(e, e.op("Clip", rounded, *bounds), dtypes.i64)
    return saturated(e, e.op("Add", q, i64(e, op.zero)) if op.zero else q, op.to)


def _dequantize(e: Emitter, node: Node, x: Operands) -> Lowered:
    """Cast and Mul. ORT moves DequantizeLinear across Transpose and into products, and changes results by that."""
    type_ = node.inputs[0].tensor
    scale = quant_of("x", type_).along(len(type_.dims)).astype(np.float32)
    real = cast(e, centred(e, x[0], type_, dtypes.i32), dtypes.f32)
    return e.op("Mul", real, e.constant(scale if scale.size > 1 else scale.reshape(()), "scale"))


def _requantize(e: Emitter, node: Node, x: Operands) -> Lowered:
    op, type_ = node.op, node.inputs[0].tensor
    assert isinstance(op, ops.Requantize)
    return saturated(e, rescaled(e, x[0], type_, rescaling(type_, op.scale), op.zero), op.to)


def _add(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.IntAdd)
    a, b = node.inputs[0].tensor, node.inputs[1].tensor
    left = rescaled(e, x[0], a, rescaling(a, op.scale), op.zero)
    return saturated(e, e.op("Add", left, rescaled(e, x[1], b, rescaling(b, op.scale))), op.to)


def _same(e: Emitter, node: Node, x: Operands) -> Lowered:
    return e.op("Identity", x[0])


def _table(e: Emitter, node: Node, x: Operands) -> Lowered:
    type_ = node.inputs[0].tensor
    index = cast(e, x[0], dtypes.i32)
    if type_.dtype.min:
        index = e.op("Add", index, e.constant(np.asarray(-type_.dtype.min, np.int32), "integer"))
    flat = e.op("GatherElements", x[1], e.op("Reshape", index, e.ints((-1,))), axis=0)
    return e.op("Reshape", flat, shape_of(e, index, node.result))


LOWERINGS: dict[type[Op], Lowering] = {
    ops.Quantize: _quantize,
    ops.Dequantize: _dequantize,
    ops.Requantize: _requantize,
    ops.IntAdd: _add,
    ops.IntTable: _table,
    **dict.fromkeys((ops.ScaleBy, ops.FromCodes, ops.ToCodes), _same),
}
