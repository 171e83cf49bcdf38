"""Functions of one number as tables of 256 entries; sums; reductions; what only compares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from planish.ir import dtypes, fixedpoint, ops
from planish.ir.data import Data
from planish.ir.graph import Node, Value
from planish.ir.op import Op
from planish.ir.types import TensorType
from planish.passes.integer.conversion import Conversion, Operand, Want
from planish.passes.integer.forms import SUM, Form, Spec, symmetric
from planish.passes.integer.plan import Plan, source_of

_LINEAR_FROM: Mapping[type[Op], tuple[float, float]] = {
    ops.Gelu: (-6.0, np.inf),
    ops.Swish: (-20.0, np.inf),
    ops.HardSwish: (-3.0, np.inf),
    ops.HardSigmoid: (-6.0, 6.0),
    ops.Sigmoid: (-12.0, 12.0),
    ops.Tanh: (-7.0, 7.0),
    ops.Erf: (-4.0, 4.0),
    ops.Relu: (0.0, np.inf),
}
"""Outside these bounds a function is constant, to more than 8 bits: codes aren't spent there."""


class TableConversion(Conversion):
    """Pointwise function -> IntTable, exact for every code of its 8-bit argument."""

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
        lo, hi = _LINEAR_FROM.get(type(node.op), (-np.inf, np.inf))
        return plan.table_input(node.inputs[0], lo, hi)


class GeluConversion(TableConversion):
    """Gelu -> IntTable, or ShiftGelu in the profile `ivit`."""

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        return [(0, _shift_input(node, plan))] if plan.profile == "ivit" else super().wants(node, forms, plan)

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Value:
        if plan.profile != "ivit":
            return super().build(node, form, operand, plan)
        assert isinstance(form, Spec)
        y = ops.ShiftGelu()(operand(0, _shift_input(node, plan)))
        result: Value = ops.Requantize(form.scale, form.zero, form.dtype)(y)
        return result


def _shift_input(node: Node, plan: Plan) -> Spec:
    return symmetric(*plan.range_of(node.inputs[0], 8, True), dtypes.i8)


class ClipConversion(TableConversion):
    """Relu and Clip: nothing at all where the codes of the result end at the bounds, else a table."""

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        wanted: list[Want] = []
        for form in forms:
            wanted.append((0, form if self._is_saturation(node, form) else self._input(node, plan)))
        return wanted

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Value:
        return operand(0, form) if self._is_saturation(node, form) else super().build(node, form, operand, plan)

    def _is_saturation(self, node: Node, form: Form) -> bool:
        """True if every number with a code lies in the bounds, to half a code: then saturating is clipping."""
        if not isinstance(form, Spec):
            return False
        op = node.op
        lo, hi = (0.0, None) if isinstance(op, ops.Relu) else (op.lo, op.hi)  # type: ignore[attr-defined]
        half = form.scale / 2
        return (lo is None or form.lo >= lo - half) and (hi is None or form.hi <= hi + half)


class AddConversion(Conversion):
    """Add -> IntAdd, straight from accumulators."""

    def refuses(self, node: Node, plan: Plan) -> str:
        return ""

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        return [(i, self._input(node, v, plan)) for i, v in enumerate(node.inputs)]

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Value:
        assert isinstance(form, Spec)
        a, b = (operand(i, want) for i, want in self.wants(node, (), plan))
        result: Value = ops.IntAdd(form.scale, form.zero, form.dtype)(a, b)
        return result

    def _input(self, node: Node, value: Value, plan: Plan) -> Form:
        """Any integers, but for what is broadcast: that has one scale."""
        ranked = isinstance(value.type, TensorType) and len(value.type.dims) == len(node.result.tensor.dims)
        return SUM if ranked else plan.stream(value)


class MeanConversion(Conversion):
    """ReduceMean and ReduceSum -> IntReduceSum; the division is in the scale."""

    sums = True

    def refuses(self, node: Node, plan: Plan) -> str:
        counts = [node.inputs[0].tensor.dims[axis] for axis in node.op.axes]  # type: ignore[attr-defined]
        return "" if all(isinstance(n, int) for n in counts) else "it reduces an axis of unknown extent"

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        return [(0, self._input(node, plan))]

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Value:
        op = node.op
        assert isinstance(op, ops.ReduceMean | ops.ReduceSum)
        total: Value = ops.IntReduceSum(op.axes, op.keepdims)(operand(0, self._input(node, plan)))
        if isinstance(op, ops.ReduceSum):
            return total
        count = int(np.prod([int(node.inputs[0].tensor.dims[axis]) for axis in op.axes]))
        mean: Value = ops.ScaleBy(1 / count)(total)
        return mean

    def _input(self, node: Node, plan: Plan) -> Spec:
        x = node.inputs[0]
        wide = isinstance(source_of(x).op, ops.Add | ops.LayerNorm | ops.RMSNorm)
        return plan.stream(x) if wide else plan.operand(x)


class ArgMaxConversion(Conversion):
    """ArgMax of codes of one scale is that of the numbers."""

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        return [(0, plan.stream(node.inputs[0]))]

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Value:
        codes = ops.Cast(dtypes.i32)(ops.ToCodes()(operand(0, plan.stream(node.inputs[0]))))
        result: Value = node.op(codes)
        return result


Function = Callable[[np.ndarray], np.ndarray]
