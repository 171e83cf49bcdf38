"""Products of signs: 32 of them in a word, and the bits in which two words differ counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.epilogue import Context, pieces, spans
from planish.backends.tvm.expressions import Reader, shape_of, unravelled
from planish.backends.tvm.isa import Isa, Product
from planish.backends.tvm.lanes import vector
from planish.backends.tvm.repack import lies_by_column
from planish.backends.tvm.scope import Expr, Index, Scope
from planish.backends.tvm.tiles import Panels, Rows, Start
from planish.ir.graph import Node

WORD = 32  # signs


@dataclass(frozen=True)
class Differences(Product):
    """acc[i] + how many bits differ between a word of a row and lane i of a panel, both int32."""

    def __call__(self, acc: Expr, word: Expr, panel: Expr, lanes: int) -> Expr:
        bits = panel ^ T.Broadcast(word, lanes)
        return acc + T.call_llvm_pure_intrin(f"int32x{lanes}", T.llvm_lookup_intrinsic_id("llvm.ctpop"), bits)


class Bits:
    """Operands of IntBinaryMatMul as bits, 1 for -1: rows of words, and panels as products of bytes have them."""

    def __init__(self, node: Node, context: Context, scope: Scope):
        self.left, self.right = node.inputs
        self.isa, self.reader = context.isa, Reader(scope, context.stored, {})
        *self.batch, self.count, self.inner = shape_of(self.left)
        self.columns, heads = shape_of(self.right)[-1], math.prod(self.batch)
        self.by_column = lies_by_column(self.right, context.stored)
        self.product = Differences("int32", 1)
        self.steps = -(-self.inner // WORD)
        self.panel = self.steps * self.isa.lanes
        self.size = -(-self.columns // self.isa.lanes) * self.panel
        self.array = scope.scratch((heads * self.size,), "int32")
        self.rows = Rows(scope.scratch((heads * self.count * self.steps,), "int32"), self.steps)

    def prepare(self, head: Expr) -> None:
        index = unravelled(head, self.batch)
        with T.serial(0, self.count) as n:
            place = (head * self.count + n) * self.steps
            for word in range(self.steps):
                bits = word_of(self.isa, self.inner, word, lambda e: self.reader.at(self.left, (*index, n, e)))
                T.buffer_store(self.rows.array, bits, [place + word])
        if not self.by_column:
            self._pack_rows(head, index)
            return
        with T.serial(0, self.columns) as n:
            for word in range(self.steps):
                bits = word_of(self.isa, self.inner, word, lambda e: self.reader.at(self.right, (*index, e, n)))
                T.buffer_store(self.array, bits, [self._place(head, n, word)])

    def _pack_rows(self, head: Expr, index: Index) -> None:
        """Bits of the right operand from one row after the other, a vector of columns at a time."""
        for start, width in spans(self.columns, self.isa.lanes):
            for word in range(self.steps):
                bits = T.alloc_buffer((width,), "int32", scope="global")
                for bit in range(min(WORD, self.inner - word * WORD)):
                    with vector(width) as lane:
                        code = self.reader.at(self.right, (*index, word * WORD + bit, start + lane))
                        sign = (T.cast(code, "int32") >> T.int32(WORD - 1)) & T.int32(_bit(bit))
                        T.buffer_store(bits, sign if bit == 0 else bits[lane] | sign, [lane])
                with vector(width) as lane:
                    T.buffer_store(self.array, bits[lane], [self._place(head, start, word) + lane])

    def _place(self, head: Expr, column: Expr, word: int) -> Expr:
        lanes = self.isa.lanes
        return head * self.size + T.floordiv(column, lanes) * self.panel + word * lanes + T.floormod(column, lanes)

    def panels(self, head: Expr, vector: Expr) -> Panels:
        above = head * self.size + vector * self.panel
        return Panels(self.array, lambda v: above + v * self.panel, self.isa.lanes)

    def start(self, head: Expr, column: Expr) -> Start | None:
        return None

    def value(self, total: Expr) -> Expr:
        return T.int32(self.inner) - (total << T.int32(1))


def word_of(isa: Isa, inner: int, word: int, code: Callable[[Expr], Expr]) -> Expr:
    """The signs of up to 32 of `inner` codes next to each other; those beyond the last one are 0."""
    used = min(WORD, inner - word * WORD)
    codes = T.alloc_buffer((WORD,), "int8", scope="global")
    if used < WORD:
        T.buffer_store(codes, T.Broadcast(T.int8(0), WORD), [T.Ramp(0, 1, WORD)])
    for start, lanes in pieces(used, WORD):
        with vector(lanes) as lane:
            T.buffer_store(codes, code(word * WORD + start + lane), [start + lane])
    return isa.signs(codes)


def _bit(place: int) -> int:
    """A bit of an int32."""
    return 1 << place if place < WORD - 1 else -(1 << place)
