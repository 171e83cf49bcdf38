"""Codes of signs and the sums that they make: additions and subtractions of codes in place of products."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from planish.ir import dtypes, fixedpoint, ops
from planish.ir.data import Data
from planish.ir.graph import Node, Value
from planish.passes.integer.conversion import Conversion, Operand, Want
from planish.passes.integer.forms import Form, Spec, symmetric
from planish.passes.integer.plan import Plan, source_of

SIGNS = Spec(dtypes.i8, 1.0)
"""The codes of -1 and +1."""

_FINER = 128  # times as fine as the range asks for: only signs count, so what is large may saturate


class BinarizeConversion(Conversion):
    """Binarize -> IntTable of codes that are finer than the range of its argument, so that few signs are rounded."""

    each = True

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        return [(0, self._input(node, plan))]

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Value:
        assert isinstance(form, Spec)
        spec = self._input(node, plan)
        source, target = (spec.dtype, spec.scale, spec.zero), (form.dtype, form.scale, form.zero)
        table = fixedpoint.code_table(lambda x: np.asarray(node.op.evaluate(x)), source, target)
        result: Value = ops.IntTable(form.scale, form.zero, form.dtype)(operand(0, spec), Data(table))
        return result

    def _input(self, node: Node, plan: Plan) -> Spec:
        coarse = symmetric(*plan.range_of(node.inputs[0], 16, True), dtypes.i8)
        return Spec(coarse.dtype, coarse.scale / _FINER)


class AddMatMulConversion(Conversion):
    """AddMatMul -> IntAddMatMul: signs by codes of 8 bits, or of 16 where 8 would be too noisy.

    IntBinaryMatMul where the right operand holds signs too.
    """

    heavy = True
    sums = True

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        return [(0, SIGNS), (1, self._right(node, plan))]

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Value:
        right = self._right(node, plan)
        product = ops.IntBinaryMatMul() if right == SIGNS else ops.IntAddMatMul()
        result: Value = product(operand(0, SIGNS), operand(1, right))
        return result

    def _right(self, node: Node, plan: Plan) -> Spec:
        x = node.inputs[1]
        if isinstance(source_of(x).op, ops.Binarize):
            return SIGNS
        narrow = plan.right(x)
        return plan.stream(x) if plan.sqnr(x, narrow) < plan.wide_below else narrow
