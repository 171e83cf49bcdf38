"""Convolution in float32, and what it shares with pooling: windows that move over the places of an image."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.epilogue import Context, Epilogue, chunks, lane_of, pieces
from planish.backends.tvm.expressions import Reader, shape_of, unravelled
from planish.backends.tvm.float_gemm import SPARE_LANES, Product, emit_product, operand
from planish.backends.tvm.float_math import real
from planish.backends.tvm.float_rows import filled
from planish.backends.tvm.float_tiles import Matrix, Panels, pack, tiling
from planish.backends.tvm.lanes import vector
from planish.backends.tvm.plain import loops
from planish.backends.tvm.region import Region
from planish.backends.tvm.scope import Expr, Index, Kernel, Scope
from planish.ir import ops
from planish.ir.graph import Value
from planish.ir.op import constant


@dataclass(frozen=True)
class Windows:
    """Windows of `kernel` taps over an image with `pads` (before each axis, then after) of `filler` around it."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    filler: Expr

    def place(self, result: Index, taps: Index) -> Index:
        """Where a tap of the window of a result lies, in the image with what is around it."""
        return tuple(i * s + t * d for i, s, t, d in zip(result, self.strides, taps, self.dilations, strict=True))


Image = Callable[[Index], Expr]
"""Elements of an image [N, C, ...], counted from where its padding begins."""


def surrounded(x: Value, windows: Windows, scope: Scope, context: Context) -> Image:
    """The image with its padding: a copy, unless there is none."""
    reader = Reader(scope, context.stored, {})
    shape, spatial = shape_of(x), len(windows.kernel)
    if not any(windows.pads):
        return lambda index: reader.at(x, index)
    before, after = windows.pads[:spatial], windows.pads[spatial:]
    extents = tuple(b + extent + a for b, extent, a in zip(before, shape[2:], after, strict=True))
    copy = scope.scratch((*shape[:2], *extents), str(x.tensor.dtype.storage))
    lanes = 2 * context.isa.lanes

    def fill(row: Index, start: int, end: int) -> None:
        for first, count in chunks(end - start, lanes):
            with vector(count) as lane:
                T.buffer_store(copy, windows.filler, [*row, start + first + lane])

    def inner(row: Index) -> None:
        fill(row, 0, before[-1])
        own = tuple(i - b for i, b in zip(row[2:], before, strict=False))
        for first, count in chunks(shape[-1], lanes):
            with vector(count) as lane:
                T.buffer_store(copy, reader.at(x, (*row[:2], *own, first + lane)), [*row, before[-1] + first + lane])
        fill(row, before[-1] + shape[-1], extents[-1])

    with loops((*shape[:2], *extents[:-1])) as row:
        inside = [T.And(i >= b, i < b + e) for i, b, e in zip(row[2:], before, shape[2:-1], strict=False)]
        if not inside:
            inner(row)
        else:
            condition = inside[0]
            for other in inside[1:]:
                condition = T.And(condition, other)
            with T.If(condition):
                with T.Then():
                    inner(row)
                with T.Else():
                    fill(row, 0, extents[-1])
    return lambda index: copy[index]


def windowed(
    region: Region,
    context: Context,
    x: Value,
    windows: Windows,
    combine: Callable[[Expr, Expr, Index, Index, Reader], Expr],
    last: Callable[[Expr, Index, Reader], Expr] | None = None,
) -> Kernel:
    """Each result combines the taps of its window, from the filler on, on vectors along the last axis.

    combine: takes the total, an element, its tap and the index of the result. last: makes the result of the total.
    """
    assert region.anchor is not None
    scope, lanes = Scope(), context.isa.lanes
    reader = Reader(scope, context.stored, {})
    shape, dtype = shape_of(region.anchor.result), str(x.tensor.dtype.storage)
    found: list[Callable[[Index], Expr]] = []
    epilogue = Epilogue(scope, region, context, lambda index: found[0](index))
    with IRBuilder() as builder, T.seq_scope():
        image = surrounded(x, windows, scope, context)
        with loops(shape[:-1]) as outer:
            for start, width in chunks(shape[-1], 2 * lanes):

                def at(lane: Expr, outer: Index = outer, start: Expr = start) -> Index:
                    return (*outer, start + lane)

                total = filled(width, windows.filler, dtype)
                with ExitStack() as stack:
                    taps = tuple(stack.enter_context(T.serial(0, extent)) for extent in windows.kernel)
                    with vector(width) as lane:
                        index = at(lane)
                        element = image((*index[:2], *windows.place(index[2:], taps)))
                        T.buffer_store(total, combine(total[lane], element, taps, index, reader), [lane])
                lane_at = lane_of(at)

                def result(where: Index, total: Expr = total, f: Callable[[Index], Expr] = lane_at) -> Expr:
                    value = total[f(where)]
                    return value if last is None else last(value, where, reader)

                found[:] = [result]
                epilogue.write_lanes(at, width)
    return scope.finish(builder, region.result)


