"""Tokens chosen and merged in integers: by keys of 8 bits, by sums of attention, and with exact means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from planish.ir import ops
from planish.ir.graph import Node, Value
from planish.passes.integer.conversion import Built, Conversion, Operand, Want
from planish.passes.integer.forms import SUM, Form
from planish.passes.integer.plan import Plan

_MOST = 1 << 13  # tokens that sums are exact for


class MatchConversion(Conversion):
    """MatchTokens -> IntMatchTokens, of the codes that attention has anyway."""

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        return [(0, plan.right(node.inputs[0]))]

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Built:
        op = node.op
        assert isinstance(op, ops.MatchTokens)
        choice: Built = ops.IntMatchTokens(op.merged, op.protected)(operand(0, plan.right(node.inputs[0])))
        return choice


class MergeConversion(Conversion):
    """MergeTokens -> IntMergeTokens on the 16-bit stream; means lie within its range."""

    sums = True

    def refuses(self, node: Node, plan: Plan) -> str:
        tokens = node.inputs[0].tensor.dims[1]
        return "" if isinstance(tokens, int) and tokens <= _MOST else f"it merges {tokens} tokens"

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        sizes: list[Want] = [(4, SUM)] if len(node.operands) > 4 and node.operands[4] is not None else []
        return [(0, plan.stream(node.inputs[0])), *sizes]

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Built:
        size = operand(4, SUM) if len(node.operands) > 4 and node.operands[4] is not None else None
        choice = node.operands[1:4]
        merged: Built = ops.IntMergeTokens(_MOST)(operand(0, plan.stream(node.inputs[0])), *choice, size)
        return merged


class TopConversion(Conversion):
    """TopTokens of codes of one scale are those of the numbers: of sums, so that few scores are equal."""

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        return [(0, SUM)]

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Built:
        choice: Built = node.op(operand(0, SUM))
        return choice


def counts_in(mask: Value) -> bool:
    """True for a mask that is the logarithm of how many tokens each one stands for."""
    while mask.node is not None and isinstance(mask.op, ops.Unsqueeze | ops.Reshape | ops.TakeTokens):
        mask = mask.node.inputs[0]
    if mask.node is None or not isinstance(mask.op, ops.Log):
        return False
    size = mask.node.inputs[0]
    return isinstance(size.op, ops.MergeTokens) and size.index == 1
