"""Matrices that are known only at run time, packed as products take them: keys and values of attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.epilogue import WIDEST, chunks, pieces, spans
from planish.backends.tvm.isa import Product, TileProduct
from planish.backends.tvm.lanes import vector
from planish.backends.tvm.scope import Expr
from planish.backends.tvm.tiles import Panels, Rows
from planish.ir import ops
from planish.ir.dtypes import DType
from planish.ir.graph import Value

At = Callable[[Expr, Expr], Expr]
"""An element of a matrix, by its place along K and its column."""


@dataclass(frozen=True)
class Packed:
    """int8 [K, N] of each of several heads as [N / lanes][K / group][lanes * group] in one flat array.

    Zeros follow where K ends, and the last column is repeated where N ends. depth: K, rounded up to what products take.
    """

    array: Expr
    depth: int
    columns: int
    lanes: int
    group: int

    @property
    def groups(self) -> int:
        return self.depth // self.group

    @property
    def panel(self) -> int:
        """Elements of a group of K in one vector of columns."""
        return self.lanes * self.group

    def size(self) -> int:
        """Elements of one head."""
        return -(-self.columns // self.lanes) * self.lanes * self.depth

    def panels(self, head: Expr, first: Expr) -> Panels:
        """Those of one head from vector `first` of the columns on."""
        above = head * self.size()
        return Panels(self.array, lambda v: above + (first + v) * (self.groups * self.panel), self.panel)

    def by_column(self, head: Expr, inner: int, at: At) -> None:
        """Pack a matrix whose columns lie in memory one after the other, as keys do.

        Groups of four elements are moved as integers of 32 bits, by transposing squares of them.
        """
        if self.group != 4 or inner % 4:
            self.element_by_element(head, inner, at)
            return
        square = T.alloc_buffer((self.lanes * WIDEST,), "int8", scope="global")
        words = WIDEST // 4
        with T.serial(0, -(-self.columns // self.lanes)) as block:
            for start, width in spans(inner, WIDEST):
                last = width + (self.depth - inner if width % WIDEST or inner == width else 0)
                with T.serial(0, self.lanes) as i:
                    column = T.min(block * self.lanes + i, self.columns - 1)
                    for first, count in pieces(width, WIDEST):
                        with vector(count) as lane:
                            T.buffer_store(square, at(start + first + lane, column), [i * WIDEST + first + lane])
                    for first, count in pieces(last - width, WIDEST):
                        with vector(count) as lane:
                            T.buffer_store(square, T.int8(0), [i * WIDEST + width + first + lane])
                place = head * self.size() + (block * self.groups + T.floordiv(start, 4)) * self.panel
                for left in range(0, last // 4, self.lanes):
                    used = min(self.lanes, last // 4 - left)
                    rows = [
                        T.reinterpret(f"int32x{self.lanes}", square[T.Ramp(4 * (i * words + left), 1, 4 * self.lanes)])
                        for i in range(self.lanes)
                    ]
                    for k, row in enumerate(transposed(rows)[:used]):
                        codes = T.reinterpret(f"int8x{self.panel}", row)
                        T.buffer_store(self.array, codes, [T.Ramp(place + (left + k) * self.panel, 1, self.panel)])

    def by_row(self, head: Expr, inner: int, at: At) -> None:
        """Pack a matrix whose rows lie in memory one after the other, as values do: four rows become one, by shifts."""
        if self.group != 4:
            self.element_by_element(head, inner, at)
            return
        with T.serial(0, self.groups) as k:
            for start, used in spans(self.columns, self.lanes):
                word: Expr = None
                mixed = T.alloc_buffer((self.lanes,), "int32", scope="global")
                for g in range(4):
                    with vector(self.lanes) as lane:
                        code = T.cast(self._element(at, k * 4 + g, inner, start, lane, used), "int32")
                        part = (code & T.int32(255)) << T.int32(8 * g)
                        word = part if g == 0 else mixed[lane] | part
                        T.buffer_store(mixed, word, [lane])
                codes = T.reinterpret(f"int8x{self.panel}", mixed[T.Ramp(0, 1, self.lanes)])
                place = head * self.size() + (T.floordiv(start, self.lanes) * self.groups + k) * self.panel
                T.buffer_store(self.array, codes, [T.Ramp(place, 1, self.panel)])

    def sum_columns(self, head: Expr, product: Product, sums: Expr, factor: Expr) -> None:
        """Write the sums of all columns of one head, times a factor, to int32 [heads][columns, whole vectors]."""
        every, across = T.Ramp(0, 1, self.lanes), -(-self.columns // self.lanes)
        offset = T.Broadcast(T.cast(factor, "int32"), self.lanes)
        with T.serial(0, across) as block:
            total = T.alloc_buffer((self.lanes,), "int32", scope="global")
            T.buffer_store(total, T.Broadcast(T.int32(0), self.lanes), [every])
            panels = self.panels(head, block)
            with T.serial(0, self.groups) as k:
                (panel,) = panels.vectors(0, k, self.panel)
                T.buffer_store(total, product(total[every], product.ones, panel, self.lanes), [every])
            place = (head * across + block) * self.lanes
            T.buffer_store(sums, total[every] * offset, [T.Ramp(place, 1, self.lanes)])

    def element_by_element(self, head: Expr, inner: int, at: At) -> None:
        with T.serial(0, self.groups) as k:
            for start, used in spans(self.columns, self.lanes):
                place = head * self.size() + (T.floordiv(start, self.lanes) * self.groups + k) * self.panel
                for g in range(self.group):
                    with vector(self.lanes) as lane:
                        code = self._element(at, k * self.group + g, inner, start, lane, used)
                        T.buffer_store(self.array, code, [place + lane * self.group + g])

    def _element(self, at: At, k: Expr, inner: int, start: Expr, lane: Expr, used: int) -> Expr:
        column = start + (lane if used == self.lanes else T.min(lane, used - 1))
        if self.depth == inner:
            return at(k, column)
        return T.Select(k < inner, at(T.min(k, inner - 1), column), T.int8(0))


def copy_rows(
    rows: Rows, first: Expr, count: int, inner: int, product: Product | TileProduct, dtype: DType, at: At
) -> None:
    """Write codes of a dtype as rows that a product takes, from row `first` on; zeros follow where K ends.

    at: an element, by its row and its place along K.
    """
    shift = product.shift(dtype)
    with T.serial(0, count) as n:
        place = (first + n) * rows.stride
        for start, lanes in chunks(inner, WIDEST):
            with vector(lanes) as e:
                code = T.cast(at(n, start + e), "int32") + shift
                T.buffer_store(rows.array, T.cast(code, product.dtype), [place + start + e])
        for e in range(inner, rows.stride):
            T.buffer_store(rows.array, T.Cast(product.dtype, 0), [place + e])


def lies_by_column(value: Value, stored: frozenset[Value]) -> bool:
    """True if the last axis of a value isn't that along which it lies in memory, so that columns are whole there."""
    if value in stored or value.node is None or not isinstance(value.op, ops.Transpose):
        return False
    return value.op.perm[-1] != len(value.op.perm) - 1


def transposed(rows: list[Expr]) -> list[Expr]:
    """A square of 32-bit elements, a vector per row, transposed by exchanging blocks of 1, 2, 4, .. elements."""
    lanes, distance = len(rows), 1
    while distance < lanes:
        low = [lane for lane in range(lanes) if not lane & distance]
        upper = [tirx.const(i if i in low else lanes + i - distance, "int32") for i in range(lanes)]
        lower = [tirx.const(i + distance if i in low else lanes + i, "int32") for i in range(lanes)]
        exchanged: list[Expr] = [None] * lanes
        for i in range(lanes):
            if not i & distance:
                pair = [rows[i], rows[i + distance]]
                exchanged[i], exchanged[i + distance] = tirx.Shuffle(pair, upper), tirx.Shuffle(pair, lower)
        rows, distance = exchanged, 2 * distance
    return rows
