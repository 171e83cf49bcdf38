"""What stands before the operands of an Attention and belongs inside: scalar factors, heads repeated for groups."""

from __future__ import annotations

from typing import Any

from planish.ir.graph import Value
from planish.ir.op import constant
from planish.ir.ops import Attention, Div, Expand, Mul, Reshape, Squeeze, Tile, Transpose, Unsqueeze
from planish.passes.exactness import EXACT, ROUNDING
from planish.passes.pattern import Maybe, Pattern, Scalar, attr, either
from planish.passes.raising.parameters import quotient, shortest
from planish.passes.rewrite import reject, rule


def scaled(x: Pattern, factor: Scalar, divisor: Scalar) -> Pattern:
    return either(Mul()(x, factor), Div()(x, divisor))


def attention_of_scaled_query(
    x: Pattern, k: Pattern, v: Pattern, mask: Maybe, factor: Scalar, divisor: Scalar
) -> Pattern:
    product = scaled(x, factor, divisor)
    rows = either(product, Reshape(shape=attr("shape"))(product))
    q = either(rows, Transpose(perm=attr("perm"))(rows))
    return Attention(scale=attr("scale"), causal=attr("causal"))(q, k, v, mask)


@rule(attention_of_scaled_query, exactness=ROUNDING)
def query_factor_into_scale(
    x: Value,
    k: Value,
    v: Value,
    mask: Value | None,
    factor: float | None,
    divisor: float | None,
    scale: float,
    causal: bool,
    root: Value,
    shape: tuple[int, ...] | None = None,
    perm: tuple[int, ...] | None = None,
) -> Value:
    """Attention(scale)(c * q, k, v) = Attention(scale * c)(q, k, v), where c is one number."""
    q = _rearranged(x, shape, perm)
    _need_same(q, root.node.operands[0] if root.node is not None else None)
    result: Value = Attention(shortest(scale * quotient(factor, divisor)), causal)(q, k, v, mask)
    return result


def attention_of_scaled_keys(
    q: Pattern, x: Pattern, v: Pattern, mask: Maybe, factor: Scalar, divisor: Scalar
) -> Pattern:
    product = scaled(x, factor, divisor)
    rows = either(product, Reshape(shape=attr("shape"))(product))
    k = either(rows, Transpose(perm=attr("perm"))(rows))
    return Attention(scale=attr("scale"), causal=attr("causal"))(q, k, v, mask)


@rule(attention_of_scaled_keys, exactness=ROUNDING)
def key_factor_into_scale(
    q: Value,
    x: Value,
    v: Value,
    mask: Value | None,
    factor: float | None,
    divisor: float | None,
    scale: float,
    causal: bool,
    root: Value,
    shape: tuple[int, ...] | None = None,
    perm: tuple[int, ...] | None = None,
) -> Value:
    """Attention(scale)(q, c * k, v) = Attention(scale * c)(q, k, v), where c is one number."""
    k = _rearranged(x, shape, perm)
    _need_same(k, root.node.operands[1] if root.node is not None else None)
    result: Value = Attention(shortest(scale * quotient(factor, divisor)), causal)(q, k, v, mask)
    return result


def attention_of_repeated_heads(q: Pattern, k: Pattern, v: Pattern, n: Pattern, m: Pattern, mask: Maybe) -> Pattern:
    repeated_k = Reshape(shape=attr("k_shape"))(either(Expand()(k, n), Tile(repeats=attr("k_repeats"))(k)))
    repeated_v = Reshape(shape=attr("v_shape"))(either(Expand()(v, m), Tile(repeats=attr("v_repeats"))(v)))
    return Attention(scale=attr("scale"), causal=attr("causal"))(q, repeated_k, repeated_v, mask)


@rule(attention_of_repeated_heads, exactness=ROUNDING, shared=True)
def repeated_heads_as_groups(
    q: Value, k: Value, v: Value, mask: Value | None, scale: float, causal: bool, root: Value, **_: Any
) -> Value:
    """Attention of k and v[B, H / G, 1, N, D], repeated G times along axis 2, = Attention of their heads."""
    operands = root.node.operands if root.node is not None else ()
    result: Value = Attention(scale, causal)(q, _single(k, operands[1]), _single(v, operands[2]), mask)
    return result


def attention_with_mask(q: Pattern, k: Pattern, v: Pattern, mask: Pattern) -> Pattern:
    return Attention(scale=attr("scale"), causal=attr("causal"))(q, k, v, mask)


@rule(attention_with_mask, exactness=EXACT)
def idle_mask_dropped(q: Value, k: Value, v: Value, mask: Value, scale: float, causal: bool) -> Value:
    """Attention(q, k, v, mask) = Attention(q, k, v), where the mask is zero, or true, everywhere."""
    data = constant(mask)
    if data is None or not data.type.is_static:
        reject("the mask isn't constant")
    array = data.numpy()
    if not (array.all() if array.dtype == bool else not array.any()):
        reject("the mask hides places, or weighs them")
    result: Value = Attention(scale, causal)(q, k, v)
    return result


def _single(heads: Value, repeated: Value | None) -> Value:
    """`heads`[B, H / G, 1, N, D] without axis 2; rejects the match unless `repeated` is [B, H, N, D] of those heads."""
    shape = heads.tensor.dims
    if repeated is None or len(shape) != 5 or shape[2] != 1:
        reject(f"{heads.type} doesn't hold heads that are repeated along axis 2")
    batch, count, *rest = repeated.tensor.dims
    if (batch, *rest) != (shape[0], *shape[3:]) or not isinstance(shape[1], int) or not isinstance(count, int):
        reject(f"{heads.type} is repeated along other axes than its heads")
    if shape[1] == 0 or count % shape[1]:
        reject(f"{shape[1]} heads of keys don't divide {count} heads of queries")
    node = heads.node
    if node is not None and node.op == Unsqueeze((2,)):
        return node.inputs[0]
    single: Value = Squeeze((2,))(heads)
    return single


def _rearranged(x: Value, shape: tuple[int, ...] | None, perm: tuple[int, ...] | None) -> Value:
    if shape is not None:
        x = Reshape(shape)(x)
    return x if perm is None else Transpose(perm)(x)


def _need_same(new: Value, old: Value | None) -> None:
    if old is None or new.type != old.type:
        reject("the factor broadcasts the operand to another shape")


ABSORBING_RULES = (query_factor_into_scale, key_factor_into_scale, repeated_heads_as_groups, idle_mask_dropped)
"""Rules rooted at an Attention."""
