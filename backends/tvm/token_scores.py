"""Keys of unit length and their products: in float32, and exactly in integers."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script.ir_builder import tirx as T

from planish.backends.tvm import float_tiles, tiles
from planish.backends.tvm.epilogue import WIDEST, Context, chunks
from planish.backends.tvm.float_math import real
from planish.backends.tvm.isa import reduced
from planish.backends.tvm.lanes import vector
from planish.backends.tvm.norms import BLOCK, square_roots
from planish.backends.tvm.plain import variable
from planish.backends.tvm.region import Region
from planish.backends.tvm.scope import Expr, Kernel
from planish.backends.tvm.tiles import Panels, Rows, Tiling
from planish.backends.tvm.token_matching import Matching
from planish.backends.tvm.token_ranks import padded
from planish.ir import dtypes
from planish.ir.ops.int_tokens import UNIT_BITS
from planish.ir.ops.tokens import _SHORTEST

_ABOVE = 2 << UNIT_BITS  # more than the magnitude of an element of a key of unit length


def float_matching(region: Region, context: Context) -> Kernel:
    """MatchTokens."""
    return _FloatMatching(region, context).kernel()


def int_matching(region: Region, context: Context) -> Kernel:
    """IntMatchTokens."""
    return _IntMatching(region, context).kernel()


class _FloatMatching(Matching):
    """Every score is summed up in the same order, so equal keys have equal scores."""

    dtype, score, word = "float32", "float32", 1
    lowest, blocked = -4.0, -8.0

    def normalise(self, sample: Expr) -> None:
        for parity, count in enumerate(self.counts):
            with T.serial(0, count) as i:
                self.normalise_key(sample, 2 * i + parity, self.row(sample, parity, i))

    def normalise_key(self, sample: Expr, token: Expr, place: Expr) -> None:
        """Sums of heads instead of means: their length is divided by all the same."""
        lanes = self.lanes
        squares = T.alloc_buffer((lanes,), "float32", scope="global")
        with vector(lanes) as lane:
            T.buffer_store(squares, real(0), [lane])
        for start, width in chunks(self.width, 4 * lanes):
            sums = T.alloc_buffer((width,), "float32", scope="global")
            with vector(width) as lane:
                T.buffer_store(sums, self.reader.at(self.k, (sample, 0, token, start + lane)), [lane])
            with T.serial(1, self.heads) as head, vector(width) as lane:
                more = self.reader.at(self.k, (sample, head, token, start + lane))
                T.buffer_store(sums, sums[lane] + more, [lane])
            with vector(width) as lane:
                T.buffer_store(self.units, sums[lane], [place + start + lane])
            for first in range(0, width, lanes):
                with vector(min(lanes, width)) as lane:
                    square = sums[first + lane] * sums[first + lane]
                    T.buffer_store(squares, squares[lane] + square, [lane])
        half = lanes
        while half > 1:
            half //= 2
            with vector(half) as lane:
                T.buffer_store(squares, squares[lane] + squares[lane + half], [lane])
        shortest = real(float(_SHORTEST) * self.heads)
        root = variable("float32", T.sqrt(squares[0]))
        length = variable("float32", T.Select(root[0] < shortest, shortest, root[0]))
        for start, width in chunks(self.width, 4 * lanes):
            with vector(width) as lane:
                T.buffer_store(self.units, self.units[place + start + lane] / length[0], [place + start + lane])

    def plan(self, rows: int, columns: int) -> Tiling:
        return float_tiles.tiling(rows, columns, self.isa)

    def multiply(
        self, sample: Expr, row: Expr, height: int, column: Expr, vectors: int,
        finish: Callable[[Expr, Callable[[Expr], Expr]], None],
    ) -> None:  # fmt: skip
        lanes, first = self.lanes, sample * self.side + column * self.stride
        sums = float_tiles.tile(
            height, vectors, (0, self.width),
            lambda i, k: self.units[self.row(sample, 1, row + i) + k],
            lambda k, v: self.panels[T.Ramp(first + (v * self.words + k) * lanes, 1, lanes)],
            lanes,
        )  # fmt: skip
        for i, acc in enumerate(sums):
            finish(i, lambda place, acc=acc: acc[place])  # type: ignore[misc]


class _IntMatching(Matching):
    """Keys with 14 fraction bits in 16 bits, whose products with one another keep to 32 bits."""

    dtype, score = "int16", "int32"
    lowest = blocked = dtypes.i32.min

    def __init__(self, region: Region, context: Context):
        super().__init__(region, context)
        self.product = self.isa.words_product
        self.word = self.product.group
        largest = -dtypes.i8.min * self.heads
        self.sum = "int16" if largest <= dtypes.i16.max else "int32"
        self.square = "int32" if largest**2 * self.width <= dtypes.i32.max else "int64"
        if self.merged:
            across = padded(self.tokens, BLOCK)
            self.sums = self.scope.scratch((self.batch, self.tokens, self.width), self.sum)
            self.lengths = self.scope.scratch((self.batch, across), "int64")
            self.factors, self.addends = (self.scope.scratch((self.batch, across), "float64") for _ in range(2))

    def normalise(self, sample: Expr) -> None:
        """In three passes, so that square roots and reciprocals, which take long, wait for nothing.

        floor((m * 2**14 + (n >> 1) + 1/2) / n) is the same key, and what is cut off lies 1 / (2 * n) from an
        integer at least, far more than float64 rounds; moved above zero, it is cut off right.
        """
        with T.serial(0, self.tokens) as n:
            T.buffer_store(self.lengths, self.sum_heads(sample, n), [sample, n])
        with T.serial(0, -(-self.tokens // BLOCK)) as block:
            first = block * BLOCK
            lengths = T.alloc_buffer((BLOCK,), "int64", scope="global")
            with vector(BLOCK) as i:
                T.buffer_store(lengths, self.lengths[sample, first + i], [i])
            square_roots(lengths, BLOCK)
            with vector(BLOCK) as i:
                T.buffer_store(lengths, T.max(lengths[i], T.int64(1)), [i])
            with vector(BLOCK) as i:
                factor = T.float64(1 << UNIT_BITS) / T.cast(lengths[i], "float64")
                T.buffer_store(self.factors, factor, [sample, first + i])
            with vector(BLOCK) as i:
                half = T.cast(lengths[i] >> T.int64(1), "float64") + T.float64(0.5)
                addend = half / T.cast(lengths[i], "float64") + T.float64(_ABOVE)
                T.buffer_store(self.addends, addend, [sample, first + i])
        for parity, count in enumerate(self.counts):
            with T.serial(0, count) as i:
                n, place = 2 * i + parity, self.row(sample, parity, i)
                for start, width in chunks(self.width, 2 * self.lanes):
                    with vector(width) as lane:
                        m = T.cast(T.cast(self.sums[sample, n, start + lane], "int32"), "float64")
                        above = T.cast(m * self.factors[sample, n] + self.addends[sample, n], "int32")
                        T.buffer_store(self.units, T.cast(above - T.int32(_ABOVE), "int16"), [place + start + lane])
                for e in range(self.width, self.stride):
                    T.buffer_store(self.units, T.Cast("int16", 0), [place + e])

    def sum_heads(self, sample: Expr, token: Expr) -> Expr:
        """Write the sums of a key over heads; the value is that of their squares (int64)."""
        lanes = self.lanes
        squares = T.alloc_buffer((lanes,), self.square, scope="global")
        with vector(lanes) as lane:
            T.buffer_store(squares, T.Cast(self.square, 0), [lane])
        for start, width in chunks(self.width, WIDEST):
            sums = T.alloc_buffer((width,), self.sum, scope="global")
            with vector(width) as lane:
                T.buffer_store(sums, T.cast(self.reader.at(self.k, (sample, 0, token, start + lane)), self.sum), [lane])
            with T.serial(1, self.heads) as head, vector(width) as lane:
                more = T.cast(self.reader.at(self.k, (sample, head, token, start + lane)), self.sum)
                T.buffer_store(sums, sums[lane] + more, [lane])
            with vector(width) as lane:
                T.buffer_store(self.sums, sums[lane], [sample, token, start + lane])
            for first in range(0, width, lanes):
                with vector(min(lanes, width)) as lane:
                    wide = T.cast(sums[first + lane], self.square)
                    T.buffer_store(squares, squares[lane] + wide * wide, [lane])
        return T.cast(reduced("add", squares, lanes), "int64")

    def plan(self, rows: int, columns: int) -> Tiling:
        return tiles.tiling(rows, columns, self.isa, self.product)

    def multiply(
        self, sample: Expr, row: Expr, height: int, column: Expr, vectors: int,
        finish: Callable[[Expr, Callable[[Expr], Expr]], None],
    ) -> None:  # fmt: skip
        first, across = sample * self.side + column * self.stride, self.lanes * self.word
        panels = Panels(self.panels, lambda v: first + v * (self.words * across), across)
        rows = Rows(self.units, self.stride)
        above = 2 * self.columns * sample + self.columns  # rows of other samples and of even places
        tiles.multiply(
            rows, above + row, height, vectors, self.words, panels, None, self.isa, self.product, None, finish
        )
