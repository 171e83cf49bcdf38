"""IntLinear and IntConv as products by packed int8 weights, with all that follows done before a store."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm import amx, sparse_products, tiles
from planish.backends.tvm.by_column import ByColumn, is_by_column
from planish.backends.tvm.codes import Codes, codes_of, in_registers, unpack
from planish.backends.tvm.epilogue import WIDEST, Context, Epilogue, chunks, lane_of, pieces
from planish.backends.tvm.expressions import RENAMING, Reader, shape_of, unravelled
from planish.backends.tvm.isa import Product, ShiftProduct, TileProduct
from planish.backends.tvm.lanes import vector
from planish.backends.tvm.region import Region
from planish.backends.tvm.scope import Expr, Index, Kernel, Scope
from planish.backends.tvm.sparse_weights import Form, form_of
from planish.backends.tvm.tiles import Panels, Rows, Start, in_block, multiply, shared_out
from planish.ir import ops
from planish.ir.graph import Node, Value
from planish.ir.op import constant
from planish.ir.ops.quantize import quant_of


def linear(region: Region, context: Context) -> Kernel:
    """IntLinear: rows of activations by weights."""
    node = region.anchor
    assert node is not None
    x, _, *b = node.inputs
    scope = Scope()
    outer = shape_of(node.result)[:-1]
    matrix = weights_of(node, context)

    def index(row: Expr, column: Expr) -> Index:
        return (*unravelled(row, outer), column)

    with IRBuilder() as builder, T.seq_scope():
        made = context.layouts.read.get(node)
        rows = _rows_of(x, scope, context, matrix) if made is None or made.maker is node else None
        bias = constant(b[0]) if b else None
        _blocks(region, context, scope, rows, matrix, None if bias is None else bias.numpy(), index)
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
    count = batch * math.prod(places)
    flat = _weights(node, weights.numpy().reshape(filters, -1).T, codes_of(w), count, context)
    product = flat.product
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
        rows = _gathered(node, x, scope, context, product, count, (depth, *window), element)
        bias = constant(b[0]) if b else None
        _blocks(region, context, scope, rows, flat, None if bias is None else bias.numpy(), index)
    return scope.finish(builder, region.result)


@dataclass(frozen=True)
class Weights:
    """int8 [K, N], and how they are multiplied.

    codes: that they are packed in, if that isn't bytes. form: without zeros, where that is worth it.
    """

    matrix: np.ndarray
    codes: Codes | None
    form: Form | None
    product: Product | TileProduct


def is_packable(node: Node) -> bool:
    """True if weights and bias are known, and activations have at most 16 bits."""
    x, *parameters = node.inputs
    known = all(constant(value) is not None for value in parameters)
    return known and x.tensor.dtype.bits <= 16 and parameters[0].tensor.dtype.bits <= 8


def weights_of(node: Node, context: Context) -> Weights:
    """Those of an IntLinear."""
    x, w, *_ = node.inputs
    weights = constant(w)
    assert weights is not None
    return _weights(node, weights.numpy(), codes_of(w), math.prod(shape_of(x)[:-1]), context)


def _weights(node: Node, matrix: np.ndarray, codes: Codes | None, rows: int, context: Context) -> Weights:
    """How so many rows are multiplied by a node's int8 [K, N]."""
    dtype, known = node.inputs[0].tensor.dtype, context.layouts.forms
    form = known.get(node)
    if node not in known and codes is None:
        form = form_of(matrix, rows, context.isa, dtype)
    product = context.isa.product_by(matrix, dtype, rows) if form is None else form.product
    return Weights(matrix, codes, form, product)


