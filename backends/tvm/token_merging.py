"""Tokens merged into others: rows that stay as they are are copied, only those that take some in are computed."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.epilogue import WIDEST, Context, chunks
from planish.backends.tvm.expressions import Reader, shape_of
from planish.backends.tvm.lanes import vector
from planish.backends.tvm.plain import loops, variable
from planish.backends.tvm.region import Region
from planish.backends.tvm.scope import Expr, Kernel, Scope

_ABOVE = 2.0**16  # more than the magnitude of a mean


def merging(region: Region, context: Context) -> Kernel:
    """MergeTokens and IntMergeTokens: y [B, M, C] and the sizes of its tokens."""
    return _Merging(region, context).kernel()


class _Merging:
    """Extents: `kept` tokens stay of each sample, `merged` others go into them; rows have `channels`."""

    def __init__(self, region: Region, context: Context):
        node = region.anchor
        assert node is not None
        self.region, self.lanes, self.scope = region, context.isa.lanes, Scope()
        self.x, self.keep, self.source, self.into, *self.size = node.inputs
        self.reader = Reader(self.scope, context.stored, {})
        self.batch, _, self.channels = shape_of(self.x)
        self.kept, self.merged = shape_of(self.keep)[1], shape_of(self.source)[1]
        self.y, self.total = (self.scope.value(v) if v in region.results else None for v in node.results)
        self.real = self.x.tensor.dtype.is_float
        self.wide = "float32" if self.real else "int32"
        self.stored = str(self.x.tensor.dtype.storage)

    def kernel(self) -> Kernel:
        scope = self.scope
        if self.merged:  # chains of the sources of each token: the first one, and the one after each
            self.first = scope.scratch((self.batch, self.kept), "int32")
            self.next = scope.scratch((self.batch, self.merged), "int32")
        with IRBuilder() as builder, T.seq_scope(), loops((self.batch,)) as (sample,):
            if self.merged:
                self.chain(sample)
            with T.serial(0, self.kept) as i:
                self.row(sample, i)
        return scope.finish(builder, self.region.result)

    def row(self, sample: Expr, i: Expr) -> None:
        place = variable("int32", self.index(self.keep, sample, i))
        if not self.merged:
            self.copy(sample, i, place[0])
            return
        with T.If(self.first[sample, i] < T.int32(0)):
            with T.Then():
                self.copy(sample, i, place[0])
            with T.Else():
                self.merge(sample, i, place[0])

    def index(self, value: Expr, sample: Expr, i: Expr) -> Expr:
        return T.cast(self.reader.at(value, (sample, i)), "int32")

    def chain(self, sample: Expr) -> None:
        """Chain the sources of each token, in their order."""
        for start, width in chunks(self.kept, 2 * self.lanes):
            with vector(width) as lane:
                T.buffer_store(self.first, T.int32(-1), [sample, start + lane])
        with T.serial(0, self.merged) as back:
            j = self.merged - 1 - back
            target = variable("int32", self.index(self.into, sample, j))
            T.buffer_store(self.next, self.first[sample, target[0]], [sample, j])
            T.buffer_store(self.first, T.cast(j, "int32"), [sample, target[0]])

    def weight(self, sample: Expr, place: Expr) -> Expr:
        return self.reader.at(self.size[0], (sample, place)) if self.size else T.Cast(self.wide, 1)

    def copy(self, sample: Expr, i: Expr, place: Expr) -> None:
        if self.total is not None:
            T.buffer_store(self.total, self.weight(sample, place), [sample, i])
        if self.y is not None:
            for start, width in chunks(self.channels, WIDEST):
                with vector(width) as lane:
                    T.buffer_store(
                        self.y, self.reader.at(self.x, (sample, place, start + lane)), [sample, i, start + lane]
                    )

    def merge(self, sample: Expr, i: Expr, place: Expr) -> None:
        """The mean of a token and of those that go into it, some channels at a time."""
        total = variable(self.wide, self.weight(sample, place))

        def take_in(source: Expr) -> None:
            T.buffer_store(total, total[0] + self.weight(sample, source), [0])

        self.each_source(sample, i, take_in)
        if self.total is not None:
            T.buffer_store(self.total, total[0], [sample, i])
        if self.y is None:
            return
        mean = self.mean(total[0])
        for start, width in chunks(self.channels, 4 * self.lanes):
            sums = T.alloc_buffer((width,), self.wide, scope="global")

            def element(place: Expr, lane: Expr, start: Expr = start) -> Expr:
                x = T.cast(self.reader.at(self.x, (sample, place, start + lane)), self.wide)
                return x * self.weight(sample, place) if self.size else x

            with vector(width) as lane:
                T.buffer_store(sums, element(place, lane), [lane])

            def add(source: Expr, width: int = width, sums: Expr = sums, element: Callable = element) -> None:  # type: ignore[type-arg]
                with vector(width) as lane:
                    T.buffer_store(sums, sums[lane] + element(source, lane), [lane])

            self.each_source(sample, i, add)
            with vector(width) as lane:
                T.buffer_store(self.y, mean(sums[lane]), [sample, i, start + lane])

    def each_source(self, sample: Expr, i: Expr, body: Callable[[Expr], None]) -> None:
        j = variable("int32", self.first[sample, i])
        with T.While(j[0] >= T.int32(0)):
            source = variable("int32", self.index(self.source, sample, j[0]))
            body(source[0])
            T.buffer_store(j, self.next[sample, j[0]], [0])

    def mean(self, total: Expr) -> Callable[[Expr], Expr]:
        """From a sum to the mean; of integers floor((2 * sum + total) / (2 * total)), exactly.

        (2 * sum + total + 1/2) / (2 * total) has the same floor, and lies at least 1 / (4 * total) from an integer, far
        more than float64 rounds; moved above zero, it is cut off right.
        """
        if self.real:
            return lambda sums: sums / total
        reciprocal = variable("float64", T.float64(1) / T.cast(total, "float64"))
        addend = variable("float64", T.float64(0.25) * reciprocal[0] + T.float64(_ABOVE + 0.5))

        def rounded(sums: Expr) -> Expr:
            above = T.cast(T.cast(sums, "float64") * reciprocal[0] + addend[0], "int32")
            return T.cast(above - T.int32(int(_ABOVE)), self.stored)

        return rounded
