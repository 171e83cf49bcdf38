"""Codes of signs, and matrix products that only add and subtract by them, as models trained with them spell both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from planish.ir.dtypes import DType
from planish.ir.graph import Value
from planish.ir.ops import (
    AddMatMul,
    Binarize,
    Cast,
    Expand,
    Greater,
    GreaterOrEqual,
    Identity,
    Less,
    LessOrEqual,
    MatMul,
    Reshape,
    Sign,
    Slice,
    Squeeze,
    Transpose,
    Unsqueeze,
    Where,
)
from planish.passes.base import RulePass
from planish.passes.pattern import Pattern, Scalar, attr, either
from planish.passes.raising.parameters import keeping
from planish.passes.rewrite import Rule, reject, rule

_MOVES = (Expand, Identity, Reshape, Slice, Squeeze, Transpose, Unsqueeze)


def plus_or_minus(condition: Pattern, other: Pattern | None = None) -> Pattern:
    """1 where the condition holds, -1 elsewhere; `other` is the condition's negation."""
    doubled = either(Cast(to=attr("to"))(condition) * 2.0, 2.0 * Cast(to=attr("to"))(condition))
    selected = Where()(condition, 1.0, -1.0)
    chosen = selected if other is None else either(selected, Where()(other, -1.0, 1.0))
    return either(chosen, doubled - 1.0, doubled + -1.0)


def not_below_zero(x: Pattern) -> Pattern:
    return plus_or_minus(GreaterOrEqual()(x, 0.0), Less()(x, 0.0))


@rule(not_below_zero)
def signs(x: Value, root: Value, to: DType | None = None) -> Value:
    """1 where x >= 0, else -1 = Binarize(x); what NaN gives isn't kept where the spelling says x < 0."""
    return keeping(Binarize()(x), root)


def above_zero(x: Pattern) -> Pattern:
    return plus_or_minus(Greater()(x, 0.0), LessOrEqual()(x, 0.0))


@rule(above_zero)
def strict_signs(x: Value, root: Value, to: DType | None = None) -> Value:
    """1 where x > 0, else -1 = Binarize(zero=-1)(x)."""
    return keeping(Binarize(zero=-1)(x), root)


def sign_without_zero(x: Pattern, c: Scalar) -> Pattern:
    return Sign()(either(Sign()(x) + c, Sign()(x) - c))


@rule(sign_without_zero)
def signs_of_lifted_signs(x: Value, c: float, root: Value) -> Value:
    """sign(sign(x) + c) = Binarize(x) for 0 < c < 1."""
    lifted = root.node.inputs[0].op.name if root.node is not None and root.node.inputs[0].op is not None else ""
    lift = c if lifted == "Add" else -c
    if not 0 < abs(lift) < 1:
        reject(f"sign(x) + {lift:g} may be 0")
    return keeping(Binarize(zero=1 if lift > 0 else -1)(x), root)


def product(a: Pattern, b: Pattern) -> Pattern:
    result: Pattern = MatMul()(a, b)
    return result


@rule(product, shared=True)
def sums_by_signs(a: Value, b: Value) -> Value:
    """signs @ b = AddMatMul(signs, b)."""
    source = a
    while source.node is not None and isinstance(source.op, _MOVES):
        source = source.node.inputs[0]
    if isinstance(source.op, Sign):
        reject("Sign gives 0 for 0, so its codes aren't -1 and +1 alone")
    if not isinstance(source.op, Binarize):
        reject("the left operand isn't made of signs")
    result: Value = AddMatMul()(a, b)
    return result


@dataclass(frozen=True)
class RaiseHamming(RulePass):
    """Codes of signs from comparisons with 0, and matrix products by them as signed sums."""

    name: ClassVar[str] = "raise-hamming"
    rule_set: ClassVar[tuple[Rule, ...]] = (signs, strict_signs, signs_of_lifted_signs, sums_by_signs)