def convolution(region: Region, context: Context) -> Kernel:
    """Conv: a product of filters by windows, or of windows by filters where channels go last; depthwise on its own."""
    node = region.anchor
    assert node is not None
    op = node.op
    assert isinstance(op, ops.Conv)
    x, w, *b = node.inputs
    windows = Windows(shape_of(w)[2:], op.strides, op.dilations, op.pads, real(0))
    bias = b[0] if b else None
    if shape_of(w)[1] == 1 and op.group == shape_of(w)[0]:

        def summed(total: Expr, element: Expr, taps: Index, index: Index, reader: Reader) -> Expr:
            return T.fma(element, reader.at(w, (index[1], 0, *taps)), total)

        def biased(total: Expr, index: Index, reader: Reader) -> Expr:
            return total if bias is None else total + reader.at(bias, (index[1],))

        return windowed(region, context, x, windows, summed, biased)
    scope = Scope()
    with IRBuilder() as builder, T.seq_scope():
        image = surrounded(x, windows, scope, context)
        if region.moves and op.group == 1 and constant(w) is not None:
            _channels_last(region, context, scope, image, windows, w, bias)
        else:
            _channels_first(region, context, scope, image, windows, w, bias)
    return scope.finish(builder, region.result)


def _channels_last(
    region: Region, context: Context, scope: Scope, image: Image, windows: Windows, w: Value, bias: Value | None
) -> None:
    """Windows, copied as rows, by packed filters: a vector of results lies along the channels."""
    assert region.anchor is not None
    batch, filters, *places = shape_of(region.anchor.result)
    taps, data, lanes = shape_of(w)[1:], constant(w), context.isa.lanes
    assert data is not None
    count, depth = batch * math.prod(places), math.prod(taps)
    rows = scope.scratch((count * depth,), "float32")
    with T.parallel(0, count) as row:
        number, *place = unravelled(row, (batch, *places))
        with ExitStack() as stack:
            outer = tuple(stack.enter_context(T.serial(0, extent)) for extent in taps[:-1])
            base: Expr = row
            for extent, i in zip(taps[:-1], outer, strict=True):
                base = base * extent + i
            for start, width in chunks(taps[-1], 2 * lanes):
                with vector(width) as lane:
                    channel, *tap = (*outer, start + lane)
                    element = image((number, channel, *windows.place(tuple(place), tuple(tap))))
                    T.buffer_store(rows, element, [base * taps[-1] + start + lane])
    width = tiling(count, filters, context.isa).vectors * lanes
    panels = scope.constant("panels", pack(data.numpy().reshape(1, filters, depth).transpose(0, 2, 1), width))

    def index(part: Expr, row: Expr, column: Expr) -> Index:
        number, *place = unravelled(row, (batch, *places))
        return (number, column, *place)

    product = Product(
        1, count, depth, filters, index, lambda where: where[1], lambda part: 0, lambda part: 0
    )  # fmt: skip
    emit_product(region, context, scope, product, Matrix(rows, depth, 0), Panels(panels, width), bias, 1)


def _channels_first(
    region: Region, context: Context, scope: Scope, image: Image, windows: Windows, w: Value, bias: Value | None
) -> None:
    """Filters by windows, copied as columns: a vector of results lies along the places of a channel."""
    node = region.anchor
    assert node is not None
    op = node.op
    assert isinstance(op, ops.Conv)
    batch, filters, *places = shape_of(node.result)
    group, count, taps = op.group, math.prod(places), shape_of(w)[1:]
    depth, parts = math.prod(taps), batch * group
    pointwise = math.prod(windows.kernel) == 1 and set(windows.strides) == {1} and not any(windows.pads)
    if pointwise:
        columns = operand(scope, context, node.inputs[0], depth, count, exact=False)
    else:
        columns = _columns(scope, context, image, windows, (parts, group, *taps), tuple(places))
    left = operand(scope, context, w, filters // group, depth, exact=True)

    def index(part: Expr, row: Expr, column: Expr) -> Index:
        number, own = unravelled(part, (batch, group))
        return (number, own * (filters // group) + row, *unravelled(column, places))

    def column_of(where: Index) -> Expr:
        flat: Expr = 0
        for extent, i in zip(places, where[2:], strict=True):
            flat = flat * extent + i
        return flat

    product = Product(
        parts, filters // group, depth, count, index, column_of,
        lambda part: unravelled(part, (batch, group))[1], lambda part: part,
    )  # fmt: skip
    emit_product(region, context, scope, product, left, columns, bias, 1)


def _columns(
    scope: Scope,
    context: Context,
    image: Image,
    windows: Windows,
    shape: tuple[int, ...],
    places: tuple[int, ...],
) -> Matrix:
    """Windows side by side: a row for each channel and tap, a column for each place.

    shape: parts, groups, channels of a group, then the taps.
    """
    parts, group, *taps = shape
    count, depth, lanes = math.prod(places), math.prod(taps), context.isa.lanes
    stride = -(-count // SPARE_LANES) * SPARE_LANES
    copy = scope.scratch((parts * depth * stride,), "float32")
    with T.parallel(0, parts * depth) as row:
        part, channel, *tap = unravelled(row, (parts, *taps))
        number, own = unravelled(part, (parts // group, group))
        with ExitStack() as stack:
            outer = tuple(stack.enter_context(T.serial(0, extent)) for extent in places[:-1])
            base: Expr = 0
            for extent, i in zip(places[:-1], outer, strict=True):
                base = base * extent + i
            for start, width in chunks(places[-1], 2 * lanes):
                with vector(width) as lane:
                    place = windows.place((*outer, start + lane), tuple(tap))
                    element = image((number, own * taps[0] + channel, *place))
                    T.buffer_store(copy, element, [row * stride + base * places[-1] + start + lane])
        for start, width in pieces(stride - count, SPARE_LANES):
            with vector(width) as lane:
                T.buffer_store(copy, real(0), [row * stride + count + start + lane])
    return Matrix(copy, stride, depth * stride)
