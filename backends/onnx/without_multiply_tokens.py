"""Matching and merging of tokens without multiplications: the integers of the ordinary lowerings, to the bit."""

from __future__ import annotations

from math import isqrt

import numpy as np
import onnx_ir as onnx

from planish.backends.onnx.casts import cast, i64
from planish.backends.onnx.emitter import Emitter, Lowered, Lowering
from planish.backends.onnx.lower_tokens import choice, column, goes_into, rows
from planish.backends.onnx.shift_arithmetic import added, by_row, divided, left, right, root, square
from planish.backends.onnx.ternary_planes import looked_up_planes
from planish.ir import dtypes, ops
from planish.ir.graph import Node
from planish.ir.op import Op
from planish.ir.ops.int_tokens import UNIT_BITS

Operands = list["onnx.Value | None"]
_UNIT = 1 << (UNIT_BITS + 1)  # more than a normalised key: the root is floored, so that these exceed 1 a little


def _match(e: Emitter, node: Node, x: Operands) -> Lowered:
    heads, width = (int(node.inputs[0].tensor.dims[axis]) for axis in (1, 3))
    most = heads * -dtypes.i8.min
    sums = e.op("ReduceSum", cast(e, x[0], dtypes.i64), e.ints((1,)), keepdims=0)
    squares = cast(e, square(e, cast(e, e.op("Abs", sums), dtypes.u64), most), dtypes.i64)
    total = cast(e, e.op("ReduceSum", squares, e.ints((-1,)), keepdims=1), dtypes.u64)
    length = root(e, total, width * most**2)
    lift = UNIT_BITS + 2  # so that dividends aren't negative
    dividend = e.op("Add", left(e, cast(e, sums, dtypes.u64), UNIT_BITS), right(e, length, 1))
    dividend = e.op("Add", dividend, left(e, length, lift))
    units = e.op("Sub", divided(e, dividend, length, lift + 1, isqrt(width * most**2)), i64(e, 1 << lift))
    return choice(e, node, cast(e, units, dtypes.i32), _product)


def _product(e: Emitter, a: onnx.Value, b: onnx.Value) -> onnx.Value:
    """Product of normalised keys: the right ones as ternary planes, looked up."""
    index = e.op("Add", b, e.constant(np.asarray(_UNIT, np.int32), "integer"))
    planes = looked_up_planes(e, index, np.arange(-_UNIT, _UNIT + 1), e.op("Shape", b))
    return added(e, [(e.op("MatMul", a, cast(e, plane, dtypes.i32)), p) for plane, p in planes])


def _merge(e: Emitter, node: Node, x: Operands) -> Lowered:
    """Sums of what goes where, rows times their sizes first, and a rounded mean by restoring division."""
    op, type_ = node.op, node.inputs[0].tensor
    assert isinstance(op, ops.IntMergeTokens)
    tokens, keep, source, into, *rest = x
    wide, goes = cast(e, tokens, dtypes.i64), goes_into(e, node, keep, into, dtypes.i64)
    if rest and rest[0] is not None:
        sizes = column(e, cast(e, rest[0], dtypes.i64))
        wide = cast(e, by_row(e, wide, cast(e, sizes, dtypes.u64), -type_.dtype.min), dtypes.i64)
        total = e.op("Add", rows(e, sizes, keep), e.op("MatMul", goes, rows(e, sizes, source)))
    else:
        total = e.op("Add", e.op("ReduceSum", goes, e.ints((-1,)), keepdims=1), i64(e, 1))
    sums = e.op("Add", rows(e, wide, keep), e.op("MatMul", goes, rows(e, wide, source)))
    lift = type_.dtype.bits
    weight = cast(e, total, dtypes.u64)
    dividend = e.op("Add", e.op("Add", left(e, cast(e, sums, dtypes.u64), 1), weight), left(e, weight, lift + 1))
    mean = divided(e, dividend, left(e, weight, 1), lift + 1, 2 * op.most)
    y = cast(e, e.op("Sub", mean, i64(e, 1 << lift)), type_.dtype)
    return [y, cast(e, e.op("Squeeze", total, e.ints((2,))), dtypes.i32)]


LOWERINGS: dict[type[Op], Lowering] = {ops.IntMatchTokens: _match, ops.IntMergeTokens: _merge}
