"""Attention and rotary embedding of operator set 23."""

from __future__ import annotations

import math

import numpy as np

from planish.frontend.call import Call, Converted, Converter, Refusal, apply
from planish.ir import dims, dtypes, ops
from planish.ir.graph import Value
from planish.ir.op import constant


def split_heads(x: Value, heads: int) -> Value:
    """[B, N, heads*D] as [B, heads, N, D]."""
    batch, length, width = x.tensor.dims
    if heads <= 0 or not isinstance(width, int) or width % heads:
        raise Refusal(f"width {width} doesn't split into {heads} heads")
    split = ops.Reshape.to(x.tensor, (batch, length, heads, width // heads))
    if split is None:
        raise Refusal("heads of symbolic extents")
    return apply(ops.Transpose((0, 2, 1, 3)), apply(split, x))


def merge_heads(x: Value) -> Value:
    """[B, heads, N, D] as [B, N, heads*D]."""
    batch, heads, length, width = x.tensor.dims
    rows = apply(ops.Transpose((0, 2, 1, 3)), x)
    merged = ops.Reshape.to(rows.tensor, (batch, length, dims.mul(heads, width)))
    if merged is None:
        raise Refusal("heads of symbolic extents")
    return apply(merged, rows)


def _attention(call: Call) -> Converted:
    call.only_first_result()
    if any(value is not None for value in call.operands[4:]):
        raise Refusal("attention with a cache")
    if call.float_attr("softcap", 0.0) != 0.0 or call.int_attr("softmax_precision", 1) != 1:
        raise Refusal("attention with softcap or another softmax precision")
    if call.int_attr("left_window_size", -1) != -1 or call.int_attr("right_window_size", -1) != -1:
        raise Refusal("attention within a window")
    mask = call.get(3)
    q, k, v = (call.arg(i) for i in range(3))
    flat = len(call.dims(0)) == 3
    if flat:
        own, shared = call.int_attr("q_num_heads"), call.int_attr("kv_num_heads")
        q, k, v = split_heads(q, own), split_heads(k, shared), split_heads(v, shared)
    width = q.tensor.dims[-1]
    if "scale" in call.attrs:
        scale = call.float_attr("scale")
    elif isinstance(width, int):
        scale = 1.0 / math.sqrt(width)
    else:
        raise Refusal("the scale follows from a symbolic width")
    result = apply(ops.Attention(scale, call.flag_attr("is_causal")), q, k, v, mask)
    if mask is not None and mask.tensor.dtype == dtypes.boolean and not _lets_something_through(mask):
        # A row that is hidden as a whole is zero in ONNX, but NaN in the IR.
        zero = np.zeros((), result.tensor.dtype.storage)
        result = apply(ops.Where(), apply(ops.IsNaN(), result), zero, result)
    return merge_heads(result) if flat else result


def _lets_something_through(mask: Value) -> bool:
    """True if the mask is constant (and maybe expanded), and True somewhere in each row."""
    while mask.node is not None and isinstance(mask.node.op, ops.Expand):
        mask = mask.node.inputs[0]
    data = constant(mask)
    return data is not None and bool(data.numpy().any(axis=-1).all())


def _rotary(call: Call) -> Converted:
    if call.int_attr("rotary_embedding_dim", 0) != 0:
        raise Refusal("rotary embedding of a part of the width")
    x, cos, sin = (call.arg(i) for i in range(3))
    if (positions := call.get(3)) is not None:
        cos, sin = (apply(ops.Gather(0), table, positions) for table in (cos, sin))
    op = ops.RotaryEmbedding(call.flag_attr("interleaved"))
    if len(call.dims(0)) == 3:
        return merge_heads(apply(op, split_heads(x, call.int_attr("num_heads")), cos, sin))
    return apply(op, x, cos, sin)


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "Attention"): _attention,
    ("", "RotaryEmbedding"): _rotary,
}
