"""Linear and MatMul in float32: tiles in registers, with all that follows a product done before its store."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.epilogue import Context, Epilogue, chunks, pieces
from planish.backends.tvm.expressions import RENAMING, Reader, broadcast, shape_of, unravelled
from planish.backends.tvm.float_tiles import Matrix, Panels, pack, tile, tiling
from planish.backends.tvm.lanes import vector
from planish.backends.tvm.region import Region
from planish.backends.tvm.scope import SPARE, Expr, Index, Kernel, Scope
from planish.backends.tvm.sparse_float import KeptPanels, kept, one_row
from planish.backends.tvm.tiles import in_block
from planish.ir import ops
from planish.ir.graph import Value
from planish.ir.op import constant

SPARE_LANES = SPARE // 4


@dataclass(frozen=True)
class Product:
    """`parts` products of [rows, depth] by [depth, columns].

    index: where an element (part, row, column) of the result lies; column: the way back.
    left, right: which of the stored matrices take part.
    """

    parts: int
    rows: int
    depth: int
    columns: int
    index: Callable[[Expr, Expr, Expr], Index]
    column: Callable[[Index], Expr]
    left: Callable[[Expr], Expr]
    right: Callable[[Expr], Expr]


def linear(region: Region, context: Context) -> Kernel:
    """Linear: all rows of the activations by one matrix of weights."""
    node = region.anchor
    assert node is not None
    x, w, *b = node.inputs
    *outer, depth = shape_of(x)
    product = Product(
        1, math.prod(outer), depth, shape_of(w)[1],
        lambda part, row, column: (*unravelled(row, outer), column), lambda where: where[-1],
        lambda part: 0, lambda part: 0,
    )  # fmt: skip
    return _multiplied(region, context, product, x, w, b[0] if b else None)


def matmul(region: Region, context: Context) -> Kernel:
    """MatMul: one product, if the right operand is one matrix; else one for each index of the leading axes."""
    node = region.anchor
    assert node is not None
    assert isinstance(node.op, ops.MatMul | ops.AddMatMul)
    a, b = node.inputs
    shape_a, shape_b, lead = shape_of(a), shape_of(b), shape_of(node.result)
    rows, columns = len(shape_a) > 1, len(shape_b) > 1  # axes of the result, which a vector doesn't give one
    lead = lead[: len(lead) - rows - columns]

    def of(where: Index) -> Expr:
        return where[-1] if columns else 0

    if math.prod(shape_b[:-2]) == 1:
        outer = (*lead, *shape_a[-2:-1])

        def of_row(part: Expr, row: Expr, column: Expr) -> Index:
            return (*unravelled(row, outer), column) if columns else unravelled(row, outer)

        width = shape_b[-1] if columns else 1
        product = Product(1, math.prod(outer), shape_a[-1], width, of_row, of, lambda part: 0, lambda part: 0)
        return _multiplied(region, context, product, a, b, None)

    def index(part: Expr, row: Expr, column: Expr) -> Index:
        return (*unravelled(part, lead), *((row,) if rows else ()), *((column,) if columns else ()))

    def number(shape: tuple[int, ...]) -> Callable[[Expr], Expr]:
        own = shape[:-2]

        def chosen(part: Expr) -> Expr:
            flat: Expr = 0
            for extent, i in zip(own, broadcast(unravelled(part, lead), own), strict=True):
                flat = flat * extent + i
            return flat

        return chosen

    product = Product(
        math.prod(lead), shape_a[-2] if rows else 1, shape_a[-1], shape_b[-1] if columns else 1,
        index, of, number(shape_a), number(shape_b),
    )  # fmt: skip
    return _multiplied(region, context, product, a, b, None)


def _multiplied(region: Region, context: Context, product: Product, a: Value, b: Value, bias: Value | None) -> Kernel:
    scope, weights = Scope(), constant(b)
    lanes = context.isa.lanes
    with IRBuilder() as builder, T.seq_scope():
        left = operand(scope, context, a, product.rows, product.depth, exact=True)
        right: Matrix | Panels | KeptPanels
        matrix = None if weights is None or product.parts > 1 else weights.numpy().reshape(product.depth, -1)
        sparse = None if matrix is None else kept(matrix, product.rows, context.isa)
        if weights is None:
            right = operand(scope, context, b, product.depth, product.columns, exact=False)
        elif sparse is not None:
            right = sparse.declared(scope)
        else:
            width = tiling(product.rows, product.columns, context.isa).vectors * lanes
            matrices = weights.numpy().reshape(-1, product.depth, product.columns)
            right = Panels(scope.constant("panels", pack(matrices, width)), width)
        emit_product(region, context, scope, product, left, right, bias)
    return scope.finish(builder, region.result)


def emit_product(
    region: Region,
    context: Context,
    scope: Scope,
    product: Product,
    left: Matrix,
    right: Matrix | Panels | KeptPanels,
    bias: Value | None,
    channel: int = -1,
) -> None:
    """Tiles over all of the result, columns outermost so that a panel of weights stays in the nearest cache.

    Rows are outermost where only some inputs are kept: then a panel is small, and takes elements all over its rows.

    bias: added to the result, along its axis `channel`.
    """
    isa, lanes = context.isa, context.isa.lanes
    plan = right.plan if isinstance(right, KeptPanels) else tiling(product.rows, product.columns, isa)
    width = plan.vectors * lanes
    wide = -(-product.columns // width)
    reader = Reader(scope, context.stored, {})

    def body(part: Expr, block: Expr, row: Expr, height: int, used: int) -> None:
        sums = _sums(product, left, right, part, block * width, row, height, used, lanes)
        for i, acc in enumerate(sums):
            for start, count in pieces(used, 2 * lanes):
                first = block * width + start

                def at(lane: Expr, i: int = i, first: Expr = first) -> Index:
                    return product.index(part, row + i, first + lane)

                def reduced(where: Index, acc: Expr = acc, start: int = start, first: Expr = first) -> Expr:
                    total = acc[start + product.column(where) - first]
                    return total if bias is None else total + reader.at(bias, (where[channel],))

                Epilogue(scope, region, context, reduced).write_lanes(at, count)

    with T.parallel(0, product.parts * wide * plan.blocks) as task:
        if isinstance(right, KeptPanels):
            part, strip, column = unravelled(task, (product.parts, plan.blocks, wide))
        else:
            part, column, strip = unravelled(task, (product.parts, wide, plan.blocks))

        in_block(
            plan, strip, column, product.columns, width, lambda row, h, used: body(part, column, row, h, used)
        )  # fmt: skip


def _sums(
    product: Product, left: Matrix, right: Matrix | Panels | KeptPanels, part: Expr, first: Expr, row: Expr,
    height: int, used: int, lanes: int,
) -> list[Expr]:  # fmt: skip
    """Sums of a tile from a column on: over all of K, or what its block of columns keeps of it."""
    a, b = product.left(part), product.right(part)
    if not isinstance(right, KeptPanels):
        dense = right
        return tile(
            height, -(-used // lanes), (0, product.depth),
            lambda i, k: left.at(a, row + i, k),
            lambda k, v: dense.vector(b, k, first + v * lanes, lanes),
            lanes,
        )  # fmt: skip
    block = T.floordiv(first, right.width)
    start = right.starts[block]
    count = right.starts[block + 1] - start
    if product.rows == 1:
        return one_row(right, start, count, lambda k: left.at(a, row, k))
    return tile(
        height, 1, (0, count),
        lambda i, k: left.at(a, row + i, right.places[start + k]),
        lambda k, v: right.vector(start + k),
        lanes,
    )  # fmt: skip


def operand(scope: Scope, context: Context, x: Value, rows: int, columns: int, *, exact: bool) -> Matrix:
    """The matrices of an operand: where they are stored, if they are stored so; else a copy.

    exact: nothing is read beyond the end of a row.
    """
    parts = math.prod(shape_of(x)) // max(rows * columns, 1)
    source = contiguous(x, context.stored)
    if source is not None and (exact or is_spared(source)):
        return Matrix(scope.flat(source), columns, rows * columns)
    stride = -(-columns // SPARE_LANES) * SPARE_LANES
    copy = scope.scratch((parts * rows * stride,), "float32")
    reader, shape = Reader(scope, context.stored, {}), shape_of(x)
    whole = shape[-1:] == (columns,)
    with T.parallel(0, parts * rows) as row:
        for start, count in chunks(columns, 2 * context.isa.lanes):
            with vector(count) as lane:
                own = row * columns + start + lane
                place = (*unravelled(row, shape[:-1]), start + lane) if whole else unravelled(own, shape)
                T.buffer_store(copy, reader.at(x, place), [row * stride + start + lane])
        for start, count in pieces(stride - columns, SPARE_LANES):
            with vector(count) as lane:
                T.buffer_store(copy, T.float32(0), [row * stride + columns + start + lane])
    return Matrix(copy, stride, rows * stride)


def contiguous(value: Value, stored: frozenset[Value]) -> Value | None:
    """The stored value, constant or input of the graph whose elements, in order, are those of `value`."""
    while value not in stored and value.node is not None and constant(value) is None:
        if not isinstance(value.node.op, (ops.Reshape, ops.DynamicReshape, ops.Squeeze, ops.Unsqueeze, *RENAMING)):
            return None
        value = value.node.inputs[0]
    return value


def is_spared(value: Value) -> bool:
    """True if vectors may reach beyond the end of a stored value: it lies in the arena."""
    return value.node is not None and not any(isinstance(user.op, ops.Return) for user in value.users)
