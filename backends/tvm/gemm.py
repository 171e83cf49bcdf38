"""IntLinear and IntConv as products by packed int8 weights, with all that follows done before a store."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm import amx
from planish.backends.tvm.epilogue import WIDEST, Context, Epilogue, chunks, lane_of, pieces
from planish.backends.tvm.expressions import RENAMING, Reader, shape_of, unravelled
from planish.backends.tvm.isa import Product, TileProduct
from planish.backends.tvm.lanes import vector
from planish.backends.tvm.region import Region
from planish.backends.tvm.scope import Expr, Index, Kernel, Scope
from planish.backends.tvm.tiles import Panels, Rows, Start, in_block, multiply, pack, shared_out
from planish.ir import ops
from planish.ir.graph import Node, Value
from planish.ir.op import constant
from planish.ir.ops.quantize import quant_of


def linear(region: Region, context: Context) -> Kernel:
    """IntLinear: rows of activations by weights."""
    node = region.anchor
    assert node is not None
    x, w, *b = node.inputs
    weights = constant(w)
    assert weights is not None
    scope = Scope()
    outer = shape_of(node.result)[:-1]
    product = context.isa.product_of(x.tensor.dtype, math.prod(outer))

    def index(row: Expr, column: Expr) -> Index:
        return (*unravelled(row, outer), column)

    with IRBuilder() as builder, T.seq_scope():
        rows = _rows_of(x, scope, context, product)
        bias = constant(b[0]) if b else None
        _blocks(region, context, scope, rows, product, weights.numpy(), None if bias is None else bias.numpy(), index)
    return scope.finish(builder, region.result)


def convolution(region: Region, context: Context) -> Kernel:
    """IntConv of one group: rows are the windows of the result's places."""
    node = region.anchor
    assert node is not None
    assert isinstance(node.op, ops.IntConv)
    op = node.op
    x, w, *b = node.inputs
    weights = constant(w)
    assert weights is not None
    scope = Scope()
    batch, filters, *places = shape_of(node.result)
    product = context.isa.product_of(x.tensor.dtype, batch * math.prod(places))
    source, (_, depth, *window) = shape_of(x), shape_of(w)

    def element(row: Expr, taps: Index) -> tuple[Index, Expr | None]:
        image, *place = unravelled(row, (batch, *places))
        channel, *offsets = taps
        inner = [
            i * s + t * d - p for i, s, t, d, p in zip(place, op.strides, offsets, op.dilations, op.pads, strict=False)
        ]
        inside = None
        if any(op.pads):
            for p, extent in zip(inner, source[2:], strict=True):
                here = T.And(p >= 0, p < extent)
                inside = here if inside is None else T.And(inside, here)
        return (image, channel, *inner), inside

    def index(row: Expr, column: Expr) -> Index:
        image, *place = unravelled(row, (batch, *places))
        return (image, column, *place)

    with IRBuilder() as builder, T.seq_scope():
        count = batch * math.prod(places)
        rows = _gathered(node, x, scope, context, product, count, (depth, *window), element)
        flat = weights.numpy().reshape(filters, -1).T
        bias = constant(b[0]) if b else None
        _blocks(region, context, scope, rows, product, flat, None if bias is None else bias.numpy(), index)
    return scope.finish(builder, region.result)


