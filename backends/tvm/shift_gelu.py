"""Exponentials by shifts, and I-ViT's GELU from them, as expressions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.scope import Expr, Index
from planish.ir import ops
from planish.ir.graph import Node
from planish.ir.ops.int_gelu import GELU_BITS, GELU_STEPS

if TYPE_CHECKING:
    from planish.backends.tvm.expressions import Reader


def shift_exp(distance: Expr, unit: int, steps: int) -> Expr:
    """As `planish.ir.fixedpoint.shift_exp`, for int64 expressions."""
    one, size = T.int64(1), T.int64(unit)
    half, sixteenth = (distance + one) >> one, (distance + T.int64(15)) >> T.int64(4)
    p = T.min(distance + half - sixteenth, T.int64(steps * unit))
    q = T.truncdiv(p, size)
    return ((T.int64(2 * unit) - (p - q * size)) << (T.int64(steps) - q)) >> one


def shift_gelu(node: Node, reader: Reader, index: Index) -> Expr:
    """An element of ShiftGelu."""
    assert isinstance(node.op, ops.ShiftGelu)
    x, unit = T.cast(reader.at(node.inputs[0], index), "int64"), node.op.unit(node.inputs[0].tensor)
    one = T.int64(unit << GELU_STEPS)
    e = shift_exp(T.max(x, T.int64(0) - x), unit, GELU_STEPS)
    sigmoid = T.Select(x >= T.int64(0), one, e) * T.truncdiv(T.int64(2**31 - 1), e + one)
    return T.cast(x * (sigmoid >> T.int64(32 - GELU_BITS)), "int32")
