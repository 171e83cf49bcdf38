"""Attention whose scores are masked or normalised under another shape: merged heads (CLIP, Keras), windows (Swin)."""

from __future__ import annotations

import numpy as np

from planish.ir import dims
from planish.ir.data import Data
from planish.ir.dims import Dim
from planish.ir.graph import Value
from planish.ir.op import constant
from planish.ir.ops import Add, Attention, Const, Div, MatMul, Mul, Reshape, Softmax, Transpose, Unsqueeze
from planish.ir.types import TensorType
from planish.passes.exactness import ROUNDING
from planish.passes.pattern import Array, Pattern, Scalar, attr, either
from planish.passes.raising.attention_mask import Mask, need_broadcast, simplified
from planish.passes.raising.attention_operands import keys, need_same_heads, without_factor
from planish.passes.raising.parameters import keeping, quotient, shortest
from planish.passes.rewrite import reject, rule


def attention_masked_in_windows(
    q: Pattern, k: Pattern, v: Pattern, factor: Scalar, divisor: Scalar, bias: Array, mask: Pattern
) -> Pattern:
    product = MatMul()(q, k)
    scores = either(product, Mul()(product, factor), Div()(product, divisor))
    windows = Reshape(shape=attr("split"))(either(scores, Add()(scores, bias)))
    logits = Reshape(shape=attr("merged"))(Add()(windows, mask))
    return MatMul()(Softmax(axis=-1)(logits), v)


@rule(attention_masked_in_windows, exactness=ROUNDING)
def attention_in_windows(
    q: Value,
    k: Value,
    v: Value,
    factor: float | None,
    divisor: float | None,
    bias: np.ndarray | None,
    mask: Value,
    split: tuple[int, ...],
    merged: tuple[int, ...],
    root: Value,
) -> Value:
    """softmax(reshape(reshape(q @ k.T) + mask)) @ v = Attention with the split axes as heads, reshaped back."""
    q, k, scale = _operands(q, k, v, factor, divisor)
    length = k.tensor.dims[-2]
    scores = (*q.tensor.dims[:-1], length)
    lead, shape = _split_axes(q, scores, split)
    total = _on_windows(mask, bias, scores, shape)
    heads = (lead[0], dims.product(lead[1:]))
    parts = [_reshaped(x, (*heads, *x.tensor.dims[-2:])) for x in (q, k, v)]
    found = simplified(total, (*heads, *scores[-2:]))
    result = Attention(shortest(scale), found.causal)(*parts, found.value)
    return keeping(_reshaped(result, (*q.tensor.dims[:-1], v.tensor.dims[-1])), root)


def _operands(q: Value, k: Value, v: Value, factor: float | None, divisor: float | None) -> tuple[Value, Value, float]:
    """Queries and keys without their constant factors, keys in the order of Attention, and the scale."""
    q, q_scale = without_factor(q)
    k, k_scale = without_factor(k)
    scale = q_scale * k_scale * quotient(factor, divisor)
    k = keys(k)
    need_same_heads(q, k, v)
    return q, k, scale


def attention_with_split_scores(
    q: Pattern, k: Pattern, v: Pattern, factor: Scalar, divisor: Scalar, mask: Pattern
) -> Pattern:
    split = Reshape(shape=attr("split"))(MatMul()(q, k))
    scores = either(split, Mul()(split, factor), Div()(split, divisor))
    softmax = Softmax(axis=-1)(either(scores, Add()(scores, mask)))
    return MatMul()(Reshape(shape=attr("merged"))(softmax), v)


@rule(attention_with_split_scores, exactness=ROUNDING)
def attention_of_split_scores(
    q: Value,
    k: Value,
    v: Value,
    factor: float | None,
    divisor: float | None,
    mask: Value | None,
    split: tuple[int, ...],
    merged: tuple[int, ...],
    root: Value,
) -> Value:
    """reshape(softmax(reshape(q @ k.T) + mask)) @ v = Attention with the split axes as heads, reshaped back."""
    q, k, scale = _operands(q, k, v, factor, divisor)
    scores = (*q.tensor.dims[:-1], k.tensor.dims[-2])
    lead, shape = _split_axes(q, scores, split)
    if len(shape) != 4:
        reject(f"scores of shape {list(shape)} have no batch and heads")
    if mask is not None:
        need_broadcast(mask, shape)
    found = Mask() if mask is None else simplified(mask, shape)
    parts = [_reshaped(x, (*lead, *x.tensor.dims[-2:])) for x in (q, k, v)]
    result = Attention(shortest(scale), found.causal)(*parts, found.value)
    return keeping(_reshaped(result, (*q.tensor.dims[:-1], v.tensor.dims[-1])), root)


