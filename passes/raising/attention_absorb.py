"""What stands before the operands of an Attention and belongs inside: scalar factors, keys and values repeated for groups."""

from __future__ import annotations

from planish.ir import dims
from planish.ir.graph import Value
from planish.ir.ops import Attention, Div, Expand, Mul, Reshape, Tile, Transpose, Unsqueeze
from planish.passes.exactness import ROUNDING
from planish.passes.pattern import Maybe, Pattern, Scalar, attr, either
from planish.passes.raising.parameters import shortest
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
    result: Value = Attention(_scale(scale, factor, divisor), causal)(q, k, v, mask)
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
    result: Value = Attention(_scale(scale, factor, divisor), causal)(q, k, v, mask)
    return result


def attention_of_repeated_heads(q: Pattern, k: Pattern, v: Pattern, n: Pattern, m: Pattern, mask: Maybe) -> Pattern:
    repeated_k = Reshape(shape=attr("k_shape"))(repeated(k, n, "k"))
    repeated_v = Reshape(shape=attr("v_shape"))(repeated(v, m, "v"))
    return Attention(scale=attr("scale"), causal=attr("causal"))(q, repeated_k, repeated_v, mask)


def repeated(x: Pattern, count: Pattern, name: str) -> Pattern:
    single = Unsqueeze(axes=(2,))(x)
    return either(Expand()(single, count), Tile(repeats=attr(f"{name}_repeats"))(single))


@rule(attention_of_repeated_heads, exactness=ROUNDING, shared=True)
def repeated_heads_as_groups(
    q: Value,
    k: Value,
    v: Value,
    n: Value | None,
    m: Value | None,
    mask: Value | None,
    scale: float,
    causal: bool,
    root: Value,
    k_shape: tuple[int, ...],
    v_shape: tuple[int, ...],
    k_repeats: tuple[int, ...] | None = None,
    v_repeats: tuple[int, ...] | None = None,
) -> Value:
    """Attention of keys and values of which each head is repeated G times = Attention with H / G heads of those."""
    for own, place in ((k, 1), (v, 2)):
        many = root.node.operands[place] if root.node is not None else None
        if many is None or many.tensor.dims[1] != dims.mul(own.tensor.dims[1], _group(q, own)):
            reject(f"{own.type} isn't repeated along its heads")
        if (many.tensor.dims[0], *many.tensor.dims[2:]) != (own.tensor.dims[0], *own.tensor.dims[2:]):
            reject(f"{own.type} is repeated along other axes than its heads")
    result: Value = Attention(scale, causal)(q, k, v, mask)
    return result


def _group(q: Value, k: Value) -> int:
    heads, own = q.tensor.dims[1], k.tensor.dims[1]
    if not isinstance(heads, int) or not isinstance(own, int) or own == 0 or heads % own:
        reject(f"{own} heads of keys don't divide {heads} heads of queries")
    return heads // own


def _scale(scale: float, factor: float | None, divisor: float | None) -> float:
    return shortest(scale * (1.0 if factor is None else factor) / (1.0 if divisor is None else divisor))


def _rearranged(x: Value, shape: tuple[int, ...] | None, perm: tuple[int, ...] | None) -> Value:
    if shape is not None:
        x = Reshape(shape)(x)
    return x if perm is None else Transpose(perm)(x)


def _need_same(new: Value, old: Value | None) -> None:
    if old is None or new.type != old.type:
        reject("the factor broadcasts the operand to another shape")


ABSORBING_RULES = (query_factor_into_scale, key_factor_into_scale, repeated_heads_as_groups)
"""Rules rooted at an Attention."""
