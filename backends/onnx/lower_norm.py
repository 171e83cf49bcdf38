"""Normalisations and softmax to ONNX, operator sets 7 to the newest."""

from __future__ import annotations

import numpy as np
import onnx_ir as onnx

from planish.backends.onnx.emitter import Emitter, Lowered, Lowering
from planish.backends.onnx.lower_reduce import mean
from planish.ir import dtypes, ops
from planish.ir.graph import Node
from planish.ir.op import Op

Operands = list["onnx.Value | None"]
_EXACT_ENOUGH = (dtypes.f32, dtypes.f64)  # 16-bit floats are squared and summed in float32, by decomposition


def _layer_norm(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.LayerNorm)
    gamma = x[1] if len(x) > 1 and x[1] is not None else _ones(e, node, op.axis)
    if e.dialect.spellings.layer_norm == "standard" and e.opset >= 17 and gamma is not None:
        return e.op("LayerNormalization", x[0], gamma, *x[2:], axis=op.axis, epsilon=op.eps)
    if node.result.tensor.dtype not in _EXACT_ENOUGH:
        return e.expand(node)
    centered = e.op("Sub", x[0], _mean(e, node, x[0], op.axis))
    scaled = e.op("Div", centered, _root_mean_square(e, node, centered, op.axis, op.eps))
    scaled = scaled if gamma is None else e.op("Mul", scaled, gamma)
    return scaled if len(x) < 3 or x[2] is None else e.op("Add", scaled, x[2])


def _rms_norm(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.RMSNorm)
    gamma = x[1] if len(x) > 1 and x[1] is not None else _ones(e, node, op.axis)
    if e.dialect.spellings.rms_norm == "standard" and e.opset >= 23 and gamma is not None:
        return e.op("RMSNormalization", x[0], gamma, axis=op.axis, epsilon=op.eps)
    if node.result.tensor.dtype not in _EXACT_ENOUGH:
        return e.expand(node)
    scaled = e.op("Div", x[0], _root_mean_square(e, node, x[0], op.axis, op.eps))
    return scaled if gamma is None else e.op("Mul", scaled, gamma)


def _root_mean_square(e: Emitter, node: Node, x: onnx.Value | None, axis: int, eps: float) -> onnx.Value:
    """sqrt(mean(x**2) + eps), with Pow for the square: the spelling that ONNX Runtime fuses into one kernel."""
    square = e.op("Pow", x, e.scalar(2.0, node.result))
    return e.op("Sqrt", e.op("Add", _mean(e, node, square, axis), e.scalar(eps, node.result)))


def _mean(e: Emitter, node: Node, x: onnx.Value | None, axis: int) -> onnx.Value:
    return mean(e, x, tuple(range(axis, 0)), len(node.result.tensor.dims))


def _ones(e: Emitter, node: Node, axis: int) -> onnx.Value | None:
    """Ones in the shape of gamma, None if that shape isn't static."""
    shape = node.inputs[0].tensor.dims[axis:]
    static = [dim for dim in shape if isinstance(dim, int)]
    if len(static) != len(shape):
        return None
    return e.constant(np.ones(static, node.result.tensor.dtype.storage), "ones")


def _batch_norm(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.BatchNorm)
    return e.op("BatchNormalization", *x, epsilon=op.eps)


def _instance_norm(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.InstanceNorm)
    return e.op("InstanceNormalization", *x, epsilon=op.eps)


def _softmax(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.Softmax | ops.LogSoftmax)
    if e.opset >= 13:
        return e.op(op.name, *x, axis=op.axis)
    # Before 13 everything from the axis on was one row, so only the last axis means the same
    rank = len(node.result.tensor.dims)
    if op.axis == -1:
        return e.op(op.name, *x, axis=rank - 1)
    perm = list(range(rank))
    perm[op.axis], perm[-1] = perm[-1], perm[op.axis]
    return e.op("Transpose", e.op(op.name, e.op("Transpose", *x, perm=perm), axis=rank - 1), perm=perm)


LOWERINGS: dict[type[Op], Lowering] = {
    ops.LayerNorm: _layer_norm,
    ops.RMSNorm: _rms_norm,
    ops.BatchNorm: _batch_norm,
    ops.InstanceNorm: _instance_norm,
    ops.Softmax: _softmax,
    ops.LogSoftmax: _softmax,
}
