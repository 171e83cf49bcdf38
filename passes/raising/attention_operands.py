"""Queries, keys and values of an attention that is spelled out: transposed keys, scalar factors, heads in the batch."""

from __future__ import annotations

from planish.ir import dims
from planish.ir.graph import Value
from planish.ir.op import constant
from planish.ir.ops import Attention, Div, DynamicReshape, Mul, Reshape, Squeeze, Transpose, Unsqueeze
from planish.passes.raising.attention_mask import Mask
from planish.passes.raising.parameters import shortest
from planish.passes.rewrite import reject


def keys(transposed: Value) -> Value:
    """k[..., M, D] from its transpose[..., D, M]: the value before the transposition where there is one."""
    rank = len(transposed.tensor.dims)
    exchange = (*range(rank - 2), rank - 1, rank - 2)
    node = transposed.node
    if node is not None and isinstance(node.op, Transpose):
        (source,) = node.inputs
        order = tuple(node.op.perm[place] for place in exchange)
        if order == tuple(range(rank)):
            return source
        moved: Value = Transpose(order)(source)
        return moved
    merged = _transposed_between_reshapes(transposed)
    if merged is not None:
        return merged
    result: Value = Transpose(exchange)(transposed)
    return result


def on_heads(q: Value, k: Value, v: Value, mask: Mask, scale: float) -> Value:
    """Attention of q, k, v of rank 4; or of rank 3, [B * H, N, D], by their heads or as one head each."""
    op = Attention(shortest(scale), mask.causal)
    if q.tensor.rank == 4:
        result: Value = op(q, k, v, mask.value)
        return result
    rejoined = _on_split_heads(op, q, k, v, mask)
    if rejoined is not None:
        return rejoined
    add_head, value = Unsqueeze((1,)), mask.value
    if value is not None and value.tensor.rank == 3:
        value = add_head(value)
    single: Value = Squeeze((1,))(op(add_head(q), add_head(k), add_head(v), value))
    return single


def _on_split_heads(op: Attention, q: Value, k: Value, v: Value, mask: Mask) -> Value | None:
    heads = [x for x in map(split_heads, (q, k, v)) if x is not None]
    if len(heads) != 3 or len({x.tensor.dims[:2] for x in heads}) != 1:
        return None
    if mask.value is not None and mask.value.tensor.dims[:-2] not in ((), (1,)):
        return None
    result: Value = op(*heads, mask.value)
    merged = Reshape.to(result.tensor, (*q.tensor.dims[:-1], v.tensor.dims[-1]))
    if merged is None:
        return None
    rejoined: Value = merged(result)
    return rejoined


def without_factor(value: Value) -> tuple[Value, float]:
    """x and c, where `value` is c * x with constant factors of one element."""
    factor = 1.0
    while (node := value.node) is not None and isinstance(node.op, Mul | Div):
        operands = [*node.inputs, *(node.inputs[::-1] if isinstance(node.op, Mul) else ())]
        for x, number in zip(operands[::2], operands[1::2], strict=True):
            data = constant(number)
            if data is not None and data.size == 1 and x.type == value.type:
                found = float(data.numpy().reshape(-1)[0])
                break
        else:
            break
        if found == 0:
            break
        factor = factor * found if isinstance(node.op, Mul) else factor / found
        value = x
    return value, factor


def need_same_heads(q: Value, k: Value, v: Value) -> None:
    """Reject the match unless q, k and v [.., N, D] have provably the same leading axes, and M is one length."""
    lead = q.tensor.dims[:-2]
    for name, value in (("k", k), ("v", v)):
        if value.tensor.dims[:-2] != lead:
            reject(f"{name} is {value.type}, which doesn't have the batch and heads of q, {q.type}")
    if k.tensor.dims[-2] != v.tensor.dims[-2]:
        reject(f"k is {k.type} and v {v.type}: their lengths differ")


def split_heads(merged: Value) -> Value | None:
    """x[B, H, N, D] of which `merged`[B * H, N, D] is a reshape; None if it isn't."""
    source = _before_reshape(merged)
    if source is None or source.tensor.rank != 4:
        return None
    batch, heads, *rest = source.tensor.dims
    return source if (dims.mul(batch, heads), *rest) == merged.tensor.dims else None


def _before_reshape(value: Value) -> Value | None:
    node = value.node
    return node.operands[0] if node is not None and isinstance(node.op, Reshape | DynamicReshape) else None


def _transposed_between_reshapes(transposed: Value) -> Value | None:
    """k[B, H, M, D] where `transposed`[B, H, D, M] is it, reshaped to [B * H, M, D], transposed and reshaped back."""
    turned = _before_reshape(transposed)
    if turned is None or turned.node is None or turned.node.op != Transpose((0, 2, 1)):
        return None
    (merged,) = turned.node.inputs
    source = split_heads(merged)
    if source is None or source.tensor.rank != len(transposed.tensor.dims):
        return None
    batch, heads, length, width = source.tensor.dims
    return source if transposed.tensor.dims == (batch, heads, width, length) else None
