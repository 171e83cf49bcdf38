"""Products of few signs: differing bits counted in bytes, and a table of what follows each possible sum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.binary_products import WORD, word_of
from planish.backends.tvm.epilogue import Context, Epilogue, chunks, lane_of
from planish.backends.tvm.expressions import RENAMING, Reader, shape_of, unravelled
from planish.backends.tvm.isa import Isa
from planish.backends.tvm.lanes import kept, vector
from planish.backends.tvm.region import Region
from planish.backends.tvm.repack import lies_by_column
from planish.backends.tvm.scope import Expr, Index, Kernel, Scope
from planish.backends.tvm.tiles import evened, in_block
from planish.ir import ops
from planish.ir.graph import Node
from planish.ir.op import constant

MOST = 255  # signs of which a byte can count those that differ
_FEWEST = 16  # columns worth a vector of bytes
_HEIGHT = 32  # rows of a block: what they write stays in the nearest cache until its lines are whole
_ALONE = (ops.Requantize, ops.IntTable, *RENAMING)  # an element of what they give takes one of their first operand


@dataclass(frozen=True)
class Table:
    """What `node` gives for each number of signs that differ, an integer of 8 or 16 bits."""

    node: Node
    entries: np.ndarray


def counts_bytes(region: Region, isa: Isa) -> bool:
    """True if the kernel takes a product: signs that a byte counts, rows that stay whole, and a table that follows."""
    node = region.anchor
    assert node is not None
    if not isinstance(node.op, ops.IntBinaryMatMul) or not (isa.byte_table or isa.shuffles) or region.run:
        return False
    return shape_of(node.inputs[0])[-1] <= MOST and shape_of(node.result)[-1] >= _FEWEST and bool(table_of(region))


def table_of(region: Region) -> Table | None:
    """The last value of a region that has few bits and depends on a sum of products of signs alone, if there is one."""
    found, value = None, region.anchor.result if region.anchor else region.value
    assert value.node is not None
    inner = shape_of(value.node.inputs[0])[-1]
    entries = np.asarray(inner - 2 * np.arange(inner + 1), np.int32)
    while value is not region.value:
        node = value.users[0]
        known = [data.numpy() for other in node.inputs[1:] if (data := constant(other)) is not None]
        if type(node.op) not in _ALONE or node.inputs[0] is not value or len(known) < len(node.inputs) - 1:
            break
        made = node.op.compute([entries, *known], [operand.type for operand in node.inputs])
        entries, value = np.asarray(made).reshape(-1), node.result
        if entries.dtype.kind in "iu" and entries.dtype.itemsize <= 2:
            found = Table(node, entries)
    return found


def counted(region: Region, context: Context) -> Kernel:
    """Pairs of matrices of signs: all are packed, then blocks of rows count differences and look results up."""
    node, table = region.anchor, table_of(region)
    assert node is not None
    assert table is not None
    scope, isa = Scope(), context.isa
    signs = _Signs(node, context, scope)
    results = _Results(table, isa, scope)
    *batch, rows, columns = shape_of(node.result)
    heads, width = math.prod(batch), min(4 * isa.lanes, 1 << (columns.bit_length() - 1))
    plan = evened(rows, _HEIGHT, 1)
    rest = replace(region, anchor=table.node)

    def block(head: Expr, first: Expr, height: int) -> None:
        with T.serial(0, -(-columns // width)) as part:
            # where columns end within a vector, it overlaps the one before: both write the same there
            start = kept(T.min(part * width, columns - width)) if columns % width else part * width
            with T.serial(0, height) as i:

                def at(lane: Expr) -> Index:
                    return (*unravelled(head, batch), first + i, start + lane)

                found = results.of(signs.differences(head, head * rows + first + i, start, width), width)
                lane_at = lane_of(at)
                Epilogue(scope, rest, context, lambda index: found[lane_at(index)]).write_lanes(at, width)

    with IRBuilder() as builder, T.seq_scope():
        with T.parallel(0, heads) as head:
            signs.prepare(head)
        with T.parallel(0, heads * plan.blocks) as task:
            head, part = unravelled(task, (heads, plan.blocks))
            in_block(plan, part, 0, 1, 1, lambda row, height, _: block(head, row, height))
    return scope.finish(builder, region.result)


class _Signs:
    """Operands as bits, 1 for -1: a byte of every eight signs along K.

    Those of rows are repeated in 32 bits, which instructions take for all lanes. Those of columns are planes, which
    have one byte of every column.
    """

    def __init__(self, node: Node, context: Context, scope: Scope):
        self.left, self.right = node.inputs
        self.isa, self.reader = context.isa, Reader(scope, context.stored, {})
        *self.batch, self.count, self.inner = shape_of(self.left)
        self.columns, heads = shape_of(self.right)[-1], math.prod(self.batch)
        self.by_column = lies_by_column(self.right, context.stored)
        self.words, self.bytes = -(-self.inner // WORD), -(-self.inner // 8)
        self.size = self.count * self.words
        self.packed = scope.scratch((heads * self.size,), "int32")
        self.rows = scope.scratch((heads * self.size * 4,), "int32")
        self.planes = scope.scratch((heads * self.bytes, -(-self.columns // 64) * 64), "uint8")
        if self.by_column:
            self.across = scope.scratch((heads * self.words, self.columns), "int32")

    def prepare(self, head: Expr) -> None:
        """Pack both matrices of a pair."""
        index = unravelled(head, self.batch)
        with T.serial(0, self.count) as n:
            for word in range(self.words):
                bits = word_of(self.isa, self.inner, word, lambda e: self.reader.at(self.left, (*index, n, e)))
                T.buffer_store(self.packed, bits, [head * self.size + n * self.words + word])
        for start, count in chunks(self.size, self.isa.lanes // 4):
            place = head * self.size + start
            codes = T.reinterpret(f"uint8x{4 * count}", self.packed[T.Ramp(place, 1, count) if count > 1 else place])
            every = tirx.Shuffle([codes] * 4, [tirx.const(i // 4, "int32") for i in range(16 * count)])
            T.buffer_store(self.rows, T.reinterpret(f"int32x{4 * count}", every), [T.Ramp(4 * place, 1, 4 * count)])
        if self.by_column:
            self._pack_columns(head, index)
        else:
            self._pack_rows(head, index)

    def _pack_columns(self, head: Expr, index: Index) -> None:
        """Planes of a matrix whose columns lie in memory one after the other."""
        with T.serial(0, self.columns) as n:
            for word in range(self.words):
                bits = word_of(self.isa, self.inner, word, lambda e: self.reader.at(self.right, (*index, e, n)))
                T.buffer_store(self.across, bits, [head * self.words + word, n])
        for start, count in chunks(self.columns, 64):
            for k in range(self.bytes):
                with vector(count) as lane:
                    bits = self.across[head * self.words + k // 4, start + lane] >> T.int32(8 * (k % 4))
                    T.buffer_store(self.planes, T.cast(bits, "uint8"), [head * self.bytes + k, start + lane])

    def _pack_rows(self, head: Expr, index: Index) -> None:
        """Planes of a matrix whose rows lie in memory one after the other."""
        for start, count in chunks(self.columns, 64):
            for k in range(self.bytes):
                bits = T.alloc_buffer((count,), "uint8", scope="global")
                for bit in range(min(8, self.inner - 8 * k)):
                    with vector(count) as lane:
                        code = self.reader.at(self.right, (*index, 8 * k + bit, start + lane))
                        sign = T.Select(code < T.int8(0), T.uint8(1 << bit), T.uint8(0))
                        T.buffer_store(bits, sign if bit == 0 else bits[lane] | sign, [lane])
                with vector(count) as lane:
                    T.buffer_store(self.planes, bits[lane], [head * self.bytes + k, start + lane])

    def differences(self, head: Expr, row: Expr, start: Expr, width: int) -> Expr:
        """How many signs differ between a row and `width` columns from `start` on, a vector of uint8."""
        count, found = T.llvm_lookup_intrinsic_id("llvm.ctpop"), []
        kind, lanes = f"uint8x{width}", width // 4
        for k in range(self.bytes):
            plane = self.planes[head * self.bytes + k, T.Ramp(start, 1, width)]
            own = T.Broadcast(self.rows[row * self.words * 4 + k], lanes)
            bits = T.reinterpret(kind, T.reinterpret(f"int32x{lanes}", plane) ^ own)
            found.append(T.call_llvm_pure_intrin(kind, count, bits))
        return _sum(found)


def _sum(parts: Sequence[Expr]) -> Expr:
    """Their sum, halves first, so that additions don't wait for each other."""
    half = len(parts) // 2
    return _sum(parts[:half]) + _sum(parts[half:]) if half else parts[0]


