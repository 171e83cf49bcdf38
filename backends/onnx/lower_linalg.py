"""Matrix products and convolution to ONNX."""

from __future__ import annotations

import onnx_ir as onnx

from planish.backends.onnx.emitter import Emitter, Lowered, Lowering, expanded
from planish.backends.onnx.lower_elementwise import plain
from planish.ir import dtypes, ops
from planish.ir.graph import Node
from planish.ir.op import Op

Operands = list["onnx.Value | None"]


def _linear(e: Emitter, node: Node, x: Operands) -> Lowered:
    bias = x[2] if len(x) > 2 else None
    if bias is None:
        return e.op("MatMul", x[0], x[1])
    data = node.inputs[0].tensor
    if data.rank == 2 and data.dtype in (dtypes.f32, dtypes.f16, dtypes.f64):
        return e.op("Gemm", x[0], x[1], bias)
    return e.op("Add", e.op("MatMul", x[0], x[1]), bias)


def _conv(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.Conv)
    kernel = [dim for dim in node.inputs[1].tensor.dims[2:] if isinstance(dim, int)]
    shape = {"kernel_shape": kernel} if len(kernel) == len(op.strides) else {}
    return e.op("Conv", *x, **shape, strides=op.strides, pads=op.pads, dilations=op.dilations, group=op.group)


LOWERINGS: dict[type[Op], Lowering] = {
    ops.MatMul: plain,
    ops.Linear: _linear,
    ops.Conv: _conv,
    **dict.fromkeys((ops.Binarize, ops.AddMatMul, ops.ReluMLP), expanded),
}
