"""Choosing, merging and moving tokens to ONNX, with static shapes: TopK for what is sorted, GatherND for rows.

One TopK sorts all tokens and is then cut: two of them, for the highest and for the lowest, both take the first of equal
scores, so that one token would be kept twice and another lost.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as onnx

from planish.backends.onnx.casts import cast, i64
from planish.backends.onnx.emitter import Emitter, Lowered, Lowering
from planish.backends.onnx.lower_int_norm import isqrt
from planish.backends.onnx.lower_integer import centred
from planish.ir import dtypes, ops
from planish.ir.dtypes import DType
from planish.ir.graph import Node
from planish.ir.op import Op
from planish.ir.ops.int_tokens import UNIT_BITS

Operands = list["onnx.Value | None"]


def _match(e: Emitter, node: Node, x: Operands) -> Lowered:
    type_ = node.inputs[0].tensor
    k = x[0] if type_.dtype == dtypes.f32 else cast(e, x[0], dtypes.f32)
    heads, tokens, width = (int(extent) for extent in type_.dims[1:])
    # a product with a row of ones is twice as fast in ONNX Runtime as ReduceMean over an axis in the middle
    share = e.constant(np.full((1, heads), 1 / heads, np.float32), "share")
    means = e.op("MatMul", share, e.op("Reshape", k, e.ints((0, heads, tokens * width))))
    units = e.op("LpNormalization", e.op("Reshape", means, e.ints((0, tokens, width))), axis=-1, p=2)
    return _choice(e, node, units)


def _match_codes(e: Emitter, node: Node, x: Operands) -> Lowered:
    type_ = node.inputs[0].tensor
    sums = e.op("ReduceSum", centred(e, x[0], type_), e.ints((1,)), keepdims=0)
    length = isqrt(e, e.op("ReduceSum", e.op("Mul", sums, sums), e.ints((-1,)), keepdims=1))
    lift = 1 << (UNIT_BITS + 2)  # more than any quotient, so that dividends aren't negative: ONNX rounds toward zero
    dividend = e.op("Add", e.op("Mul", sums, i64(e, 1 << UNIT_BITS)), e.op("Div", length, i64(e, 2)))
    lifted = e.op("Add", dividend, e.op("Mul", length, i64(e, lift)))
    return _choice(e, node, cast(e, e.op("Sub", e.op("Div", lifted, length), i64(e, lift)), dtypes.i32))


def _choice(e: Emitter, node: Node, units: onnx.Value) -> Lowered:
    """Keep, source and into from the normalised keys [B, N, D]; protected ones are left out of both sides.

    Indices are columns [B, R, 1], as GatherND takes them; other lowerings find these under `forms`, and for `into` the
    index of the token itself instead of its place among those that stay.
    """
    op = node.op
    assert isinstance(op, ops.MatchTokens | ops.IntMatchTokens)
    type_, merged = node.inputs[0].tensor, op.merged
    tokens = int(type_.dims[2])
    even, odd = op.protected + op.protected % 2, op.protected + 1 - op.protected % 2
    count = len(range(even, tokens, 2))
    evens, odds = (e.op("Slice", units, *map(e.ints, ((first,), (tokens,), (1,), (2,)))) for first in (even, odd))
    scores = e.op("MatMul", evens, e.op("Transpose", odds, perm=(0, 2, 1)))
    best, partner = _top(e, scores, 1, axis=-1)  # columns [B, count, 1]
    _, order = _top(e, best, count, axis=1)
    merging, staying = _cut(e, order, merged, count)
    source, stays = (e.op("Gather", i64(e, range(even, tokens, 2)), part) for part in (merging, staying))
    target = e.op("Gather", i64(e, range(odd, tokens, 2)), e.op("GatherElements", partner, merging, axis=1))
    others = i64(e, [[i] for i in range(tokens) if i < even or (i - even) % 2])
    every = e.op("Unsqueeze", others, e.ints((0,)))
    if type_.dims[0] != 1:
        every = _for_each_sample(e, order, every)
    keep = _ascending(e, e.op("Concat", stays, every, axis=1), tokens - merged)
    row = e.op("Transpose", source, perm=(0, 2, 1))
    earlier = cast(e, e.op("Less", row, target), dtypes.i64)
    into = e.op("Sub", target, e.op("ReduceSum", earlier, e.ints((-1,)), keepdims=1))
    results = [e.op("Squeeze", column, e.ints((2,))) for column in (keep, source, into)]
    e.forms.update(zip(results, (keep, source, target), strict=True))
    return results


def _merge(e: Emitter, node: Node, x: Operands) -> Lowered:
    """Kept rows plus a product of what goes where with the merged rows, which is small where few merge."""
    rows, keep, source, into, *rest = x
    dtype, size = node.inputs[0].tensor.dtype, rest[0] if rest else None
    weights, kept_size = _weights(e, node, keep, source, into, size, dtype)
    kept = _rows(e, rows, keep) if kept_size is None else e.op("Mul", _rows(e, rows, keep), kept_size)
    total = _total(e, weights, kept_size, dtype)
    y = e.op("Div", e.op("Add", kept, e.op("MatMul", weights, _rows(e, rows, source))), total)
    flat = e.op("Squeeze", total, e.ints((2,)))
    e.forms[flat] = total
    return [y, flat]


def _merge_codes(e: Emitter, node: Node, x: Operands) -> Lowered:
    rows, keep, source, into, *rest = x
    type_, size = node.inputs[0].tensor, None if len(rest) == 0 or rest[0] is None else cast(e, rest[0], dtypes.i64)
    wide = cast(e, rows, dtypes.i64)
    weights, kept_size = _weights(e, node, keep, source, into, size, dtypes.i64)
    kept = _rows(e, wide, keep) if kept_size is None else e.op("Mul", _rows(e, wide, keep), kept_size)
    total = _total(e, weights, kept_size, dtypes.i64)
    sums = e.op("Add", kept, e.op("MatMul", weights, _rows(e, wide, source)))
    twice, lift = e.op("Mul", total, i64(e, 2)), 1 << 17  # more than any code
    dividend = e.op("Add", e.op("Add", e.op("Mul", sums, i64(e, 2)), total), e.op("Mul", twice, i64(e, lift)))
    y = cast(e, e.op("Sub", e.op("Div", dividend, twice), i64(e, lift)), type_.dtype)
    return [y, cast(e, e.op("Squeeze", total, e.ints((2,))), dtypes.i32)]


def _weights(
    e: Emitter, node: Node, keep: onnx.Value | None, source: onnx.Value | None, into: onnx.Value | None,
    size: onnx.Value | None, dtype: DType,
) -> tuple[onnx.Value, onnx.Value | None]:  # fmt: skip
    """The size of each source in the row that it goes into, [B, M, R], and the sizes of the kept rows, [B, M, 1]."""
    count = int(node.inputs[1].tensor.dims[1])
    token = None if into is None else e.forms.get(into)
    places = i64(e, np.arange(count)[:, None]) if token is None else _column(e, keep)
    row = e.op("Unsqueeze", into, e.ints((1,))) if token is None else e.op("Transpose", token, perm=(0, 2, 1))
    goes = cast(e, e.op("Equal", places, row), dtype)
    if size is None:
        return goes, None
    sizes = _column(e, size)
    kept, others = (_rows(e, sizes, index) for index in (keep, source))
    row = e.op("Transpose", others, perm=(0, 2, 1))
    return e.op("Mul", goes, row), kept


def _total(e: Emitter, weights: onnx.Value, kept_size: onnx.Value | None, dtype: DType) -> onnx.Value:
    one = e.constant(np.ones((1, 1, 1), dtype.storage), "one")
    return e.op("Add", one if kept_size is None else kept_size, e.op("ReduceSum", weights, e.ints((-1,)), keepdims=1))


def _top_tokens(e: Emitter, node: Node, x: Operands) -> Lowered:
    op, type_ = node.op, node.inputs[0].tensor
    assert isinstance(op, ops.TopTokens)
    tokens, protected = int(type_.dims[1]), op.protected
    free = e.op("Slice", x[0], *map(e.ints, ((protected,), (tokens,), (1,)))) if protected else x[0]
    order = _top(e, free, tokens - protected, axis=1)[1]
    order = e.op("Add", order, i64(e, protected)) if protected else order
    high, low = _cut(e, order, op.count - protected, tokens - protected)
    keep = _ascending(e, high, op.count - protected)
    if protected:
        prefix = i64(e, np.arange(protected)[None])
        if type_.dims[0] != 1:
            prefix = _for_each_sample(e, order, prefix)
        keep = e.op("Concat", prefix, keep, axis=1)
    return [keep, _ascending(e, low, tokens - op.count)]


def _take(e: Emitter, node: Node, x: Operands) -> Lowered:
    return _rows(e, x[0], x[1])


def _place(e: Emitter, node: Node, x: Operands) -> Lowered:
    keep, source, into = x
    kept = int(node.inputs[0].tensor.dims[1])
    every = e.op("Concat", keep, source, axis=1)
    places = e.op("Add", e.op("Sub", keep, keep), i64(e, np.arange(kept)))
    return e.op("ScatterElements", every, every, e.op("Concat", places, into, axis=1), axis=1)


def _for_each_sample(e: Emitter, like: onnx.Value, index: onnx.Value) -> onnx.Value:
    """Constant indices [1, K, ...] for each sample of `like` [B, ...], whose batch isn't known."""
    first = e.op("Slice", like, *map(e.ints, ((0,), (1,), (1,))))
    return e.op("Add", e.op("Sub", first, first), index)


