"""Reductions to ONNX, operator sets 7 to the newest: axes as attribute or operand, negative or not."""

from __future__ import annotations

import onnx_ir as onnx

from planish.backends.onnx.emitter import Emitter, Lowered, Lowering
from planish.ir import ops
from planish.ir.graph import Node
from planish.ir.op import Op

Operands = list["onnx.Value | None"]


def reduce(e: Emitter, node: Node, x: Operands) -> Lowered:
    """Any reduction over a set of axes; the planish op has the ONNX name."""
    op = node.op
    assert isinstance(op, _REDUCTIONS)
    axes = spoken_axes(e, op.axes, len(node.inputs[0].tensor.dims))
    if e.opset >= (13 if isinstance(op, ops.ReduceSum) else 18):
        return e.op(op.name, x[0], e.ints(axes), keepdims=op.keepdims)
    return e.op(op.name, x[0], axes=axes, keepdims=op.keepdims)


def _arg_max(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.ArgMax)
    (axis,) = spoken_axes(e, (op.axis,), len(node.inputs[0].tensor.dims))
    return e.op("ArgMax", x[0], axis=axis, keepdims=op.keepdims)


def mean(e: Emitter, x: onnx.Value | None, axes: tuple[int, ...], rank: int) -> onnx.Value:
    """Mean over axes, which are kept with extent 1."""
    if e.opset >= 18:
        return e.op("ReduceMean", x, e.ints(axes), keepdims=1)
    return e.op("ReduceMean", x, axes=spoken_axes(e, axes, rank), keepdims=1)


def spoken_axes(e: Emitter, axes: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Axes as the operator set takes them: counted from the start before 11."""
    return axes if e.opset >= 11 else tuple(axis % rank for axis in axes)


_REDUCTIONS = (
    *(ops.ReduceMean, ops.ReduceSum, ops.ReduceMax, ops.ReduceMin, ops.ReduceProd, ops.ReduceL2),
    ops.ReduceSumSquare,
)

LOWERINGS: dict[type[Op], Lowering] = {**dict.fromkeys(_REDUCTIONS, reduce), ops.ArgMax: _arg_max}
