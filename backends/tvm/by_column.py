"""Sums of a block of rows by columns, made codes column by column and put in rows as bytes, a quarter of the moves.

A column has one factor, so that nothing is looked up by lane either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.column_codes import Sums, is_packed, packed_column
from planish.backends.tvm.epilogue import WIDEST, Context, Epilogue, lane_of, pieces
from planish.backends.tvm.expressions import RENAMING, shape_of
from planish.backends.tvm.interleaving import PART, interleaved, joined, kept_vector, token_at
from planish.backends.tvm.lanes import vector
from planish.backends.tvm.region import Region
from planish.backends.tvm.scope import Expr, Index, Scope
from planish.backends.tvm.token_blocks import TokenBlocks
from planish.ir import ops
from planish.ir.graph import Node
from planish.ir.op import constant


def is_by_column(region: Region) -> bool:
    """True if the result is codes of 8 bits made of sums and of nothing else that differs from row to row."""
    value = region.value
    assert region.anchor is not None
    rows = shape_of(region.anchor.result)[:-1]
    if max(rows, default=1) == 1 or region.norms or region.others:
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

    @property
    def wide(self) -> int:
        """Rows of a block: a vector of bytes."""
        return 4 * self.context.isa.lanes

    @property
    def dtype(self) -> str:
        return str(self.region.value.tensor.dtype.storage)

    @property
    def target(self) -> TokenBlocks | None:
        """Where the result is kept in blocks of tokens instead of rows."""
        assert self.region.anchor is not None
        return self.context.layouts.written.get(self.region.anchor)

    def room(self) -> Expr | None:
        """Memory for the codes of a block, which a thread uses for one after the other; None if there is no need."""
        return T.alloc_buffer((WIDEST * self.wide,), self.dtype, scope="global") if self.target is None else None

    def finish(self, block: Expr, tokens: int, column: Expr, used: int, sums: Sums, room: Expr | None) -> None:
        """Store a block of a vector of rows by `used` columns, or of fewer where the result stays in blocks of tokens.

        room: what `room` gave.
        """
        count = -(-tokens // self.context.isa.lanes)
        with T.serial(0, used) as inner:
            found = self._codes(column + inner, inner, sums, count)
            if room is not None:
                T.buffer_store(room, found, [T.Ramp(inner * self.wide, 1, self.wide)])
            else:
                self._hand_on(found, block, column + inner)
        if room is not None:
            self._to_rows(block * self.wide, column, used, room)

    def _hand_on(self, codes: Expr, block: Expr, column: Expr) -> None:
        """Store a column as the next product takes it, of unsigned codes if need be."""
        target = self.target
        assert target is not None
        found = T.reinterpret(f"{target.dtype}x{self.wide}", codes)
        if target.dtype != self.dtype:
            found = found + T.Broadcast(T.Cast(target.dtype, -self.region.value.tensor.dtype.min), self.wide)
        place = (block * target.depth + column) * self.wide
        T.buffer_store(target.array(self.scope), found, [T.Ramp(place, 1, self.wide)])

    def _to_rows(self, row: Expr, column: Expr, used: int, codes: Expr) -> None:
        parts = WIDEST // PART
        with T.serial(0, self.wide // PART) as across:
            columns = [
                [codes[T.Ramp((PART * part + i) * self.wide + across * PART, 1, PART)] for part in range(parts)]
                for i in range(PART)
            ]
            rows = interleaved([kept_vector(joined(found), "int8", WIDEST) for found in columns], WIDEST)
            for i, found in enumerate(rows):
                kept = T.alloc_buffer((WIDEST,), self.dtype, scope="global")
                T.buffer_store(kept, T.reinterpret(f"{self.dtype}x{WIDEST}", found), [T.Ramp(0, 1, WIDEST)])
                self._store(row + across * 4 + token_at(i, self.context.isa.lanes), column, used, kept)

    def _codes(self, column: Expr, inner: Expr, sums: Sums, count: int) -> Expr:
        """Codes of a column of sums as a vector of bytes, in block order. count: of vectors of sums."""
        isa, wide, first = self.context.isa, self.wide, self._first()
        assert self.region.anchor is not None
        shape = shape_of(self.region.anchor.result)
        rows = max(range(len(shape) - 1), key=lambda axis: shape[axis])

        def at(lane: Expr) -> Index:
            return (*(lane if axis == rows else 0 for axis in range(len(shape) - 1)), column)

        lane_at, packs = lane_of(at), is_packed(first, isa)
        if packs:
            codes = T.alloc_buffer((wide,), str(first.result.tensor.dtype.storage), scope="global")
            found = packed_column(first, sums, inner, column, count, self.scope, isa)
            T.buffer_store(codes, found, [T.Ramp(0, 1, wide)])
            known = {first.result: lambda where: codes[lane_at(where)]}
            epilogue = Epilogue(self.scope, self.region, self.context, known=known)
        else:
            epilogue = Epilogue(self.scope, self.region, self.context, lambda where: sums.at(inner, lane_at(where)))
        epilogue.stage(at, wide)
        made = T.alloc_buffer((wide,), self.dtype, scope="global")
        with vector(wide) as lane:
            T.buffer_store(made, epilogue.reader.at(self.region.value, at(lane)), [lane])
        result = made[T.Ramp(0, 1, wide)]
        if packs or wide == PART:
            return result
        return tirx.Shuffle([result], [tirx.const(token_at(place, isa.lanes), "int32") for place in range(wide)])

    def _first(self) -> Node:
        """The op that computes with sums."""
        assert self.region.anchor is not None
        value, found = self.region.value, self.region.anchor
        while value is not self.region.anchor.result:
            node = value.node
            assert node is not None
            found = found if isinstance(node.op, tuple(RENAMING)) else node
            value = node.inputs[0]
        return found

    def _store(self, row: Expr, column: Expr, used: int, codes: Expr) -> None:
        for chunk, lanes in pieces(used, WIDEST):

            def at(lane: Expr, chunk: int = chunk) -> Index:
                return self.index(row, column + chunk + lane)

            lane_at = lane_of(at)
            epilogue = Epilogue(self.scope, self.region, self.context)
            epilogue.given[self.region.value] = lambda where, c=chunk, f=lane_at: codes[c + f(where)]  # type: ignore[misc]
            epilogue.write_staged(at, lanes)
