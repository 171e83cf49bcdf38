"""Products by codes of a codebook as sums of products of codes: the weights are codes already, and stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from planish.ir import dtypes, fixedpoint, ops
from planish.ir.data import Data
from planish.ir.graph import Node, Value
from planish.ir.op import constant
from planish.ir.types import Quant
from planish.passes.integer.conversion import Conversion, Operand, Want
from planish.passes.integer.forms import Form, Spec, operand_bits, symmetric
from planish.passes.integer.plan import Plan

_BIAS_ROOM = 2.0**30  # codes that a bias may take of the 2**31 of a sum


class _ShiftConversion(Conversion):
    """Base: the operands are codes, weights, bias."""

    heavy = True
    sums = True

    def refuses(self, node: Node, plan: Plan) -> str:
        if any(constant(v) is None for v in node.inputs[1:]):
            return "its weights are computed"
        bias = _bias(node)
        if bias is not None:
            sums = _weight(node).type.quant.times(self.input(node, plan).scale)  # type: ignore[union-attr]
            if np.any(np.abs(bias) > _BIAS_ROOM * sums.scales):
                return "its bias is too large for sums on the scale of its weights"
        return ""

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        return [(0, self.input(node, plan))]

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Value:
        spec, weight, bias = self.input(node, plan), _weight(node), _bias(node)
        operands: list[Value | Data] = [operand(0, spec), weight]
        if bias is not None:
            sums = weight.type.quant.times(spec.scale)  # type: ignore[union-attr]
            quant = Quant(sums.scale, 0, None if sums.axis is None else 0)
            operands.append(Data(fixedpoint.quantized(bias, dtypes.i32, sums.scales), quant))
        result: Value = self.product(node)(*operands)
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
        bits = operand_bits(_weight(node).numpy(), 30)
        return symmetric(*plan.range_of(node.inputs[0], 16, True), dtypes.i16, bits)

    def product(self, node: Node) -> ops.IntLinear:
        return ops.IntLinear()


class ShiftConvConversion(_ShiftConversion):
    """ShiftConv -> IntConv."""

    def product(self, node: Node) -> ops.IntConv:
        op = node.op
        assert isinstance(op, ops.ShiftConv)
        return ops.IntConv(op.strides, op.pads, op.dilations, op.group)


def _weight(node: Node) -> Data:
    data = constant(node.operands[1])
    assert data is not None
    return data


def _bias(node: Node) -> np.ndarray | None:
    data = constant(node.operands[2]) if len(node.operands) > 2 else None
    return None if data is None else data.numpy().astype(np.float64)