def attention_with_turned_scores(k: Pattern, q: Pattern, v: Pattern, factor: Scalar, divisor: Scalar) -> Pattern:
    split = Reshape(shape=attr("split"))(MatMul()(k, q))
    softmax = Softmax(axis=-2)(either(split, Mul()(split, factor), Div()(split, divisor)))
    turned = Transpose(perm=attr("perm"))(either(softmax, Unsqueeze(axes=attr("added"))(softmax)))
    return MatMul()(Reshape(shape=attr("merged"))(turned), v)


@rule(attention_with_turned_scores, exactness=ROUNDING)
def attention_of_turned_scores(
    k: Value,
    q: Value,
    v: Value,
    factor: float | None,
    divisor: float | None,
    split: tuple[int, ...],
    perm: tuple[int, ...],
    merged: tuple[int, ...],
    root: Value,
    added: tuple[int, ...] = (),
) -> Value:
    """reshape(softmax over rows of reshape(k @ q.T)).T @ v = Attention with the split axes as heads (Keras 2)."""
    kept = [place for place in range(len(perm)) if place not in added]
    if [kept.index(place) for place in perm if place in kept] != [0, 1, 3, 2]:
        reject(f"the weights are permuted by {perm}, not transposed")
    k, k_scale = without_factor(k)
    q, q_scale = without_factor(q)
    q = keys(q)
    need_same_heads(q, k, v)
    lead, _ = _split_axes(k, (*k.tensor.dims[:-1], q.tensor.dims[-2]), split)
    parts = [_reshaped(x, (*lead, *x.tensor.dims[-2:])) for x in (q, k, v)]
    result = Attention(shortest(q_scale * k_scale * quotient(factor, divisor)))(*parts)
    return keeping(_reshaped(result, (*q.tensor.dims[:-1], v.tensor.dims[-1])), root)


def _split_axes(q: Value, scores: tuple[Dim, ...], split: tuple[int, ...]) -> tuple[tuple[Dim, ...], tuple[Dim, ...]]:
    """Leading axes of the scores under their other shape, and that shape."""
    shape = Reshape(split).infer(TensorType(q.tensor.dtype, scores)).dims
    lead = shape[:-2]
    if shape[-2:] != scores[-2:] or len(lead) < 2 or dims.product(lead) != dims.product(scores[:-2]):
        reject(f"scores of shape {list(scores)} are masked as {list(shape)}, which isn't a split of batch and heads")
    return lead, shape


def _on_windows(mask: Value, bias: np.ndarray | None, scores: tuple[Dim, ...], shape: tuple[Dim, ...]) -> Value:
    """Mask (and bias of the scores) for heads that are all split axes but the first."""
    need_broadcast(mask, shape)
    if bias is None and len(shape) == 4:
        return mask
    data = constant(mask)
    extents = [extent for extent in shape[1:] if isinstance(extent, int)]
    if data is None or len(extents) != len(shape) - 1:
        reject("the mask of the windows is not constant")
    array = data.numpy()
    if array.ndim == len(shape) and array.shape[0] != 1:
        reject(f"the mask of shape {array.shape} differs between images")
    array = array.reshape(array.shape[-len(extents) :])
    if bias is not None:
        own = bias.reshape(bias.shape[max(bias.ndim - 3, 0) :])
        if bias.size != own.size or shape[-3] != scores[-3] or len(scores) != 4:
            reject(f"a bias of shape {bias.shape} doesn't repeat in every window")
        array = array + own
    full = np.broadcast_to(array, extents).reshape(1, -1, *extents[-2:])
    total: Value = Const(Data(np.ascontiguousarray(full)))()
    return total


def _reshaped(x: Value, target: tuple[Dim, ...]) -> Value:
    op = Reshape.to(x.tensor, target)
    if op is None:
        reject(f"{x.type} can't be reshaped to {list(target)}")
    result: Value = op(x)
    return result
