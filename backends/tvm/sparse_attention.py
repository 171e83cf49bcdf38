"""Attention in float32 over some blocks of keys: each block of queries runs through a list of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.attention_blocks import plan
from planish.backends.tvm.epilogue import Context, Epilogue, chunks, lane_of, pieces
from planish.backends.tvm.expressions import Reader, shape_of
from planish.backends.tvm.float_math import exp_of_negative, real
from planish.backends.tvm.float_rows import GREATEST, SUM, filled
from planish.backends.tvm.float_tiles import Matrix, tile, tiling
from planish.backends.tvm.lanes import vector
from planish.backends.tvm.plain import variable
from planish.backends.tvm.region import Region
from planish.backends.tvm.scope import Expr, Index, Kernel, Scope
from planish.backends.tvm.tiles import evened
from planish.ir import ops
from planish.ir.attention_patterns import DENSE
from planish.ir.graph import Node

SIZE = 64  # queries and keys of a block
_PIECES = 24  # of the work, for all threads
_OVERHEAD = 1.0  # blocks of keys whose products take as long as all that a block of queries takes once
_LEAST_CAUSAL = 2 * SIZE  # positions from which future blocks are worth leaving out
_INFINITE = float("inf")


def skips_blocks(node: Node) -> bool:
    """True if an attention to all keys is faster with lists of blocks: half of them are of the future."""
    op, (q, k, *_) = node.op, map(shape_of, node.inputs)
    plain = isinstance(op, ops.Attention) and op.causal and len(node.inputs) == 3
    return plain and q[2] == k[2] and q[2] >= _LEAST_CAUSAL


def attention(region: Region, context: Context) -> Kernel:
    """Queries, keys and values of a head are copied in the order of its pattern; then blocks of queries are finished.

    Logits of the kept blocks lie side by side; those that a pattern keeps in part are masked.
    """
    return _SparseAttention(region, context).kernel()


class _SparseAttention:
    """Extents: `length` queries of `width` and keys, `depth` columns of values, for `batch` times `heads`."""

    def __init__(self, region: Region, context: Context):
        node = region.anchor
        assert node is not None
        assert isinstance(node.op, ops.SparseAttention | ops.Attention)
        self.region, self.context, self.scope, self.op = region, context, Scope(), node.op
        self.q, self.k, self.v, *self.mean = node.inputs
        self.batch, self.heads, self.length, self.width = shape_of(self.q)
        self.shared, self.depth = shape_of(self.k)[1], shape_of(self.v)[3]
        self.reader = Reader(self.scope, context.stored, {})
        lanes = self.lanes = context.isa.lanes
        self.tiles = tiling(SIZE, SIZE, context.isa)
        self.deep = -(-self.depth // lanes) * lanes
        patterns = self.op.patterns if isinstance(self.op, ops.SparseAttention) else (DENSE,) * self.heads
        found = self.blocks = plan(patterns, self.length, self.op.causal, SIZE)
        self.rows, self.keys_each = found.counts.shape[1], found.keys.shape[1]
        self.across = SIZE * max(1, int(found.counts.max()))
        count = self.batch * self.heads
        self.queries = self._scratch(count, self.rows * SIZE, self.width)
        self.keys = self._scratch(count * (self.keys_each // SIZE), self.width, SIZE)
        self.values = self._scratch(count, self.keys_each, self.deep)
        arrays = {"queries": found.queries, "keys": found.keys, "starts": found.starts, "columns": found.columns}
        arrays |= {"masks": found.masks, "kept": found.kept, "skipped": found.skipped}
        self.known = {name: self.scope.constant(name, array) for name, array in arrays.items()}

    def _scratch(self, count: int, rows: int, columns: int) -> Matrix:
        return Matrix(self.scope.scratch((count * rows * columns,), "float32"), columns, rows * columns)

    def kernel(self) -> Kernel:
        bounds = self.bounds()
        limits, parts = self.scope.constant("bounds", bounds), len(bounds) - 1
        self.logits = self._scratch(parts, self.tiles.height, self.across)
        with IRBuilder() as builder, T.seq_scope():
            with T.parallel(0, self.batch * self.heads) as head:
                self.unless_skipped(head, lambda: self.copy(head))
            with T.parallel(0, parts) as part, T.serial(0, limits[part + 1] - limits[part]) as step:
                task = limits[part] + step
                head, row = T.floordiv(task, self.rows), T.floormod(task, self.rows)
                if self.length % SIZE == 0 or self.rows == 1:
                    self.task(part, head, row, min(SIZE, self.length))
                else:
                    with T.If(row < self.rows - 1):
                        with T.Then():
                            self.task(part, head, row, SIZE)
                        with T.Else():
                            self.task(part, head, row, self.length % SIZE)
        return self.scope.finish(builder, self.region.result)

    def bounds(self) -> np.ndarray:
        """int32: where pieces of almost equal work begin and end, in blocks of queries of all heads and samples."""
        work = np.tile(self.blocks.counts.reshape(-1) + _OVERHEAD, self.batch)
        done, count = np.concatenate([[0.0], np.cumsum(work)]), min(_PIECES, work.size)
        found = np.searchsorted(done, done[-1] * np.arange(count + 1) / count - 1e-9 * done[-1])
        found[-1] = work.size
        return found.astype(np.int32)

    def own(self, head: Expr) -> Index:
        """The sample and the head."""
        return T.floordiv(head, self.heads), T.floormod(head, self.heads)

    def unless_skipped(self, head: Expr, do: Callable[[], None], instead: Callable[[], None] | None = None) -> None:
        """One or the other, as the pattern of a head says."""
        if not self.mean:
            do()
            return
        with T.If(self.known["skipped"][self.own(head)[1]] < 0):
            with T.Then():
                do()
            if instead is not None:
                with T.Else():
                    instead()

    def copy(self, head: Expr) -> None:
        """Queries times the scale, keys of a block side by side, values with whole vectors per row."""
        image, own = self.own(head)
        other = T.floordiv(own, self.heads // self.shared) if self.shared < self.heads else own
        with T.serial(0, self.length) as n:
            position = variable("int32", self.known["queries"][own, n])
            for start, count in chunks(self.width, 2 * self.lanes):
                with vector(count) as lane:
                    element = self.reader.at(self.q, (image, own, position[0], start + lane)) * real(self.op.scale)
                    self._store(self.queries, head, n, start + lane, element)
        blocks = self.keys_each // SIZE
        with T.serial(0, blocks) as block, T.serial(0, SIZE) as column:
            key = self.known["keys"][own, block * SIZE + column]
            position, here = variable("int32", T.max(key, 0)), variable("bool", key >= 0)
            with T.serial(0, self.width) as d:
                element = self.reader.at(self.k, (image, other, position[0], d))
                element = T.Select(here[0], element, real(0))
                self._store(self.keys, head * blocks + block, d, column, element)
            for start, count in chunks(self.depth, 2 * self.lanes):
                with vector(count) as lane:
                    element = self.reader.at(self.v, (image, other, position[0], start + lane))
                    element = T.Select(here[0], element, real(0))
                    self._store(self.values, head, block * SIZE + column, start + lane, element)
            for start, count in pieces(self.deep - self.depth, self.lanes):
                with vector(count) as lane:
                    self._store(self.values, head, block * SIZE + column, self.depth + start + lane, real(0))

    def _store(self, matrix: Matrix, part: Expr, i: Expr, j: Expr, element: Expr) -> None:
        T.buffer_store(matrix.array, element, [part * matrix.size + i * matrix.stride + j])

    def task(self, part: Expr, head: Expr, row: Expr, queries: int) -> None:
        """A block of so many queries of a head."""
        self.unless_skipped(
            head, lambda: self.attend(part, head, row, queries), lambda: self.write_means(head, row, queries)
        )

    def attend(self, part: Expr, head: Expr, row: Expr, queries: int) -> None:
        place = self.own(head)[1] * self.rows + row
        first = variable("int32", self.known["starts"][place])
        count = variable("int32", self.known["starts"][place + 1] - first[0])
        inner = 0
        for blocks, height in evened(queries, self.tiles.height, self.tiles.vectors).spans:
            with T.serial(0, blocks) as block:
                start = inner + block * height
                self.logits_of(part, head, row, start, height, first[0], count[0])
                factors = [self.exponentials_of(part, i, count[0]) for i in range(height)]
                self.means_of(part, head, row * SIZE + start, height, first[0], count[0], factors)
            inner += blocks * height

    def logits_of(self, part: Expr, head: Expr, row: Expr, start: Expr, height: int, first: Expr, count: Expr) -> None:
        """Products of some rows of a block with all blocks of keys of its list, side by side."""
        lanes = self.lanes
        wide = self.tiles.vectors * lanes
        with T.serial(0, count) as number:
            key = head * (self.keys_each // SIZE) + self.known["columns"][first + number]
            for column in range(0, SIZE, wide):
                used = min(wide, SIZE - column)
                sums = tile(
                    height, used // lanes, (0, self.width),
                    lambda i, k: self.queries.at(head, row * SIZE + start + i, k),
                    lambda k, v, key=key, column=column: self.keys.vector(key, k, column + v * lanes, lanes),  # type: ignore[misc]
                    lanes,
                )  # fmt: skip
                for i, acc in enumerate(sums):
                    for piece, size in pieces(used, 2 * lanes):
                        with vector(size) as lane:
                            place = number * SIZE + column + piece + lane
                            self._store(self.logits, part, i, place, acc[piece + lane])
            mask = variable("int32", self.known["masks"][first + number])
            with T.If(mask[0] > 0), T.Then():
                for i in range(height):
                    with vector(SIZE) as lane:
                        kept = self.known["kept"][mask[0] - 1, start + i, lane] != T.uint8(0)
                        logit = self.logits.at(part, i, number * SIZE + lane)
                        self._store(self.logits, part, i, number * SIZE + lane, T.Select(kept, logit, real(-_INFINITE)))

    def exponentials_of(self, part: Expr, i: int, count: Expr) -> Expr:
        """Turn the logits of a row into e**(logit - greatest); the value is the reciprocal of their sum."""
        wide = min(SIZE, 4 * self.lanes)

        def logit(number: Expr, j: Expr) -> Expr:
            return self.logits.at(part, i, number * SIZE + j)

        most, sums = filled(wide, real(-_INFINITE)), filled(wide, real(0))
        with T.serial(0, count) as number:
            for start in range(0, SIZE, wide):
                with vector(wide) as lane:
                    T.buffer_store(most, GREATEST.combine(most[lane], logit(number, start + lane)), [lane])
        greatest = variable("float32", GREATEST(lambda j: most[j[0]], (wide,), self.lanes))
        with T.serial(0, count) as number:
            for start in range(0, SIZE, wide):
                with vector(wide) as lane:
                    power = exp_of_negative(logit(number, start + lane) - greatest[0])
                    self._store(self.logits, part, i, number * SIZE + start + lane, power)
                with vector(wide) as lane:
                    T.buffer_store(sums, sums[lane] + logit(number, start + lane), [lane])
        return variable("float32", real(1) / SUM(lambda j: sums[j[0]], (wide,), self.lanes))

    def means_of(
        self, part: Expr, head: Expr, row: Expr, height: int, first: Expr, count: Expr, factors: list[Expr]
    ) -> None:
        """Weighted means of some rows, as many columns at a time as there are registers for."""
        lanes, columns = self.lanes, self.known["columns"]
        most = max(1, (self.context.isa.registers - 1) // (height + 1))

        def value(k: Expr, v: int, column: int) -> Expr:
            token = columns[first + T.floordiv(k, SIZE)] * SIZE + T.floormod(k, SIZE)
            return self.values.vector(head, token, column + v * lanes, lanes)

        for column in range(0, self.depth, most * lanes):
            used = min(most * lanes, self.depth - column)
            sums = tile(
                height, -(-used // lanes), (0, count * SIZE),
                lambda i, k: self.logits.at(part, i, k),
                lambda k, v, column=column: value(k, v, column),  # type: ignore[misc]
                lanes,
            )  # fmt: skip
            for i, acc in enumerate(sums):
                self.write(head, row + i, column, used, lambda j, acc=acc, by=factors[i]: acc[j] * by[0])  # type: ignore[misc]

    def write_means(self, head: Expr, row: Expr, queries: int) -> None:
        """What a skipped head gives, at a block of positions."""
        number = self.known["skipped"][self.own(head)[1]]
        with T.serial(0, queries) as n:
            self.write(head, row * SIZE + n, 0, self.depth, lambda j: self.reader.at(self.mean[0], (number, j)))

    def write(self, head: Expr, row: Expr, column: int, used: int, element: Callable[[Expr], Expr]) -> None:
        """Store `used` elements of a row, from a column on, with all that follows the attention."""
        image, own = self.own(head)
        position = variable("int32", self.known["queries"][own, row])
        for start, count in pieces(used, 2 * self.lanes):

            def at(lane: Expr, first: int = column + start) -> Index:
                return image, own, position[0], first + lane

            lane_at = lane_of(at)
            Epilogue(
                self.scope, self.region, self.context,
                lambda where, start=start, f=lane_at: element(start + f(where)),  # type: ignore[misc]
            ).write_lanes(at, count)  # fmt: skip
