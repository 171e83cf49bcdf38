"""Attention in float32: blocks of rows go from logits to results, one head at a time, with no matrix of all logits."""

from __future__ import annotations

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.epilogue import Context, Epilogue, chunks, lane_of, pieces, spans
from planish.backends.tvm.expressions import Reader, broadcast, shape_of, unravelled
from planish.backends.tvm.float_math import exp_of_negative, real
from planish.backends.tvm.float_rows import GREATEST, SUM, filled
from planish.backends.tvm.float_tiles import Matrix, tile, tiling
from planish.backends.tvm.lanes import vector
from planish.backends.tvm.plain import variable
from planish.backends.tvm.region import Region
from planish.backends.tvm.scope import Expr, Index, Kernel, Scope
from planish.ir import dtypes, ops

_INFINITE = float("inf")


def attention(region: Region, context: Context) -> Kernel:
    """Queries, keys (transposed) and values of a head are copied side by side; then each block of rows is finished."""
    return _Attention(region, context).kernel()


class _Attention:
    """Extents: `rows` queries of `width`, `tokens` keys, `depth` columns of values, for `batch` times `heads`."""

    def __init__(self, region: Region, context: Context):
        node = region.anchor
        assert node is not None
        assert isinstance(node.op, ops.Attention)
        self.region, self.context, self.scope, self.op = region, context, Scope(), node.op
        self.q, self.k, self.v, *self.mask = node.inputs
        self.batch, self.heads, self.rows, self.width = shape_of(self.q)
        self.shared, self.tokens, self.depth = shape_of(self.k)[1], shape_of(self.k)[2], shape_of(self.v)[3]
        self.reader = Reader(self.scope, context.stored, {})
        lanes = self.lanes = context.isa.lanes
        self.plan = tiling(self.rows, self.tokens, context.isa)
        self.across, self.deep = _padded(self.tokens, lanes), _padded(self.depth, lanes)
        count = self.batch * self.heads
        self.queries = self._scratch(count, self.rows, self.width)
        self.keys = self._scratch(count, self.width, self.across)
        self.values = self._scratch(count, self.tokens, self.deep)
        self.logits = self._scratch(count, self.plan.height, self.across)

    def _scratch(self, count: int, rows: int, columns: int) -> Matrix:
        return Matrix(self.scope.scratch((count * rows * columns,), "float32"), columns, rows * columns)

    def kernel(self) -> Kernel:
        plan = self.plan
        with IRBuilder() as builder, T.seq_scope(), T.parallel(0, self.batch * self.heads) as head:
            image, own = unravelled(head, (self.batch, self.heads))
            other = T.floordiv(own, self.heads // self.shared) if self.shared < self.heads else own
            self.copy(head, (image, own), (image, other))
            row = 0
            for blocks, height in plan.spans:
                with T.serial(0, blocks) as block:
                    self.block(head, (image, own), row + block * height, height)
                row += blocks * height
        return self.scope.finish(builder, self.region.result)

    def copy(self, head: Expr, own: Index, other: Index) -> None:
        """Queries times the scale, keys with tokens side by side, values with whole vectors per row."""
        with T.serial(0, self.rows) as n:
            for start, count in chunks(self.width, 2 * self.lanes):
                with vector(count) as lane:
                    scaled = self.reader.at(self.q, (*own, n, start + lane)) * real(self.op.scale)
                    self._store(self.queries, head, n, start + lane, scaled)
        with T.serial(0, self.width) as d:
            for start, count in chunks(self.tokens, self.lanes):
                with vector(count) as lane:
                    self._store(self.keys, head, d, start + lane, self.reader.at(self.k, (*other, start + lane, d)))
            self._blank(self.keys, head, d, self.tokens, self.across, 0)
        with T.serial(0, self.tokens) as m:
            for start, count in chunks(self.depth, 2 * self.lanes):
                with vector(count) as lane:
                    self._store(self.values, head, m, start + lane, self.reader.at(self.v, (*other, m, start + lane)))
            self._blank(self.values, head, m, self.depth, self.deep, 0)

    def _store(self, matrix: Matrix, head: Expr, i: Expr, j: Expr, element: Expr) -> None:
        T.buffer_store(matrix.array, element, [head * matrix.size + i * matrix.stride + j])

    def _blank(self, matrix: Matrix, head: Expr, i: Expr, start: int, end: int, number: float) -> None:
        for first, count in pieces(end - start, self.lanes):
            with vector(count) as lane:
                self._store(matrix, head, i, start + first + lane, real(number))

    def block(self, head: Expr, own: Index, row: Expr, height: int) -> None:
        """A block of rows, from logits to results."""
        self.logits_of(head, own, row, height)
        reciprocals = [self.exponentials_of(head, i) for i in range(height)]
        self.means_of(head, own, row, height, reciprocals)

    def logits_of(self, head: Expr, own: Index, row: Expr, height: int) -> None:
        lanes = self.lanes
        for column, used in spans(self.tokens, self.plan.vectors * lanes):
            sums = tile(
                height, -(-used // lanes), (0, self.width),
                lambda i, k: self.queries.at(head, row + i, k),
                lambda k, v, column=column: self.keys.vector(head, k, column + v * lanes, lanes),  # type: ignore[misc]
                lanes,
            )  # fmt: skip
            for i, acc in enumerate(sums):
                for start, count in pieces(used, 2 * lanes):
                    with vector(count) as lane:
                        logit = self.masked(acc[start + lane], own, row + i, column + start + lane)
                        self._store(self.logits, head, i, column + start + lane, logit)
        for i in range(height):
            self._blank(self.logits, head, i, self.tokens, self.across, -_INFINITE)

    def masked(self, logit: Expr, own: Index, n: Expr, m: Expr) -> Expr:
        for mask in self.mask:
            element = self.reader.at(mask, broadcast((*own, n, m), shape_of(mask)))
            only = mask.tensor.dtype == dtypes.boolean
            logit = T.Select(element, logit, real(-_INFINITE)) if only else logit + element
        return T.Select(m <= n, logit, real(-_INFINITE)) if self.op.causal else logit

    def exponentials_of(self, head: Expr, i: int) -> Expr:
        """Turn the logits of a row into e**(logit - greatest); the value is the reciprocal of their sum.

        A row of which nothing takes part is NaN: infinite logits less their maximum are.
        """
        lanes, width = self.lanes, self.across

        def logit(j: Expr) -> Expr:
            return self.logits.at(head, i, j)

        greatest = variable("float32", GREATEST(lambda j: logit(j[0]), (width,), lanes))
        sums = filled(4 * lanes, real(0))
        for start, count in chunks(width, 4 * lanes):
            with vector(count) as lane:
                power = exp_of_negative(logit(start + lane) - greatest[0])
                self._store(self.logits, head, i, start + lane, power)
            with vector(count) as lane:
                T.buffer_store(sums, sums[lane] + logit(start + lane), [lane])
        return variable("float32", real(1) / SUM(lambda j: sums[j[0]], (4 * lanes,), lanes))

    def means_of(self, head: Expr, own: Index, row: Expr, height: int, reciprocals: list[Expr]) -> None:
        """Weighted means of a block of rows, as many columns at a time as there are registers for."""
        lanes = self.lanes
        most = max(1, (self.context.isa.registers - 1) // (height + 1))
        for column in range(0, self.depth, most * lanes):
            used = min(most * lanes, self.depth - column)
            sums = tile(
                height, -(-used // lanes), (0, self.tokens),
                lambda i, k: self.logits.at(head, i, k),
                lambda k, v, column=column: self.values.vector(head, k, column + v * lanes, lanes),  # type: ignore[misc]
                lanes,
            )  # fmt: skip
            for i, acc in enumerate(sums):
                for start, count in pieces(used, 2 * lanes):

                    def at(lane: Expr, i: int = i, first: int = column + start) -> Index:
                        return (*own, row + i, first + lane)

                    lane_at = lane_of(at)
                    Epilogue(
                        self.scope,
                        self.region,
                        self.context,
                        lambda where, acc=acc, start=start, f=lane_at, by=reciprocals[i]: (  # type: ignore[misc]
                            acc[start + f(where)] * by[0]
                        ),
                    ).write_lanes(at, count)


def _padded(extent: int, to: int) -> int:
    return -(-extent // to) * to
