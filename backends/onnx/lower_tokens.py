"""Choosing, merging and moving tokens to ONNX, with static shapes: TopK for what is sorted, GatherND for rows.

One TopK sorts all tokens and is then cut: two of them, for the highest and for the lowest, both take the first of equal
scores, so that one token would be kept twice and another lost.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as onnx

from planish.backends.onnx.emitter import Emitter, Lowered, Lowering
from planish.backends.onnx.lower_int_norm import isqrt
from planish.backends.onnx.lower_integer import cast, centred, i64
from planish.backends.onnx.lower_reduce import mean
from planish.ir import dtypes, ops
from planish.ir.dtypes import DType
from planish.ir.graph import Node
from planish.ir.op import Op
from planish.ir.ops.int_tokens import UNIT_BITS

Operands = list["onnx.Value | None"]


def _match(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.MatchTokens)
    k = x[0] if node.inputs[0].tensor.dtype == dtypes.f32 else cast(e, x[0], dtypes.f32)
    means = e.op("Squeeze", mean(e, k, (1,), 4), e.ints((1,)))
    squares = e.op("ReduceSum", e.op("Mul", means, means), e.ints((-1,)), keepdims=1)
    length = e.op("Max", e.op("Sqrt", squares), e.constant(np.asarray(1e-12, np.float32), "shortest"))
    return _choice(e, node, e.op("Div", means, length))


def _match_codes(e: Emitter, node: Node, x: Operands) -> Lowered:
    type_ = node.inputs[0].tensor
    sums = e.op("ReduceSum", centred(e, x[0], type_), e.ints((1,)), keepdims=0)
    length = isqrt(e, e.op("ReduceSum", e.op("Mul", sums, sums), e.ints((-1,)), keepdims=1))
    lift = 1 << (UNIT_BITS + 2)  # more than any quotient, so that dividends aren't negative: ONNX rounds toward zero
    dividend = e.op("Add", e.op("Mul", sums, i64(e, 1 << UNIT_BITS)), e.op("Div", length, i64(e, 2)))
    lifted = e.op("Add", dividend, e.op("Mul", length, i64(e, lift)))
    return _choice(e, node, cast(e, e.op("Sub", e.op("Div", lifted, length), i64(e, lift)), dtypes.i32))


def _choice(e: Emitter, node: Node, units: onnx.Value) -> Lowered:
    """Keep, source and into from the normalised keys [B, N, D]; protected ones are left out of both sides."""
    op = node.op
    assert isinstance(op, ops.MatchTokens | ops.IntMatchTokens)
    tokens, merged = int(node.inputs[0].tensor.dims[2]), op.merged
    even, odd = op.protected + op.protected % 2, op.protected + 1 - op.protected % 2
    evens, odds = (e.op("Slice", units, *map(e.ints, ((first,), (tokens,), (1,), (2,)))) for first in (even, odd))
    count = len(range(even, tokens, 2))
    scores = e.op("MatMul", evens, e.op("Transpose", odds, perm=(0, 2, 1)))
    best = e.op("ReduceMax", scores, e.ints((-1,)), keepdims=0) if e.opset >= 18 else _max_before_18(e, scores)
    partner = e.op("ArgMax", scores, axis=-1, keepdims=0)
    order = _top(e, best, count)
    source_of, stay = _cut(e, order, merged, count)
    source = _affine(e, source_of, 2, even)
    target = _affine(e, e.op("GatherElements", partner, source_of, axis=1), 2, odd)
    others = [i for i in range(tokens) if i < even or (i - even) % 2]
    fixed = e.op("Add", e.op("Mul", _column(e, order), i64(e, 0)), i64(e, others))
    keep = _ascending(e, e.op("Concat", _affine(e, stay, 2, even), fixed, axis=1), tokens - merged)
    earlier = e.op("Less", e.op("Unsqueeze", source, e.ints((1,))), e.op("Unsqueeze", target, e.ints((2,))))
    into = e.op("Sub", target, e.op("ReduceSum", cast(e, earlier, dtypes.i64), e.ints((-1,)), keepdims=0))
    return [keep, source, into]


def _max_before_18(e: Emitter, scores: onnx.Value) -> onnx.Value:
    return e.op("ReduceMax", scores, axes=(-1,), keepdims=0)


def _merge(e: Emitter, node: Node, x: Operands) -> Lowered:
    """Every row is its own share plus a product of shares and merged rows, which is small where few merge."""
    rows, keep, source, into, *rest = x
    dtype, size = node.inputs[0].tensor.dtype, rest[0] if rest else None
    weights, kept_size = _weights(e, node, into, keep, source, size, dtype)
    total = e.op("Add", kept_size, e.op("ReduceSum", weights, e.ints((-1,)), keepdims=1))  # [B, M, 1]
    kept = e.op("Mul", _rows(e, rows, keep), e.op("Div", kept_size, total))
    y = e.op("Add", kept, e.op("MatMul", e.op("Div", weights, total), _rows(e, rows, source)))
    return [y, e.op("Squeeze", total, e.ints((2,)))]


def _merge_codes(e: Emitter, node: Node, x: Operands) -> Lowered:
    rows, keep, source, into, *rest = x
    type_, size = node.inputs[0].tensor, None if len(rest) == 0 or rest[0] is None else cast(e, rest[0], dtypes.i64)
    wide = cast(e, rows, dtypes.i64)
    weights, kept_size = _weights(e, node, into, keep, source, size, dtypes.i64)
    total = e.op("Add", kept_size, e.op("ReduceSum", weights, e.ints((-1,)), keepdims=1))
    sums = e.op("Add", e.op("Mul", _rows(e, wide, keep), kept_size), e.op("MatMul", weights, _rows(e, wide, source)))
    twice, lift = e.op("Mul", total, i64(e, 2)), 1 << 17  # more than any code
    dividend = e.op("Add", e.op("Add", e.op("Mul", sums, i64(e, 2)), total), e.op("Mul", twice, i64(e, lift)))
    y = cast(e, e.op("Sub", e.op("Div", dividend, twice), i64(e, lift)), type_.dtype)
    return [y, cast(e, e.op("Squeeze", total, e.ints((2,))), dtypes.i32)]


def _weights(
    e: Emitter, node: Node, into: onnx.Value | None, keep: onnx.Value | None, source: onnx.Value | None,
    size: onnx.Value | None, dtype: DType,
) -> tuple[onnx.Value, onnx.Value]:  # fmt: skip
    """The size of each source in the row that it goes into, [B, M, R], and the sizes of the kept rows, [B, M, 1]."""
    places = np.arange(int(node.inputs[1].tensor.dims[1]), dtype=np.int64)[:, None]
    goes = cast(e, e.op("Equal", e.op("Unsqueeze", into, e.ints((1,))), e.constant(places, "places")), dtype)
    if size is None:
        return goes, e.constant(np.ones((1, 1, 1), dtype.storage), "ones")
    kept, others = (e.op("GatherElements", size, index, axis=1) for index in (keep, source))
    return e.op("Mul", goes, e.op("Unsqueeze", others, e.ints((1,)))), e.op("Unsqueeze", kept, e.ints((2,)))


def _top_tokens(e: Emitter, node: Node, x: Operands) -> Lowered:
    op = node.op
    assert isinstance(op, ops.TopTokens)
    tokens, protected = int(node.inputs[0].tensor.dims[1]), op.protected
    free = e.op("Slice", x[0], *map(e.ints, ((protected,), (tokens,), (1,))))
    order = _affine(e, _top(e, free, tokens - protected), 1, protected)
    high, low = _cut(e, order, op.count - protected, tokens - protected)
    keep = _ascending(e, high, op.count - protected)
    if protected:
        prefix = e.op("Add", e.op("Mul", _column(e, order), i64(e, 0)), i64(e, np.arange(protected)))
        keep = e.op("Concat", prefix, keep, axis=1)
    return [keep, _ascending(e, low, tokens - op.count)]


def _take(e: Emitter, node: Node, x: Operands) -> Lowered:
    return _rows(e, x[0], x[1])


def _place(e: Emitter, node: Node, x: Operands) -> Lowered:
    keep, source, into = x
    kept = int(node.inputs[0].tensor.dims[1])
    every = e.op("Concat", keep, source, axis=1)
    places = e.op("Add", e.op("Mul", keep, i64(e, 0)), i64(e, np.arange(kept)))
    return e.op("ScatterElements", every, every, e.op("Concat", places, into, axis=1), axis=1)


def _rows(e: Emitter, x: onnx.Value | None, index: onnx.Value | None) -> onnx.Value:
    return e.op("GatherND", x, e.op("Unsqueeze", index, e.ints((2,))), batch_dims=1)


def _top(e: Emitter, scores: onnx.Value | None, count: int) -> onnx.Value:
    """Indices of all scores [B, count], the highest first, of equals the first."""
    return e.call("", "TopK", (scores, e.ints((count,))), {"axis": -1, "largest": 1, "sorted": 1}, 2)[1]


def _ascending(e: Emitter, numbers: onnx.Value, count: int) -> onnx.Value:
    """Distinct int64 numbers [B, count], sorted."""
    return e.call("", "TopK", (numbers, e.ints((count,))), {"axis": -1, "largest": 0, "sorted": 1}, 2)[0]


def _cut(e: Emitter, x: onnx.Value, first: int, count: int) -> tuple[onnx.Value, onnx.Value]:
    """[B, count] -> [B, first] and the rest."""
    head, tail = (e.op("Slice", x, *map(e.ints, ((a,), (b,), (1,)))) for a, b in ((0, first), (first, count)))
    return head, tail


def _column(e: Emitter, x: onnx.Value) -> onnx.Value:
    """One column of x [B, at least 1]: what has its batch."""
    return e.op("Slice", x, *map(e.ints, ((0,), (1,), (1,))))


def _affine(e: Emitter, x: onnx.Value, factor: int, shift: int) -> onnx.Value:
    scaled = x if factor == 1 else e.op("Mul", x, i64(e, factor))
    return scaled if shift == 0 else e.op("Add", scaled, i64(e, shift))


LOWERINGS: dict[type[Op], Lowering] = {
    ops.MatchTokens: _match,
    ops.IntMatchTokens: _match_codes,
    ops.MergeTokens: _merge,
    ops.IntMergeTokens: _merge_codes,
    ops.TopTokens: _top_tokens,
    ops.TakeTokens: _take,
    ops.PlaceTokens: _place,
}