def _blocks(
    region: Region,
    context: Context,
    scope: Scope,
    rows: Rows | None,
    weights: Weights,
    bias: np.ndarray | None,
    index: Callable[[Expr, Expr], Index],
) -> None:
    """Tiles over all of the result; as a rule columns outermost, so that packed weights stay in the nearest cache.

    Codes are decoded in registers where they are read once; else a panel at a time, for all rows.
    rows: None for those that another kernel has brought into blocks of tokens.
    """
    node, isa, product = region.anchor, context.isa, weights.product
    assert node is not None
    depth, columns = weights.matrix.shape
    rows_in_all = math.prod(shape_of(node.result)) // columns
    if weights.form is not None:
        whole = -(-columns // sparse_products.WIDTH) * sparse_products.WIDTH
        start = scope.constant("start", _start(node, weights.matrix, bias, product, whole))

        def store(row: Expr, column: Expr, used: int, sums: Callable[[Expr], Expr]) -> None:
            _finish(region, context, scope, sums, row, column, used, index)

        compact = weights.form.compact(weights.matrix)
        columnwise = isinstance(node.op, ops.IntLinear) and is_by_column(region)
        by_column = ByColumn(scope, region, context, index) if columnwise else None
        made = context.layouts.read.get(node)
        sparse_products.multiply(
            rows, made, rows_in_all, depth, columns, compact, start, isa, product, scope, store, by_column
        )
        return
    assert rows is not None
    plan = context.schedule.tiling(rows_in_all, columns, depth, isa, product)
    codes = None if isinstance(product, ShiftProduct) else weights.codes  # its planes are as many as weights have bits
    width, steps = plan.vectors * isa.lanes, tiles.steps_of(depth, product, codes)
    wide, stride, groups = -(-columns // width), width * product.group, steps * product.depth // product.group
    array = tiles.pack(weights.matrix, plan.vectors, isa, product, codes)
    if codes is not None:
        array = codes.packed(array, groups * stride, stride)
    packed, panel = scope.constant("panels", array), array.size // wide
    ahead = _lines_ahead(panel, rows_in_all)
    first = scope.constant("start", _start(node, weights.matrix, bias, product, wide * width))
    once = plan.blocks == 1
    decoder = in_registers(codes, isa, product, scope) if codes is not None and once else None
    fetched = _FETCHED if once and panel >= _WORTH_FETCHING else 0
    scope.reaching(amx.ROWS * rows.stride + max(product.depth, _WIDEST_UNIT * product.group))

    def body(room: amx.Room | None, unpacked: Expr | None, block: Expr, row: Expr, height: int, used: int) -> None:
        def finish(i: Expr, sums: Callable[[Expr], Expr]) -> None:
            for line in range(ahead):
                tiles.prefetch(packed[(block + 1) * panel + ((row + i) * ahead + line) * tiles.LINE])
            _finish(region, context, scope, sums, row + i, block * width, used, index)

        above = block * panel if unpacked is None else 0
        at = lambda v: above + v * isa.lanes * product.group  # noqa: E731
        panels = Panels(packed if unpacked is None else unpacked, at, stride, decoder, fetched)
        start = Start(first, block * width)
        multiply(rows, row, height, -(-used // isa.lanes), steps, panels, start, isa, product, room, finish)

    if codes is not None and decoder is None:
        with shared_out(wide, scope, product) as (column, room):
            unpacked = T.alloc_buffer((groups * stride,), "int8", scope="global")  # each thread has its own
            unpack(codes, isa, scope, packed, column * panel, unpacked, stride, groups)
            with T.serial(0, plan.blocks) as part:
                in_block(plan, part, column, columns, width, lambda *found: body(room, unpacked, column, *found))
        return
    with shared_out(wide * plan.blocks, scope, product) as (task, room):
        if plan.rows_first:
            part, column = unravelled(task, (plan.blocks, wide))
        else:
            column, part = unravelled(task, (wide, plan.blocks))
        in_block(plan, part, column, columns, width, lambda *found: body(room, None, column, *found))


_WORTH_FETCHING = 1 << 14  # bytes of a panel; smaller ones come fast enough by themselves
_FEW_ROWS = 16
_WIDEST_UNIT = 8  # groups of K
_FETCHED = 4096  # bytes ahead of rows that read each weight once, as fast as memory gives them


def _lines_ahead(panel: int, rows: int) -> int:
    """Cache lines of the next panel of weights that each row fetches as it is finished; 0 where that isn't worth it.

    The weights of a model are larger than the nearer caches, so that the first rows of each panel would wait for memory
    while it has nothing to do as results are rescaled: a sixth of DeiT-S's time.
    """
    return -(-panel // (tiles.LINE * rows)) if panel >= _WORTH_FETCHING and rows >= _FEW_ROWS else 0


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


def _rows_of(x: Value, scope: Scope, context: Context, weights: Weights) -> Rows:
    """Activations as rows: where they are stored, if they are stored so; else a copy."""
    *outer, depth = shape_of(x)
    count, product = math.prod(outer), weights.product
    source, shift = _contiguous(x, context.stored), product.shift(x.tensor.dtype)
    moved = weights.form is not None and count > 1
    if source is not None:
        dtype = source.tensor.dtype.storage
        if (shift == 0 and product.dtype == str(dtype)) or (moved and dtype == x.tensor.dtype.storage):
            return Rows(scope.flat(source), depth, shift)
    node = x.users[0]
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
