"""IntMatMul and IntBinaryMatMul of matrices that are known only at run time: packed first, then products by tiles."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm import amx
from planish.backends.tvm.binary_products import Bits
from planish.backends.tvm.epilogue import WIDEST, Context, Epilogue, lane_of, pieces
from planish.backends.tvm.expressions import Reader, shape_of, unravelled
from planish.backends.tvm.isa import Product, TileProduct
from planish.backends.tvm.region import Region
from planish.backends.tvm.repack import Packed, copy_rows, lies_by_column
from planish.backends.tvm.scope import Expr, Kernel, Scope
from planish.backends.tvm.tiles import Panels, Rows, Start, in_block, multiply, shared_out, tiling
from planish.ir import ops
from planish.ir.graph import Node
from planish.ir.ops.quantize import quant_of


def is_batched(node: Node) -> bool:
    """True if the kernel takes a product: pairs of matrices of bytes, those on the right with zero point 0."""
    a, b = node.inputs
    left, right = shape_of(a), shape_of(b)
    plain = len(left) > 1 and left[:-2] == right[:-2] and a.tensor.dtype.bits == 8 and b.tensor.dtype.name == "i8"
    return plain and quant_of("b", b.tensor).zero == 0


class Operands(Protocol):
    """Both operands as a product takes them.

    product: what multiplies rows by panels. steps: along K. rows: of all matrices, one after the other.
    """

    steps: int
    rows: Rows

    @property
    def product(self) -> Product | TileProduct: ...

    def prepare(self, head: Expr) -> None:
        """Pack both matrices of a pair."""

    def panels(self, head: Expr, vector: Expr) -> Panels:
        """Those of a pair from a vector of columns on."""

    def start(self, head: Expr, column: Expr) -> Start | None:
        """What sums start from, from a column on; None for zeros."""

    def value(self, total: Expr) -> Expr:
        """The element of the result, from a sum."""


def batched(region: Region, context: Context) -> Kernel:
    """Pairs of matrices: all are packed, then every product goes by blocks of rows."""
    node = region.anchor
    assert node is not None
    scope, isa = Scope(), context.isa
    found: Operands
    if isinstance(node.op, ops.IntBinaryMatMul):
        found = Bits(node, context, scope)
    else:
        found = _Bytes(node, context, scope)
    *batch, rows, columns = shape_of(node.result)
    heads, product = math.prod(batch), found.product
    plan = tiling(rows, columns, isa, product)
    width = plan.vectors * isa.lanes
    wide = -(-columns // width)

    def body(room: amx.Room | None, head: Expr, block: Expr, row: Expr, height: int, used: int) -> None:
        def finish(i: Expr, sums: Callable[[Expr], Expr]) -> None:
            for chunk, lanes in pieces(used, WIDEST):

                def at(lane: Expr, chunk: int = chunk) -> tuple[Expr, ...]:
                    return (*unravelled(head, batch), row + i, block * width + chunk + lane)

                lane_at = lane_of(at)
                Epilogue(
                    scope,
                    region,
                    context,
                    lambda where, c=chunk, f=lane_at: found.value(sums(c + f(where))),  # type: ignore[misc]
                ).write_lanes(at, lanes)

        first = head * rows + row
        panels, start = found.panels(head, block * plan.vectors), found.start(head, block * width)
        vectors = -(-used // isa.lanes)
        multiply(found.rows, first, height, vectors, found.steps, panels, start, isa, product, room, finish)

    scope.reaching(amx.ROWS * found.rows.stride + product.depth)
    with IRBuilder() as builder, T.seq_scope():
        with T.parallel(0, heads) as head:
            found.prepare(head)
        with shared_out(heads * plan.blocks, scope, product) as (task, room):
            head, part = unravelled(task, (heads, plan.blocks))
            with T.serial(0, wide) as block:
                in_block(
                    plan, part, block, columns, width,
                    lambda row, height, used: body(room, head, block, row, height, used),
                )  # fmt: skip
    return scope.finish(builder, region.result)


class _Bytes:
    """Operands as bytes: rows copied, columns packed as `Packed` does."""

    def __init__(self, node: Node, context: Context, scope: Scope):
        self.left, self.right = node.inputs
        self.isa, self.scope, self.reader = context.isa, scope, Reader(scope, context.stored, {})
        *self.batch, self.count, self.inner = shape_of(self.left)
        columns, heads = shape_of(self.right)[-1], math.prod(self.batch)
        self.product = context.isa.product_of(self.left.tensor.dtype, self.count)
        self.by_column = lies_by_column(self.right, context.stored)
        self.zero = quant_of("a", self.left.tensor).zero + self.product.shift(self.left.tensor.dtype)
        self.steps = -(-self.inner // self.product.depth)
        depth = self.steps * self.product.depth
        self.columns = -(-columns // self.isa.lanes) * self.isa.lanes
        panels = scope.scratch((heads * self.columns * depth,), "int8")
        self.packed = Packed(panels, depth, columns, self.isa.lanes, self.product.group)
        self.first = scope.scratch((heads * self.columns,), "int32")
        stride = -(-self.inner // self.product.group) * self.product.group
        self.rows = Rows(scope.scratch((heads * self.count * stride + WIDEST,), self.product.dtype), stride)

    def prepare(self, head: Expr) -> None:
        index = unravelled(head, self.batch)
        copy_rows(
            self.rows, head * self.count, self.count, self.inner, self.product, self.left.tensor.dtype,
            lambda n, e: self.reader.at(self.left, (*index, n, e)),
        )  # fmt: skip
        pack = self.packed.by_column if self.by_column else self.packed.by_row
        pack(head, self.inner, lambda k, n: self.reader.at(self.right, (*index, k, n)))
        if self.zero:
            vectors = self.isa.product(self.left.tensor.dtype)
            self.packed.sum_columns(head, vectors, self.first, self.scope.number("offset", -self.zero))

    def panels(self, head: Expr, vector: Expr) -> Panels:
        return self.packed.panels(head, vector)

    def start(self, head: Expr, column: Expr) -> Start | None:
        return Start(self.first, head * self.columns + column) if self.zero else None

    def value(self, total: Expr) -> Expr:
        return total
