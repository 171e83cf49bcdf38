"""Products by codes of a codebook as sums of products of codes: the weights are codes already, and stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from planish.ir import ops
from planish.ir.graph import Node, Value
from planish.ir.op import constant
from planish.ir.ops.quantize import quant_of
from planish.ir.types import Quant
from planish.passes.integer.conversion import Conversion, Operand, Want
from planish.passes.integer.forms import Form, Spec
from planish.passes.integer.plan import Plan
from planish.passes.integer.products import BIAS_ROOM, bias_codes, wide_input


class _ShiftConversion(Conversion):
    """Base: the operands are codes, weights, bias."""

    heavy = True
    sums = True

    def refuses(self, node: Node, plan: Plan) -> str:
        if any(constant(v) is None for v in node.inputs[1:]):
            return "its weights are computed"
        bias, scale = _bias(node), self.input(node, plan).scale
        if bias is not None and np.any(np.abs(bias) > BIAS_ROOM * scale * _quant(node).scales):
            return "its bias is too large for sums on the scale of its weights"
        return ""

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        return [(0, self.input(node, plan))]

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Value:
        spec, bias = self.input(node, plan), _bias(node)
        codes = None if bias is None else bias_codes(bias, _quant(node), spec.scale)
        result: Value = self.product(node)(operand(0, spec), constant(node.operands[1]), codes)
        return result

    def input(self, node: Node, plan: Plan) -> Spec:
        """Codes of the activations."""
        return plan.operand(node.inputs[0])

    def product(self, node: Node) -> ops.IntLinear | ops.IntConv:
        """The op on codes."""
        raise NotImplementedError


class ShiftLinearConversion(_ShiftConversion):
    """ShiftLinear -> IntLinear, by activations of 16 bits where 8 would be too noisy."""

    def input(self, node: Node, plan: Plan) -> Spec:
        if not plan.is_wide(node):
            return plan.operand(node.inputs[0])
        data = constant(node.operands[1])
        assert data is not None
        return wide_input(node.inputs[0], data.numpy(), plan)

    def product(self, node: Node) -> ops.IntLinear:
        return ops.IntLinear()


class ShiftConvConversion(_ShiftConversion):
    """ShiftConv -> IntConv."""

    def product(self, node: Node) -> ops.IntConv:
        op = node.op
        assert isinstance(op, ops.ShiftConv)
        return ops.IntConv(op.strides, op.pads, op.dilations, op.group)


def _quant(node: Node) -> Quant:
    return quant_of("w", node.inputs[1].tensor)


def _bias(node: Node) -> np.ndarray | None:
    data = constant(node.operands[2]) if len(node.operands) > 2 else None
    return None if data is None else data.numpy().astype(np.float64)
