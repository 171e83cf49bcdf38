"""Functions of one number as tables of 256 entries; sums; reductions; what only compares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planish.ir import dtypes, fixedpoint, ops
from planish.ir.data import Data
from planish.ir.graph import Node, Value
from planish.ir.op import Op, constant
from planish.ir.types import Quant, TensorType
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

_EVERYWHERE = (-np.inf, np.inf)

Function = Callable[[np.ndarray], np.ndarray]

FUNCTIONS = (ops.Abs, ops.Neg, ops.Sqrt, ops.Reciprocal, ops.Exp, ops.Log, ops.Erf, ops.Sin, ops.Cos, ops.Tanh,
             ops.Sigmoid, ops.Softplus, ops.Swish, ops.HardSwish, ops.HardSigmoid, ops.LeakyRelu, ops.Elu)  # fmt: skip
SCALED = (ops.Add, ops.Sub, ops.Mul, ops.Div)


@dataclass(frozen=True)
class Chain:
    """Pointwise ops one after the other, as one function of the number that the first reads."""

    root: Value
    function: Function
    length: int

    @staticmethod
    def of(node: Node) -> Chain:
        """The longest chain that ends in `node`: every value in between is read by the next op only."""
        root, function = _step(node)
        length = 1
        while root.node is not None and len(root.uses) == 1 and _in_chain(root.node):
            above, inner = _step(root.node)
            root, function, length = above, _after(function, inner), length + 1
        return Chain(root, function, length)


def _after(outer: Function, inner: Function) -> Function:
    return lambda x: outer(inner(x))


def _step(node: Node) -> tuple[Value, Function]:
    """The operand of a pointwise op that isn't constant, and the op as a function of it."""
    if len(node.inputs) == 1:
        return node.inputs[0], lambda x: np.asarray(node.op.evaluate(x))
    index = 0 if _scalar(node.inputs[1]) is not None else 1
    number = _scalar(node.inputs[1 - index])
    if index == 0:
        return node.inputs[0], lambda x: np.asarray(node.op.evaluate(x, np.asarray(number)))
    return node.inputs[1], lambda x: np.asarray(node.op.evaluate(np.asarray(number), x))


def _in_chain(node: Node) -> bool:
    return isinstance(node.op, FUNCTIONS) or (isinstance(node.op, SCALED) and is_scalar_op(node))


def is_scalar_op(node: Node) -> bool:
    """True for a binary op of one number and a tensor of the result's shape."""
    numbers = [_scalar(v) is not None for v in node.inputs]
    return numbers in ([True, False], [False, True])


def _scalar(value: Value) -> float | None:
    data = constant(value)
    return float(data.numpy().item()) if data is not None and data.size == 1 and data.type.dtype.is_float else None


class TableConversion(Conversion):
    """Pointwise function, or a chain of them -> IntTable, exact for every code of its 8-bit argument."""

    each = True

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        return []

    def also_wants(self, node: Node, plan: Plan) -> list[tuple[Value, Form]]:
        chain = Chain.of(node)
        return [(chain.root, self._input(node, chain, plan))]

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Value:
        assert isinstance(form, Spec)
        chain = Chain.of(node)
        spec = self._input(node, chain, plan)
        source, target = (spec.dtype, spec.scale, spec.zero), (form.dtype, form.scale, form.zero)
        table = fixedpoint.code_table(chain.function, source, target)
        result: Value = ops.IntTable(form.scale, form.zero, form.dtype)(operand(chain.root, spec), Data(table))
        return result

    def _input(self, node: Node, chain: Chain, plan: Plan) -> Spec:
        if plan.is_byte(chain.root) or plan.is_count(chain.root):
            return Spec(dtypes.u8, 1.0)
        lo, hi = _LINEAR_FROM.get(type(node.op), (-np.inf, np.inf)) if chain.length == 1 else (-np.inf, np.inf)
        return plan.table_input(chain.root, lo, hi)


class SubConversion(TableConversion):
    """Sub of a number (or from one) -> IntTable, with the functions before it; of two tensors -> IntAdd."""

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        return [] if is_scalar_op(node) else [(i, plan.stream(v)) for i, v in enumerate(node.inputs)]

    def also_wants(self, node: Node, plan: Plan) -> list[tuple[Value, Form]]:
        return super().also_wants(node, plan) if is_scalar_op(node) else []

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Value:
        if is_scalar_op(node):
            return super().build(node, form, operand, plan)
        assert isinstance(form, Spec)
        a, b = (operand(i, plan.stream(v)) for i, v in enumerate(node.inputs))
        negated = ops.IntMul()(b, Data(np.asarray(-1, np.int8), Quant((1.0,))))
        result: Value = ops.IntAdd(form.scale, form.zero, form.dtype)(a, negated)
        return result


class GeluConversion(TableConversion):
    """Gelu -> IntTable, or ShiftGelu in the profile `ivit`."""

    def also_wants(self, node: Node, plan: Plan) -> list[tuple[Value, Form]]:
        published = plan.profile == "ivit"
        return [(node.inputs[0], _shift_input(node, plan))] if published else super().also_wants(node, plan)

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
            if self._is_saturation(node, form):
                wanted.append((0, form))
            else:
                wanted.append((0, plan.table_input(node.inputs[0], *_LINEAR_FROM.get(type(node.op), _EVERYWHERE))))
        return wanted

    def also_wants(self, node: Node, plan: Plan) -> list[tuple[Value, Form]]:
        return []

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Value:
        assert isinstance(form, Spec)
        if self._is_saturation(node, form):
            return operand(0, form)
        spec = plan.table_input(node.inputs[0], *_LINEAR_FROM.get(type(node.op), _EVERYWHERE))
        source, target = (spec.dtype, spec.scale, spec.zero), (form.dtype, form.scale, form.zero)
        table = fixedpoint.code_table(_step(node)[1], source, target)
        result: Value = ops.IntTable(form.scale, form.zero, form.dtype)(operand(0, spec), Data(table))
        return result

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

    def _input(self, node: Node, plan: Plan) -> Form:
        x = node.inputs[0]
        if isinstance(x.op, ops.Softmax):
            return SUM  # means of many small probabilities rank tokens: 8 bits would make most of them equal
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
