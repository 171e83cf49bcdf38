"""Quotients that mean something in integers: masked means of tokens, and vectors of length one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from planish.ir import dtypes, ops
from planish.ir.graph import Node, Value
from planish.ir.ops.int_norm import NORM_BITS
from planish.passes.integer.conversion import Operand, Want
from planish.passes.integer.forms import Form, Spec
from planish.passes.integer.norms import norm_weight
from planish.passes.integer.plan import Plan, source_of
from planish.passes.integer.products import MulConversion, positive_factor


@dataclass(frozen=True)
class MaskedMean:
    """sum of x * m / sum of m over tokens, for x [B, N, C] and m [B, N, 1], zeros and ones cast from integers."""

    x: Value
    mask: Value  # the integers or bools

    @staticmethod
    def of(node: Node) -> MaskedMean | None:
        """What the Div `node` computes, if it is such a mean."""
        above, below = node.inputs
        below = _unclipped(below)
        if not (_sums_tokens(above) and _sums_tokens(below)) or above.node is None or below.node is None:
            return None
        product, mask = above.node.inputs[0], source_of(below.node.inputs[0])
        if product.node is None or not isinstance(product.op, ops.Mul) or mask.node is None:
            return None
        if not isinstance(mask.op, ops.Cast) or mask.node.inputs[0].tensor.dtype.is_float:
            return None
        for x, other in (product.node.inputs, product.node.inputs[::-1]):
            if (
                source_of(other) is mask
                and len(x.tensor.dims) == 3 == len(mask.tensor.dims)
                and mask.tensor.dims[2] == 1
            ):
                return MaskedMean(x, mask.node.inputs[0])
        return None


def unit_vector(node: Node) -> Value | None:
    """x, if the Div `node` is x divided by its length over the last axis."""
    x, below = node.inputs
    below = _unclipped(below)
    norm = below.node
    if norm is None or not isinstance(norm.op, ops.ReduceL2) or norm.op.axes != (-1,) or not norm.op.keepdims:
        return None
    return x if norm.inputs[0] is x and isinstance(x.tensor.dims[-1], int) else None


class DivConversion(MulConversion):
    """Div -> another scale for a constant divisor, IntWeightedMean for a masked mean, IntRMSNorm for a unit vector."""

    def accumulates(self, node: Node) -> bool:
        return unit_vector(node) is None

    def refuses(self, node: Node, plan: Plan) -> str:
        if positive_factor(node) is not None or unit_vector(node) is not None:
            return ""
        return "its divisor is computed" if MaskedMean.of(node) is None else ""

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        if positive_factor(node) is not None:
            return super().wants(node, forms, plan)
        return [(0, plan.stream(node.inputs[0]))] if unit_vector(node) is not None else []

    def also_wants(self, node: Node, plan: Plan) -> list[tuple[Value, Form]]:
        mean = None if positive_factor(node) is not None else MaskedMean.of(node)
        return [] if mean is None else [(mean.x, plan.right(mean.x))]

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Value:
        if positive_factor(node) is not None:
            return super().build(node, form, operand, plan)
        if (mean := MaskedMean.of(node)) is not None:
            return _mean(node, mean, operand(mean.x, plan.right(mean.x)))
        assert isinstance(form, Spec)
        x = operand(0, plan.stream(node.inputs[0]))
        channels = int(x.tensor.dims[-1])
        gamma, _ = norm_weight(np.full(channels, 1 / math.sqrt(channels)), form.scale, 2.0**-NORM_BITS)
        result: Value = ops.IntRMSNorm(form.scale, form.zero, form.dtype, _EPS)(x, gamma)
        return result


_EPS = 1e-24  # of a mean square: what guards against division by zero in integers is 1 anyway


def _mean(node: Node, mean: MaskedMean, rows: Value) -> Value:
    weight = ops.FromCodes(1.0)(ops.Cast(dtypes.u8)(ops.Transpose((0, 2, 1))(mean.mask)))  # [B, 1, N]
    means = ops.IntWeightedMean()(weight, rows)  # [B, 1, C]
    result: Value = means if len(node.result.tensor.dims) == 3 else ops.Squeeze((1,))(means)
    return result


def _unclipped(value: Value) -> Value:
    """What a lower bound that only guards against division by zero is put on."""
    node = value.node
    while node is not None and isinstance(node.op, ops.Clip | ops.Expand):
        guard = isinstance(node.op, ops.Expand) or (node.op.hi is None and (node.op.lo or 0.0) <= 1e-6)
        if not guard:
            break
        value = node.inputs[0]
        node = value.node
    return value


def _sums_tokens(value: Value) -> bool:
    op = value.op
    return isinstance(op, ops.ReduceSum) and op.axes == (-2,)
