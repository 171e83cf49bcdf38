"""Pooling to ONNX."""

from __future__ import annotations

import onnx_ir as onnx

from planish.backends.onnx.emitter import Emitter, Lowered, Lowering
from planish.ir import ops
from planish.ir.graph import Node
from planish.ir.op import Op

Operands = list["onnx.Value | None"]


def _max_pool(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.MaxPool)
    spread = {"dilations": op.dilations} if any(d != 1 for d in op.dilations) else {}  # an attribute since 10
    return e.op("MaxPool", *x, kernel_shape=op.kernel, strides=op.strides, pads=op.pads, **spread)


def _average_pool(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.AveragePool)
    counted = {"count_include_pad": 1} if op.count_include_pad else {}
    return e.op("AveragePool", *x, kernel_shape=op.kernel, strides=op.strides, pads=op.pads, **counted)


LOWERINGS: dict[type[Op], Lowering] = {ops.MaxPool: _max_pool, ops.AveragePool: _average_pool}
