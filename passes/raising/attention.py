"""Attention from its parts: softmax(scale * q @ k.T + mask) @ v, with heads of rank 4, or merged into the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from planish.ir.graph import Value
from planish.ir.ops import Add, Div, IsNaN, MatMul, Mul, Softmax, Where
from planish.passes.base import RulePass
from planish.passes.exactness import ROUNDING
from planish.passes.pattern import Pattern, Scalar, either
from planish.passes.raising.attention_absorb import ABSORBING_RULES
from planish.passes.raising.attention_mask import mask_of, may_hide_a_row
from planish.passes.raising.attention_operands import keys, need_same_heads, on_heads, without_factor
from planish.passes.raising.attention_windows import attention_in_windows
from planish.passes.raising.fragments import narrowed, widened
from planish.passes.raising.parameters import keeping, quotient
from planish.passes.rewrite import Rule, array_like, reject, rule


def weights(logits: Pattern, guard: Scalar) -> Pattern:
    """Softmax over the last axis, maybe in another dtype, maybe with `guard` in the place of NaN."""
    softmax = narrowed(Softmax(axis=-1)(widened(logits)))
    return either(softmax, Where()(IsNaN()(softmax), guard, softmax))


def attention_parts(
    q: Pattern,
    k: Pattern,
    v: Pattern,
    factor: Scalar,
    divisor: Scalar,
    mask: Pattern,
    second: Pattern,
    keep: Pattern,
    drop: Pattern,
    low: Scalar,
    guard: Scalar,
) -> Pattern:
    product = MatMul()(q, k)
    scores = either(product, Mul()(product, factor), Div()(product, divisor))
    masked = either(
        scores,
        Add()(scores, mask),
        Add()(Add()(scores, mask), second),
        Where()(keep, scores, low),
        Where()(drop, low, scores),
    )
    return MatMul()(weights(masked, guard), v)


@rule(attention_parts, exactness=ROUNDING)
def attention(
    q: Value,
    k: Value,
    v: Value,
    factor: float | None,
    divisor: float | None,
    mask: Value | None,
    second: Value | None,
    keep: Value | None,
    drop: Value | None,
    low: float | None,
    guard: float | None,
    root: Value,
    up: object = None,
    down: object = None,
) -> Value:
    """softmax(scale * q @ k.T + mask) @ v = Attention(q, k, v, mask)."""
    if q.tensor.rank not in (3, 4):
        reject(f"the queries are {q.type}, of rank {q.tensor.rank}, not 4")
    q, q_scale = without_factor(q)
    k, k_scale = without_factor(k)
    scale = q_scale * k_scale * quotient(factor, divisor)
    k = keys(k)
    need_same_heads(q, k, v)
    shape = (*q.tensor.dims[:-1], k.tensor.dims[-2])
    found = mask_of(shape, mask, second, keep, drop, low, q)
    result = on_heads(q, k, v, found, scale)
    if guard is not None and may_hide_a_row(found):
        if guard != 0:
            reject(f"NaN among the weights becomes {guard:g}, not 0")
        # Only rows that are masked as a whole are NaN: guarding the result is the same as guarding the weights.
        result = Where()(IsNaN()(result), array_like(0.0, result), result)
    return keeping(result, root)


@dataclass(frozen=True)
class RaiseAttention(RulePass):
    """Attention from matrix products around a softmax, with its scale, mask and grouped heads."""

    name: ClassVar[str] = "raise-attention"
    rule_set: ClassVar[tuple[Rule, ...]] = (attention, attention_in_windows, *ABSORBING_RULES)
