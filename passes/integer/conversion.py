"""How one op is taken from floating point to integers: what it wants of its operands, and what it makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

from planish.ir import ops
from planish.ir.graph import Node, Value
from planish.passes.integer.forms import Form, Spec
from planish.passes.integer.plan import Plan

Operand = Callable[[int | Value, Form], Value]
"""Operand number i of the node that is converted (or another value), in a form that was asked for."""

Want = tuple[int, Form]
Built = Value | tuple[Value, ...]


class Conversion:
    """Base of conversions, one instance per op class.

    sums: the result comes as integers of any scale (`SUM`), from which the driver makes every form.
    each: every form is built from the operands; otherwise the widest is, and narrower ones from that.
    heavy: worth quantizing its operands for, even if they stay in floating point.
    """

    sums: ClassVar[bool] = False
    each: ClassVar[bool] = False
    heavy: ClassVar[bool] = False

    def accumulates(self, node: Node) -> bool:
        """True if the result of this node comes as `SUM`."""
        return self.sums

    def refuses(self, node: Node, plan: Plan) -> str:
        """Why this node can't be converted; "" if it can."""
        return ""

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        """Which operands are needed in which form, when the result is needed in `forms`."""
        raise NotImplementedError

    def also_wants(self, node: Node, plan: Plan) -> list[tuple[Value, Form]]:
        """Forms of values that aren't operands: what a whole pattern ends in."""
        return []

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Built:
        """The result (or results) in one form, detached. If the node accumulates, `form` is SUM."""
        raise NotImplementedError


def coded(value: Value, spec: Spec) -> Value:
    """`value` (quantized) with the codes of `spec`: itself if it has them."""
    if value.tensor.dtype == spec.dtype and value.tensor.quant == spec.quant:
        return value
    result: Value = ops.Requantize(spec.scale, spec.zero, spec.dtype)(value)
    return result
