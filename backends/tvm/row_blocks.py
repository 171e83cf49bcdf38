"""Kernels that go by blocks of whole rows: a pointwise result or a norm, then norms of the same rows.

A sum that a norm reads is written once and found in the nearest cache; norms of one sum share its statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.epilogue import Context, Epilogue
from planish.backends.tvm.expressions import shape_of, unravelled
from planish.backends.tvm.float_rows import normaliser
from planish.backends.tvm.norms import BLOCK, IntNorm, Statistics
from planish.backends.tvm.plain import widest_vector
from planish.backends.tvm.region import Region
from planish.backends.tvm.scope import Expr, Index, Kernel, Scope
from planish.ir.ops.int_norm import _IntNorm

Writer = Callable[[Expr, Expr], None]
"""Writes so many rows of a result, at most `BLOCK`: takes the first one and the count."""


def in_blocks(region: Region, context: Context) -> Kernel:
    """The kernel of a region of rows and of the norms that go with it."""
    scope, known = Scope(), dict[object, Statistics]()
    writers = [_writer(part, context, scope, known) for part in (region, *region.norms)]
    rows = math.prod(shape_of(region.value)[:-1])
    with IRBuilder() as builder, T.seq_scope(), T.parallel(0, -(-rows // BLOCK)) as block:
        first = block * BLOCK
        count = BLOCK if rows % BLOCK == 0 else T.min(BLOCK, rows - first)
        for write in writers:
            write(first, count)
    return scope.finish(builder, region.result)


def _writer(region: Region, context: Context, scope: Scope, known: dict[object, Statistics]) -> Writer:
    node = region.anchor
    if node is not None and isinstance(node.op, _IntNorm):
        return IntNorm(region, context, scope, known).block
    *outer, channels = shape_of(region.value)
    if node is not None:
        row, _ = normaliser(region, context, scope)
    else:
        epilogue, widest = Epilogue(scope, region, context), widest_vector(region, context)

        def row(index: Index) -> None:
            epilogue.write_row(index, channels, widest)

    def write(first: Expr, count: Expr) -> None:
        with T.serial(0, count) as i:
            row(unravelled(first + i, outer))

    return write