class _Results:
    """The entries of a table, a byte of them at a time.

    Vectors of 64 bytes look up in 64, 128 or 256 entries. Others do in 16, which they need for every 16 of their bytes.
    """

    def __init__(self, table: Table, isa: Isa, scope: Scope):
        self.isa, self.dtype = isa, str(table.entries.dtype)
        entries = table.entries.view(np.uint8).reshape(len(table.entries), -1)
        size = max(64, 1 << (len(entries) - 1).bit_length()) if isa.byte_table else -(-len(entries) // 16) * 16
        padded = np.pad(entries, ((0, size - len(entries)), (0, 0))).T
        if not isa.byte_table:
            padded = np.tile(padded.reshape(len(padded), -1, 1, 16), (1, 1, isa.lanes // 4, 1))
        self.tables = [
            scope.constant((table.node, "of sums", i), part.reshape(-1).view(np.int8)) for i, part in enumerate(padded)
        ]

    def of(self, places: Expr, width: int) -> Expr:
        """An array of the entries at a vector of places."""
        own, every = T.alloc_buffer((width,), "uint8", scope="global"), T.Ramp(0, 1, width)
        T.buffer_store(own, places, [every])
        found = T.alloc_buffer((width,), self.dtype, scope="global")
        low, *high = [self._looked_up(table, own[every], width) for table in self.tables]
        if not high:
            T.buffer_store(found, T.reinterpret(f"{self.dtype}x{width}", low), [every])
            return found
        wide = f"uint16x{width}"
        upper = T.Cast(wide, T.reinterpret(f"uint8x{width}", high[0])) << T.Broadcast(T.uint16(8), width)
        both = T.Cast(wide, T.reinterpret(f"uint8x{width}", low)) | upper
        T.buffer_store(found, T.reinterpret(f"{self.dtype}x{width}", both), [every])
        return found

    def _looked_up(self, table: Expr, places: Expr, width: int) -> Expr:
        if self.isa.byte_table:
            return self.isa.lookup(table, places, width)
        size, low = 4 * self.isa.lanes, places & T.Broadcast(T.uint8(15), width)
        *parts, found = [self.isa.shuffled(table, i, low, width) for i in range(0, int(table.shape[0]), size)]
        for i, part in reversed(list(enumerate(parts, 1))):
            found = T.Select(places < T.Broadcast(T.uint8(16 * i), width), part, found)
        return found
