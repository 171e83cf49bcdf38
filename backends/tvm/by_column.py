"""Sums of a block of rows by columns, made codes column by column and put in rows as bytes, a quarter of the moves.

A column has one factor, so that nothing is looked up by lane either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.epilogue import WIDEST, Context, Epilogue, lane_of, pieces
from planish.backends.tvm.expressions import RENAMING, shape_of
from planish.backends.tvm.interleaving import PART, interleaved, joined, kept_vector
from planish.backends.tvm.lanes import vector
from planish.backends.tvm.region import Region
from planish.backends.tvm.scope import Expr, Index, Scope
from planish.ir import ops
from planish.ir.op import constant


def is_by_column(region: Region) -> bool:
    """True if the result is codes of 8 bits made of sums and of nothing else that differs from row to row."""
    value = region.value
    assert region.anchor is not None
    if sum(extent > 1 for extent in shape_of(region.anchor.result)[:-1]) > 1 or region.norms or region.others:
        return False
    if value.tensor.dtype.bits != 8 or value is region.anchor.result:
        return False
    while value is not region.anchor.result:
        node = value.node
        if node is None or not isinstance(node.op, (ops.Requantize, ops.IntTable, *RENAMING)):
            return False
        if any(constant(other) is None for other in node.inputs[1:]):
            return False
        value = node.inputs[0]
    return True


@dataclass(frozen=True)
class ByColumn:
    """Finishes whole blocks of a region's result. index: of an element, by row and column."""

    scope: Scope
    region: Region
    context: Context
    index: Callable[[Expr, Expr], Index]

    def finish(self, row: Expr, column: Expr, used: int, sums: Callable[[Expr, Expr], Expr]) -> None:
        """Store a block of a vector of rows by `used` columns; sums: by column and row of the block."""
        isa = self.context.isa
        wide = 4 * isa.lanes
        dtype = str(self.region.value.tensor.dtype.storage)
        codes = T.alloc_buffer((WIDEST * wide,), dtype, scope="global")
        with T.serial(0, used) as inner:

            def at(lane: Expr) -> Index:
                return self.index(row + lane, column + inner)

            lane_at = lane_of(at)
            epilogue = Epilogue(self.scope, self.region, self.context, lambda where: sums(inner, lane_at(where)))
            epilogue.stage(at, wide)
            with vector(wide) as lane:
                element = epilogue.reader.at(self.region.value, at(lane))
                T.buffer_store(codes, element, [inner * wide + lane])
        parts = WIDEST // PART
        with T.serial(0, wide // PART) as across:
            columns = [
                [codes[T.Ramp((PART * part + i) * wide + across * PART, 1, PART)] for part in range(parts)]
                for i in range(PART)
            ]
            rows = interleaved([kept_vector(joined(found), "int8", WIDEST) for found in columns], WIDEST)
            for i, found in enumerate(rows):
                kept = T.alloc_buffer((WIDEST,), dtype, scope="global")
                T.buffer_store(kept, T.reinterpret(f"{dtype}x{WIDEST}", found), [T.Ramp(0, 1, WIDEST)])
                self._store(row + across * PART + i, column, used, kept)

    def _store(self, row: Expr, column: Expr, used: int, codes: Expr) -> None:
        for chunk, lanes in pieces(used, WIDEST):

            def at(lane: Expr, chunk: int = chunk) -> Index:
                return self.index(row, column + chunk + lane)

            lane_at = lane_of(at)
            epilogue = Epilogue(self.scope, self.region, self.context)
            epilogue.given[self.region.value] = lambda where, c=chunk, f=lane_at: codes[c + f(where)]  # type: ignore[misc]
            epilogue.write_staged(at, lanes)
