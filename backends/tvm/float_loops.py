"""Reductions, ArgMax, pooling and RotaryEmbedding: loops whose innermost axis runs on vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.epilogue import Context, Epilogue, chunks, lane_of
from planish.backends.tvm.expressions import Reader, shape_of
from planish.backends.tvm.float_expressions import larger, number, smaller
from planish.backends.tvm.float_math import is_nan, let, real
from planish.backends.tvm.float_rows import Fold, filled
from planish.backends.tvm.float_windows import Windows, windowed
from planish.backends.tvm.lanes import vector
from planish.backends.tvm.plain import loops, variable
from planish.backends.tvm.region import Region
from planish.backends.tvm.scope import Expr, Index, Kernel, Scope
from planish.ir import ops
from planish.ir.dtypes import DType
from planish.ir.ops.reduce import _Reduce


def fold_of(op: _Reduce, dtype: DType) -> Fold:
    """How a reduction takes its elements in."""
    name = str(dtype.storage)
    if isinstance(op, ops.ReduceMax | ops.ReduceMin):
        greatest = isinstance(op, ops.ReduceMax)
        combine = larger if greatest else smaller
        bounds = (dtype.min, dtype.max) if dtype.is_integer else (-math.inf, math.inf) if dtype.is_float else (0, 1)
        return Fold(number(bounds[not greatest], dtype), lambda a, b: combine(a, b, dtype), name)
    if isinstance(op, ops.ReduceProd):
        return Fold(number(1, dtype), lambda a, b: a * b, name)
    return Fold(number(0, dtype), lambda a, b: a + b, name)


def reduction(region: Region, context: Context) -> Kernel:
    """Reductions over some axes: on vectors of elements to combine, or of results if the last axis is kept."""
    node = region.anchor
    assert node is not None
    op, x = node.op, node.inputs[0]
    assert isinstance(op, _Reduce)
    shape, dtype, lanes = shape_of(x), x.tensor.dtype, context.isa.lanes
    axes = [axis + len(shape) for axis in op.axes]
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    scope, fold = Scope(), fold_of(op, dtype)
    reader = Reader(scope, context.stored, {})
    squares = isinstance(op, ops.ReduceL2 | ops.ReduceSumSquare)
    found: list[Callable[[Index], Expr]] = []
    epilogue = Epilogue(scope, region, context, lambda index: found[0](index))
    count = math.prod(shape[axis] for axis in axes)

    def element(outer: Index, inner: Index) -> Expr:
        place: list[Expr] = [0] * len(shape)
        for where, index in ((kept, outer), (axes, inner)):
            for axis, i in zip(where, index, strict=True):
                place[axis] = i
        e = reader.at(x, tuple(place))
        return let(e, lambda v: v * v) if squares else e

    def result(total: Expr) -> Expr:
        if isinstance(op, ops.ReduceL2):
            return T.sqrt(total)
        if isinstance(op, ops.ReduceMean):
            return total / real(count) if dtype.is_float else T.truncdiv(total, number(count, dtype))
        return total

    def place_of(outer: Index) -> Index:
        rest = iter(outer)
        return tuple(0 if axis in axes else next(rest) for axis in range(len(shape))) if op.keepdims else outer

    with IRBuilder() as builder, T.seq_scope():
        if len(shape) - 1 in axes or not kept:
            with loops([shape[axis] for axis in kept]) as outer:
                total = variable(fold.dtype, fold(lambda inner: element(outer, inner), [shape[a] for a in axes], lanes))
                found[:] = [lambda index: result(total[0])]
                epilogue.write(place_of(outer))
        else:
            with loops([shape[axis] for axis in kept[:-1]]) as outer:
                for start, width in chunks(shape[-1], 2 * lanes):
                    sums = filled(width, fold.first, fold.dtype)
                    with ExitStack() as stack:
                        inner = tuple(stack.enter_context(T.serial(0, shape[axis])) for axis in axes)
                        with vector(width) as lane:
                            e = element((*outer, start + lane), inner)
                            T.buffer_store(sums, fold.combine(sums[lane], e), [lane])

                    def at(lane: Expr, outer: Index = outer, start: Expr = start) -> Index:
                        return place_of((*outer, start + lane))

                    lane_at = lane_of(at)
                    found[:] = [lambda index, sums=sums, f=lane_at: result(sums[f(index)])]  # type: ignore[misc]
                    epilogue.write_lanes(at, width)
    return scope.finish(builder, region.result)


def greatest_place(region: Region, context: Context) -> Kernel:
    """ArgMax: one element after the other; the first NaN wins."""
    node = region.anchor
    assert node is not None
    op, x = node.op, node.inputs[0]
    assert isinstance(op, ops.ArgMax)
    shape = shape_of(x)
    axis, dtype = len(shape) + op.axis, x.tensor.dtype
    scope = Scope()
    reader = Reader(scope, context.stored, {})
    found: list[Expr] = []
    epilogue = Epilogue(scope, region, context, lambda index: found[0][0])
    with IRBuilder() as builder, T.seq_scope(), loops((*shape[:axis], *shape[axis + 1 :])) as outer:

        def at(place: Expr) -> Expr:
            return reader.at(x, (*outer[:axis], place, *outer[axis:]))

        best, where = variable(str(dtype.storage), at(0)), variable("int64", T.int64(0))
        with T.serial(0, shape[axis]) as i:
            element = variable(str(dtype.storage), at(i))
            above = element[0] > best[0]
            if dtype.is_float:
                above = T.Or(above, T.And(is_nan(element[0]), T.Not(is_nan(best[0]))))
            taken = variable("bool", above)
            T.buffer_store(where, T.Select(taken[0], T.cast(i, "int64"), where[0]), [0])
            T.buffer_store(best, T.Select(taken[0], element[0], best[0]), [0])
        found[:] = [where]
        epilogue.write((*outer[:axis], *((0,) if op.keepdims else ()), *outer[axis:]))
    return scope.finish(builder, region.result)


def pooled(region: Region, context: Context) -> Kernel:
    """MaxPool and AveragePool."""
    node = region.anchor
    assert node is not None
    op, x = node.op, node.inputs[0]
    dtype = x.tensor.dtype
    if isinstance(op, ops.MaxPool):
        lowest = -math.inf if dtype.is_float else dtype.min
        windows = Windows(op.kernel, op.strides, op.dilations, op.pads, number(lowest, dtype))
        return windowed(region, context, x, windows, lambda acc, e, taps, index, reader: larger(acc, e, dtype))
    assert isinstance(op, ops.AveragePool)
    windows = Windows(op.kernel, op.strides, (1,) * len(op.kernel), op.pads, real(0))
    counts = np.full(shape_of(node.result)[2:], math.prod(op.kernel), np.float32)
    if not op.count_include_pad:
        inside = np.ones((1, 1, *shape_of(x)[2:]), np.float32)
        counts = math.prod(op.kernel) * ops.AveragePool(op.kernel, op.strides, op.pads, True).evaluate(inside)[0, 0]

    def mean(total: Expr, index: Index, reader: Reader) -> Expr:
        return total / reader.scope.constant("counts", np.rint(counts).astype(np.float32))[index[2:]]

    return windowed(region, context, x, windows, lambda acc, e, taps, index, reader: acc + e, mean)


def turned(region: Region, context: Context) -> Kernel:
    """RotaryEmbedding: pairs (a, b) become (a cos - b sin, a sin + b cos)."""
    node = region.anchor
    assert node is not None
    op = node.op
    assert isinstance(op, ops.RotaryEmbedding)
    x, cos, sin = node.inputs
    *outer_shape, width = shape_of(x)
    half, step = width // 2, 1 if op.interleaved else width // 2
    scope = Scope()
    reader = Reader(scope, context.stored, {})
    side = [0]

    def element(index: Index) -> Expr:
        *outer, place = index
        pair = T.floordiv(place, 2) if op.interleaved else place - side[0] * half
        first = 2 * pair if op.interleaved else pair

        def factor(table: object) -> Expr:
            image = 0 if shape_of(table)[0] == 1 else index[0]  # type: ignore[arg-type]
            return reader.at(table, (image, index[2], pair))  # type: ignore[arg-type]

        a, b = reader.at(x, (*outer, first)), reader.at(x, (*outer, first + step))
        return a * factor(sin) + b * factor(cos) if side[0] else a * factor(cos) - b * factor(sin)

    epilogue = Epilogue(scope, region, context, element)
    with IRBuilder() as builder, T.seq_scope(), loops(outer_shape) as outer:
        for number_of_side in (0, 1):
            side[0] = number_of_side
            for start, count in chunks(half, context.isa.lanes):
                where = start if not op.interleaved else 2 * start

                def at(lane: Expr, where: Expr = where) -> Index:
                    place = 2 * lane if op.interleaved else lane
                    return (*outer, where + place + side[0] * step)

                epilogue.write_lanes(at, count)
    return scope.finish(builder, region.result)
