"""Ops that move, pick and join: they do the same to codes, if all operands have the codes of the result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from planish.ir import dtypes, fixedpoint, ops
from planish.ir.data import Data
from planish.ir.graph import Node, Value
from planish.ir.op import constant
from planish.ir.types import Quant
from planish.passes.integer.conversion import Built, Conversion, Operand, Want
from planish.passes.integer.forms import SUM, Form, Spec, column_scales
from planish.passes.integer.plan import Plan, is_real


class Movement(Conversion):
    """The op itself, on codes. Operands that aren't real (indices, shapes) stay as they are."""

    each = True

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        return [(i, form) for i, v in enumerate(node.operands) if is_real(v) for form in forms]

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Built:
        operands = (operand(i, form) if is_real(v) else v for i, v in enumerate(node.operands))
        moved: Built = self._op(node, form)(*operands)
        return moved

    def _op(self, node: Node, form: Form) -> Any:
        return node.op


class PadMovement(Movement):
    """Pad, with the code of the number that it fills with."""

    def _op(self, node: Node, form: Form) -> Any:
        op = node.op
        assert isinstance(op, ops.Pad)
        if not isinstance(form, Spec):
            return op
        code = fixedpoint.quantized(np.asarray(float(op.value)), form.dtype, form.scale, form.zero)
        return ops.Pad(op.pads, op.mode, int(code))


class GatherConversion(Movement):
    """Gather: rows of a constant table are 8-bit codes with a scale per column (embeddings); else as movement."""

    def accumulates(self, node: Node) -> bool:
        return _is_embedding(node)

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        return [] if _is_embedding(node) else super().wants(node, forms, plan)

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Built:
        if not _is_embedding(node):
            return super().build(node, form, operand, plan)
        data = constant(node.operands[0])
        assert data is not None
        array = data.numpy().astype(np.float64)
        scales = column_scales(array, 1)
        table = Data(fixedpoint.quantized(array, dtypes.i8, scales), Quant(tuple(scales.tolist()), 0, 1))
        rows: Value = node.op(table, node.operands[1])
        return rows


def _is_embedding(node: Node) -> bool:
    data, op = constant(node.operands[0]), node.op
    return data is not None and len(data.type.dims) == 2 and isinstance(op, ops.Gather) and op.axis == 0


class CastConversion(Conversion):
    """Cast of an integer to a float -> the integer itself, as codes of scale 1; of a float to a float: nothing."""

    sums = True

    def refuses(self, node: Node, plan: Plan) -> str:
        source = node.inputs[0].tensor.dtype
        if not node.result.tensor.dtype.is_float or source.is_float or source.is_integer or source == dtypes.boolean:
            return ""
        return f"it reads {source}"

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        return [(0, SUM)] if is_real(node.inputs[0]) else []

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Value:
        x = node.inputs[0]
        if is_real(x):
            return operand(0, SUM)
        if x.tensor.dtype == dtypes.boolean:
            x = ops.Cast(dtypes.u8)(x)
        elif x.tensor.dtype.bits > 32 or x.tensor.dtype == dtypes.u32:
            x = ops.Cast(dtypes.i32)(x)
        codes: Value = ops.FromCodes(1.0)(x)
        return codes