def _blocks(
    region: Region,
    context: Context,
    scope: Scope,
    rows: Rows,
    product: Product | TileProduct,
    weights: np.ndarray,
    bias: np.ndarray | None,
    index: Callable[[Expr, Expr], Index],
) -> None:
    """Tiles over all of the result; as a rule columns outermost, so that packed weights stay in the nearest cache."""
    node, isa = region.anchor, context.isa
    assert node is not None
    depth, columns = weights.shape
    plan = context.schedule.tiling(math.prod(shape_of(node.result)) // columns, columns, depth, isa, product)
    width, steps = plan.vectors * isa.lanes, -(-depth // product.depth)
    wide, stride = -(-columns // width), width * product.group
    packed = scope.constant("panels", pack(weights, plan.vectors, isa, product))
    panel = steps * product.depth // product.group * stride
    rows_in_all = math.prod(shape_of(node.result)) // columns
    ahead = _lines_ahead(panel, rows_in_all)
    first = scope.constant("start", _start(node, weights, bias, product, wide * width))

    def body(room: amx.Room | None, block: Expr, row: Expr, height: int, used: int) -> None:
        def finish(i: Expr, sums: Callable[[Expr], Expr]) -> None:
            for line in range(ahead):
                place = (block + 1) * panel + ((row + i) * ahead + line) * _LINE
                fetch = T.call_llvm_intrin("void", "llvm.prefetch", T.address_of(packed[place]), *_FOR_READING)
                T.evaluate(fetch)
            _finish(region, context, scope, sums, row + i, block * width, used, index)

        above = block * panel
        panels = Panels(packed, lambda v: above + v * isa.lanes * product.group, stride)
        start = Start(first, block * width)
        multiply(rows, row, height, -(-used // isa.lanes), steps, panels, start, isa, product, room, finish)

    scope.reaching(amx.ROWS * rows.stride + product.depth)
    with shared_out(wide * plan.blocks, scope, product) as (task, room):
        if plan.rows_first:
            part, column = unravelled(task, (plan.blocks, wide))
        else:
            column, part = unravelled(task, (wide, plan.blocks))

        in_block(plan, part, column, columns, width, lambda row, h, used: body(room, column, row, h, used))


_LINE = 64  # bytes of a cache line
_FOR_READING = (T.int32(0), T.int32(2), T.int32(1))  # into the second-level cache, as data
_WORTH_FETCHING = 1 << 14  # bytes of a panel; smaller ones come fast enough by themselves
_FEW_ROWS = 16


def _lines_ahead(panel: int, rows: int) -> int:
    """Cache lines of the next panel of weights that each row fetches as it is finished; 0 where that isn't worth it.

    The weights of a model are larger than the nearer caches, so that the first rows of each panel would wait for memory
    while it has nothing to do as results are rescaled: a sixth of DeiT-S's time.
    """
    return -(-panel // (_LINE * rows)) if panel >= _WORTH_FETCHING and rows >= _FEW_ROWS else 0


def _finish(
    region: Region,
    context: Context,
    scope: Scope,
    sums: Callable[[Expr], Expr],
    row: Expr,
    start: Expr,
    used: int,
    index: Callable[[Expr, Expr], Index],
) -> None:
    """Store one row of a tile."""
    for chunk, lanes in pieces(used, WIDEST):

        def at(lane: Expr, chunk: int = chunk) -> Index:
            return index(row, start + chunk + lane)

        lane_at = lane_of(at)
        epilogue = Epilogue(scope, region, context, lambda where, c=chunk, f=lane_at: sums(c + f(where)))  # type: ignore[misc]
        epilogue.write_lanes(at, lanes)


def _start(
    node: Node, weights: np.ndarray, bias: np.ndarray | None, product: Product | TileProduct, width: int
) -> np.ndarray:
    """First sums of each column: the bias, less what zero points and shifts of codes add up to; modulo 2**32."""
    type_ = node.inputs[0].tensor
    offset = quant_of("x", type_).zero + product.shift(type_.dtype)
    total = np.zeros(width, np.int64)
    total[: weights.shape[1]] = -offset * np.sum(weights, axis=0, dtype=np.int64)
    if bias is not None:
        total[: bias.shape[0]] += bias
    return total.astype(np.uint32).view(np.int32) if total.size else total.astype(np.int32)


def _rows_of(x: Value, scope: Scope, context: Context, product: Product | TileProduct) -> Rows:
    """Activations as rows: where they are stored, if they are stored so; else a copy."""
    *outer, depth = shape_of(x)
    source = _contiguous(x, context.stored)
    if source is not None and product.shift(x.tensor.dtype) == 0 and product.dtype == str(source.tensor.dtype.storage):
        return Rows(scope.flat(source), depth)
    node = x.users[0]
    count = math.prod(outer)
    return _gathered(
        node, x, scope, context, product, count, (depth,), lambda row, k: ((*unravelled(row, outer), *k), None)
    )


def _contiguous(value: Value, stored: frozenset[Value]) -> Value | None:
    """The stored value of the graph whose elements, in order, are those of `value`."""
    while value not in stored:
        node = value.node
        if node is None or not isinstance(node.op, (ops.Reshape, ops.Squeeze, ops.Unsqueeze, *RENAMING)):
            return None
        value = node.inputs[0]
    return value if value.node is not None and not _is_output(value) else None


def _is_output(value: Value) -> bool:
    return any(isinstance(user.op, ops.Return) for user in value.users)


def _gathered(
    node: Node,
    x: Value,
    scope: Scope,
    context: Context,
    product: Product | TileProduct,
    count: int,
    taps: Sequence[int],
    element: Callable[[Expr, Index], tuple[Index, Expr | None]],
) -> Rows:
    """A copy of the elements that each row needs, in working memory; places outside of x stand for zero."""
    depth = math.prod(taps)
    stride = -(-depth // product.group) * product.group
    rows = scope.scratch((count * stride + WIDEST,), product.dtype)
    type_ = x.tensor
    shift = product.shift(type_.dtype)
    outside = quant_of("x", type_).zero + shift
    reader = Reader(scope, context.stored, {})

    def copy(row: Expr, before: Index, start: Expr, lanes: int, base: Expr) -> None:
        with vector(lanes) as lane:
            place, inside = element(row, (*before, start + lane))
            code = T.cast(T.cast(reader.at(x, place), "int32") + shift, product.dtype)
            if inside is not None:
                code = T.if_then_else(inside, code, T.Cast(product.dtype, outside))
            T.buffer_store(rows, code, [row * stride + base + start + lane])

    with T.parallel(0, count) as row:
        *before, last = taps

        def nest(done: Index, base: Expr, rest: Sequence[int]) -> None:
            if not rest:
                padded = element(row, tuple(0 for _ in taps))[1] is not None
                for start, lanes in chunks(last, 1 if padded else WIDEST):
                    copy(row, done, start, lanes, base * last)
                return
            with T.serial(0, rest[0]) as i:
                nest((*done, i), base * rest[0] + i, rest[1:])

        nest((), 0, before)
        if stride > depth:
            for k in range(depth, stride):
                T.buffer_store(rows, T.Cast(product.dtype, 0), [row * stride + k])
    return Rows(rows, stride)
