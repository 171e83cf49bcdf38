"""Attention from its parts: softmax(scale * q @ k.T + mask) @ v, with heads of rank 4, or merged into the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.ir.graph import Value
from planish.ir.op import constant
from planish.ir.ops import Add, Div, Equal, IsNaN, MatMul, Mul, ReduceMax, Softmax, Transpose, Where
from planish.passes.base import RulePass
from planish.passes.exactness import ROUNDING
from planish.passes.pattern import Pattern, Scalar, attr, either
from planish.passes.raising.attention_absorb import ABSORBING_RULES
from planish.passes.raising.attention_mask import Mask, mask_of, may_hide_a_row
from planish.passes.raising.attention_operands import keys, need_same_heads, on_heads, without_factor
from planish.passes.raising.attention_windows import (
    attention_in_windows,
    attention_of_split_scores,
    attention_of_turned_scores,
)
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
    q, k, scale = _scaled_heads(q, k, v, factor, divisor)
    shape = (*q.tensor.dims[:-1], k.tensor.dims[-2])
    found = mask_of(shape, mask, second, keep, drop, low, q)
    result = on_heads(q, k, v, found, scale)
    if guard is not None and may_hide_a_row(found):
        if guard != 0:
            reject(f"NaN among the weights becomes {guard:g}, not 0")
        # Only rows that are masked as a whole are NaN: guarding the result is the same as guarding the weights.
        result = Where()(IsNaN()(result), array_like(0.0, result), result)
    return keeping(result, root)


def attention_parts_without_hidden_rows(
    q: Pattern, k: Pattern, v: Pattern, factor: Scalar, divisor: Scalar, mask: Pattern, bottom: Scalar
) -> Pattern:
    product = MatMul()(q, k)
    scores = either(product, Mul()(product, factor), Div()(product, divisor))
    softmax = narrowed(Softmax(axis=-1)(widened(Add()(scores, mask))))
    hidden = Equal()(ReduceMax(axes=(-1,), keepdims=True)(mask), bottom)
    return MatMul()(Where()(hidden, 0.0, softmax), v)


@rule(attention_parts_without_hidden_rows, exactness=ROUNDING)
def attention_without_hidden_rows(
    q: Value,
    k: Value,
    v: Value,
    factor: float | None,
    divisor: float | None,
    mask: Value,
    bottom: float,
    root: Value,
    up: object = None,
    down: object = None,
) -> Value:
    """attention with weights 0 in rows whose mask is -inf everywhere = those rows of Attention(q, k, v, mask) as 0."""
    if not np.isneginf(bottom):
        reject(f"rows are hidden where the mask is {bottom:g}, not minus infinity")
    q, k, scale = _scaled_heads(q, k, v, factor, divisor)
    found = mask_of((*q.tensor.dims[:-1], k.tensor.dims[-2]), mask, None, None, None, None, q)
    result = on_heads(q, k, v, found, scale)
    if constant(mask) is None or may_hide_a_row(found):
        hidden = Equal()(ReduceMax(axes=(-1,), keepdims=True)(mask), array_like(bottom, mask))
        result = Where()(hidden, array_like(0.0, result), result)
    return keeping(result, root)


def attention_parts_by_columns(q: Pattern, k: Pattern, v: Pattern, factor: Scalar, divisor: Scalar) -> Pattern:
    product = MatMul()(q, k)
    softmax = Softmax(axis=-1)(either(product, Mul()(product, factor), Div()(product, divisor)))
    return MatMul()(v, Transpose(perm=attr("perm"))(softmax))


@rule(attention_parts_by_columns, exactness=ROUNDING)
def attention_by_columns(
    q: Value, k: Value, v: Value, factor: float | None, divisor: float | None, perm: tuple[int, ...], root: Value
) -> Value:
    """v.T @ softmax(scale * q @ k.T).T = Attention(q, k, v).T, where v.T is [B, H, E, M] (convolutional networks)."""
    rank = len(perm)
    if perm != (*range(rank - 2), rank - 1, rank - 2) or v.tensor.rank != rank:
        reject(f"the weights are permuted by {perm}, not transposed")
    columns = Transpose(perm)
    v = columns(v)
    q, k, scale = _scaled_heads(q, k, v, factor, divisor)
    return keeping(columns(on_heads(q, k, v, Mask(), scale)), root)


def _scaled_heads(
    q: Value, k: Value, v: Value, factor: float | None, divisor: float | None
) -> tuple[Value, Value, float]:
    """Queries, keys (from their transpose) and the scale of the scores."""
    if q.tensor.rank not in (3, 4):
        reject(f"the queries are {q.type}, of rank {q.tensor.rank}, not 4")
    q, q_scale = without_factor(q)
    k, k_scale = without_factor(k)
    k = keys(k)
    need_same_heads(q, k, v)
    return q, k, q_scale * k_scale * quotient(factor, divisor)


@dataclass(frozen=True)
class RaiseAttention(RulePass):
    """Attention from matrix products around a softmax, with its scale, mask and grouped heads."""

    name: ClassVar[str] = "raise-attention"
    rule_set: ClassVar[tuple[Rule, ...]] = (
        attention,
        attention_without_hidden_rows,
        attention_by_columns,
        attention_in_windows,
        attention_of_split_scores,
        attention_of_turned_scores,
        *ABSORBING_RULES,
    )
