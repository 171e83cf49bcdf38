"""Ops that move data to ONNX, operator sets 7 to the newest."""

from __future__ import annotations

import onnx_ir as onnx

from planish.backends.onnx.emitter import Emitter, Lowered, Lowering
from planish.backends.onnx.lower_elementwise import plain
from planish.ir import ops
from planish.ir.graph import Node
from planish.ir.op import Op

Operands = list["onnx.Value | None"]


def _reshape(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.Reshape)
    return e.op("Reshape", x[0], e.ints(op.shape))


def _dynamic_reshape(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.DynamicReshape)
    if not op.allow_zero:
        return e.op("Reshape", *x)
    if e.opset < 14:
        e.unsupported("Reshape to dimensions of zero")
    return e.op("Reshape", *x, allowzero=1)


def _transpose(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.Transpose)
    return e.op("Transpose", *x, perm=op.perm) if op.perm else e.op("Identity", *x)


def _axis(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.Concat | ops.Gather)
    return e.op(op.name, *x, axis=op.axis)


def _split(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.Split)
    if e.opset >= 13:
        return e.call("", "Split", (x[0], e.ints(op.sizes)), {"axis": op.axis}, len(op.sizes))
    return e.call("", "Split", x, {"axis": op.axis, "split": op.sizes}, len(op.sizes))


def _slice(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.Slice)
    if not op.axes:
        return e.op("Identity", *x)
    unit = all(step == 1 for step in op.steps)
    if e.opset >= 10:
        return e.op("Slice", x[0], *map(e.ints, (op.starts, op.ends, op.axes)), None if unit else e.ints(op.steps))
    if not unit:
        e.unsupported("Slice with steps")
    return e.op("Slice", x[0], starts=op.starts, ends=op.ends, axes=op.axes)


def _squeeze(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.Squeeze | ops.Unsqueeze)
    if not op.axes:
        return e.op("Identity", *x)
    if e.opset >= 13:
        return e.op(op.name, x[0], e.ints(op.axes))
    return e.op(op.name, x[0], axes=op.axes)


def _tile(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.Tile)
    return e.op("Tile", x[0], e.ints(op.repeats))


def _constant_of_shape(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.ConstantOfShape)
    return e.op("ConstantOfShape", *x, value=op.value)


def _pad(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.Pad)
    constant = op.mode == "constant"
    if op.mode == "wrap" and e.opset < 19:
        e.unsupported("Pad that wraps around")
    if e.opset >= 11:
        value = e.scalar(op.value, node.result) if constant and op.value else None
        return e.op("Pad", x[0], e.ints(op.pads), value, mode=op.mode)
    if not node.result.tensor.dtype.is_float:
        e.unsupported("Pad of integers")
    return e.op("Pad", x[0], pads=op.pads, mode=op.mode, value=float(op.value))


LOWERINGS: dict[type[Op], Lowering] = {
    ops.Reshape: _reshape,
    ops.DynamicReshape: _dynamic_reshape,
    ops.Transpose: _transpose,
    ops.Concat: _axis,
    ops.Gather: _axis,
    ops.Split: _split,
    ops.Slice: _slice,
    ops.Squeeze: _squeeze,
    ops.Unsqueeze: _squeeze,
    ops.Tile: _tile,
    ops.Expand: plain,
    ops.Shape: plain,
    ops.Size: plain,
    ops.Range: plain,
    ops.ConstantOfShape: _constant_of_shape,
    ops.Pad: _pad,
}