def _rows(e: Emitter, x: onnx.Value | None, index: onnx.Value | None) -> onnx.Value:
    return e.op("GatherND", x, _column(e, index), batch_dims=1)


def _column(e: Emitter, x: onnx.Value | None) -> onnx.Value:
    """[B, N] as [B, N, 1]; found where its lowering has left it."""
    assert x is not None
    if x not in e.forms:
        e.forms[x] = e.op("Unsqueeze", x, e.ints((2,)))
    return e.forms[x]


def _top(e: Emitter, scores: onnx.Value | None, count: int, axis: int) -> tuple[onnx.Value, onnx.Value]:
    """The `count` highest scores along an axis and their indices, the highest first, of equals the first."""
    values, indices = e.call("", "TopK", (scores, e.ints((count,))), {"axis": axis, "largest": 1, "sorted": 1}, 2)
    return values, indices


def _ascending(e: Emitter, numbers: onnx.Value, count: int) -> onnx.Value:
    """Distinct int64 numbers along axis 1, sorted."""
    return e.call("", "TopK", (numbers, e.ints((count,))), {"axis": 1, "largest": 0, "sorted": 1}, 2)[0]


def _cut(e: Emitter, x: onnx.Value, first: int, count: int) -> tuple[onnx.Value, onnx.Value]:
    """The first rows along axis 1, and the rest."""
    head, tail = e.call("", "Split", (x, e.ints((first, count - first))), {"axis": 1}, 2)
    return head, tail


LOWERINGS: dict[type[Op], Lowering] = {
    ops.MatchTokens: _match,
    ops.IntMatchTokens: _match_codes,
    ops.MergeTokens: _merge,
    ops.IntMergeTokens: _merge_codes,
    ops.TopTokens: _top_tokens,
    ops.TakeTokens: _take,
    ops.PlaceTokens: _place,
}
