"""Attention and rotary embedding to ONNX."""

from __future__ import annotations

import onnx_ir as onnx

from planish.backends.onnx.emitter import Emitter, Lowered, Lowering, expanded
from planish.ir import ops
from planish.ir.graph import Node
from planish.ir.op import Op

Operands = list["onnx.Value | None"]


def _attention(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.Attention)
    # ONNX Runtime 1.32 has a kernel for the op as of 23 and 24; that of 25 it expands, and fails to for some shapes
    if e.dialect.spellings.attention == "standard" and 23 <= e.opset < 25:
        return e.op("Attention", *x, scale=op.scale, is_causal=op.causal)
    return e.expand(node)


def _rotary(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.RotaryEmbedding)
    data, cos = (v.tensor.dims for v in node.inputs[:2])
    if e.dialect.spellings.rotary == "standard" and e.opset >= 23 and cos[0] == data[0]:
        return e.op("RotaryEmbedding", *x, interleaved=op.interleaved)
    return e.expand(node)


LOWERINGS: dict[type[Op], Lowering] = {
    ops.Attention: _attention,
    ops.SparseAttention: expanded,
    ops.RotaryEmbedding: _rotary,
}
