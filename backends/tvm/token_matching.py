"""Bipartite matching of tokens by the similarity of their keys: who merges into whom, without storing the scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.epilogue import Context, spans
from planish.backends.tvm.expressions import Reader, shape_of
from planish.backends.tvm.lanes import vector
from planish.backends.tvm.plain import loops, variable
from planish.backends.tvm.region import Region
from planish.backends.tvm.repack import transposed
from planish.backends.tvm.scope import SPARE, Expr, Kernel, Scope
from planish.backends.tvm.tiles import Tiling
from planish.backends.tvm.token_ranks import padded, rank
from planish.ir import ops


class Matching(ABC):
    """One sample at a time: keys of unit length, the best partner of each token in an even place, then the choice.

    Of every vector of scores, lanes are tokens in even places, and tokens in odd places come one after the other: the
    best so far and where it was stay in registers, and of equals the first one is kept.
    Keys in odd places are rows of `units`, those in even places are transposed, a word of 32 bits of each token next to
    that of the next token, in `panels`.
    dtype: of keys of unit length. score: of scores. word: elements in a word. lowest, blocked: scores below any other,
    to start from and of tokens that take no part.
    """

    dtype: str
    score: str
    word: int
    lowest: float
    blocked: float

    def __init__(self, region: Region, context: Context):
        node = region.anchor
        assert node is not None
        assert isinstance(node.op, ops.MatchTokens | ops.IntMatchTokens)
        self.node, self.region, self.context, self.isa, self.scope = node, region, context, context.isa, Scope()
        self.k, self.merged, self.protected = node.inputs[0], node.op.merged, node.op.protected
        self.reader = Reader(self.scope, context.stored, {})
        self.batch, self.heads, self.tokens, self.width = shape_of(self.k)
        self.lanes = self.isa.lanes
        self.counts = (self.tokens + 1) // 2, self.tokens // 2
        self.evens, self.odds = self.counts
        self.columns = padded(self.evens, self.lanes)
        self.keep, self.source, self.into = (self.scope.value(v) if v in region.results else None for v in node.results)

    @abstractmethod
    def normalise(self, sample: Expr) -> None:
        """Write the keys of unit length to `units`."""

    @abstractmethod
    def plan(self, rows: int, columns: int) -> Tiling:
        """How scores of so many odd places by so many even ones are cut."""

    @abstractmethod
    def multiply(
        self, sample: Expr, row: Expr, height: int, column: Expr, vectors: int,
        finish: Callable[[Expr, Callable[[Expr], Expr]], None],
    ) -> None:  # fmt: skip
        """Scores of a tile, handed to `finish` row by row."""

    def kernel(self) -> Kernel:
        if self.merged:
            scope, shape = self.scope, (self.batch, self.columns)
            self.stride = padded(self.width, self.word)
            self.words = self.stride // self.word
            self.side = self.columns * self.stride  # elements of the keys in even or odd places
            self.sample = 2 * self.side
            self.units = scope.scratch((self.batch * self.sample + SPARE,), self.dtype)
            self.panels = scope.scratch((self.batch * self.side,), self.dtype)
            self.best, self.partner = scope.scratch(shape, self.score), scope.scratch(shape, "int32")
            self.ranks, self.order = scope.scratch(shape, "int32"), scope.scratch(shape, "int32")
            self.before = scope.scratch(shape, "int32")
        with IRBuilder() as builder, T.seq_scope(), loops((self.batch,)) as (sample,):
            if self.merged:
                self.normalise(sample)
                self.pack(sample)
                self.match(sample)
                self.choose(sample)
            elif self.keep is not None:
                with T.serial(0, self.tokens) as n:
                    T.buffer_store(self.keep, T.cast(n, "int64"), [sample, n])
            else:
                T.evaluate(T.int32(0))
        return self.scope.finish(builder, self.region.result)

    def row(self, sample: Expr, parity: int, i: Expr) -> Expr:
        """Where the key of token 2 * i + parity begins in `units`."""
        return sample * self.sample + parity * self.side + i * self.stride

    def pack(self, sample: Expr) -> None:
        """Transpose the keys in even places, in squares of words; the last one is repeated where they end."""
        lanes, across = self.lanes, self.lanes * self.word
        if self.word * np.dtype(self.dtype).itemsize != 4:
            self.pack_elements(sample)
            return
        with T.serial(0, self.columns // lanes) as block:
            for left in range(0, self.words, lanes):
                places = [
                    self.row(sample, 0, T.min(block * lanes + i, self.evens - 1)) + left * self.word
                    for i in range(lanes)
                ]
                rows = [T.reinterpret(f"int32x{lanes}", self.units[T.Ramp(place, 1, across)]) for place in places]
                for k, row in enumerate(transposed(rows)[: self.words - left]):
                    column = sample * self.side + (block * self.words + left + k) * across
                    T.buffer_store(
                        self.panels, T.reinterpret(f"{self.dtype}x{across}", row), [T.Ramp(column, 1, across)]
                    )

    def pack_elements(self, sample: Expr) -> None:
        """The same for words that are elements of fewer bits."""
        assert self.word == 1
        with T.serial(0, self.columns) as i, T.serial(0, self.width) as e:
            block, lane = T.floordiv(i, self.lanes), T.floormod(i, self.lanes)
            key = self.units[self.row(sample, 0, T.min(i, self.evens - 1)) + e]
            T.buffer_store(self.panels, key, [sample * self.side + (block * self.words + e) * self.lanes + lane])

    def match(self, sample: Expr) -> None:
        """The most similar token in an odd place for each one in an even place, as `partner`, and how similar it is."""
        lanes, first = self.lanes, self.protected // 2
        plan = self.plan(self.odds - first, self.columns)
        for column, used in spans(self.columns, plan.vectors * lanes):
            vectors = used // lanes
            found = tuple(T.alloc_buffer((used,), dtype, scope="global") for dtype in (self.score, "int32"))
            for array, start in zip(found, (T.Cast(self.score, self.lowest), T.int32(first)), strict=True):
                for v in range(vectors):
                    T.buffer_store(array, T.Broadcast(start, lanes), [T.Ramp(v * lanes, 1, lanes)])
            row: Expr = first
            for count, height in plan.spans:
                with T.serial(0, count) as block:
                    start = row + block * height
                    self.multiply(
                        sample, start, height, column, vectors,
                        lambda i, sums, start=start, found=found: self.compare(found, start + i, sums),  # type: ignore[misc]
                    )  # fmt: skip
                row += count * height
            for array, kept in zip(found, (self.best, self.partner), strict=True):
                for v in range(vectors):
                    with vector(lanes) as lane:
                        T.buffer_store(kept, array[v * lanes + lane], [sample, column + v * lanes + lane])
        for a in range((self.protected + 1) // 2):
            T.buffer_store(self.best, T.Cast(self.score, self.blocked), [sample, a])

    def compare(self, found: tuple[Expr, Expr], odd: Expr, sums: Callable[[Expr], Expr]) -> None:
        """Keep the scores of a token in an odd place, and its number, where they are better than the best so far."""
        best, partner = found
        for first in range(0, int(best.shape[0]), self.lanes):
            with vector(self.lanes) as lane:
                place = first + lane
                better = sums(place) > best[place]
                T.buffer_store(partner, T.Select(better, T.cast(odd, "int32"), partner[place]), [place])
            with vector(self.lanes) as lane:
                place = first + lane
                T.buffer_store(best, T.Select(sums(place) > best[place], sums(place), best[place]), [place])

    def choose(self, sample: Expr) -> None:
        """Keep, source and into from the partners and how similar they are."""
        rank(self.best, self.ranks, sample, self.evens, self.lanes)
        gone = variable("int32", T.int32(0))  # so many tokens before this one
        with T.serial(0, self.odds) as a:
            self.put(self.keep, sample, 2 * a - gone[0], 2 * a)
            order = self.ranks[sample, a]
            T.buffer_store(self.order, T.cast(a, "int32"), [sample, order])
            T.buffer_store(gone, gone[0] + T.Select(order < T.int32(self.merged), T.int32(1), T.int32(0)), [0])
            T.buffer_store(self.before, gone[0], [sample, a])
            self.put(self.keep, sample, 2 * a + 1 - gone[0], 2 * a + 1)  # over the even one if that merges
        if self.evens > self.odds:
            last = self.odds
            T.buffer_store(self.order, T.int32(last), [sample, self.ranks[sample, last]])
            if self.keep is not None:
                with T.If(self.ranks[sample, last] >= T.int32(self.merged)), T.Then():
                    self.put(self.keep, sample, 2 * last - gone[0], 2 * last)
        with T.serial(0, self.merged) as j:
            a = variable("int32", self.order[sample, j])
            self.put(self.source, sample, j, 2 * a[0])
            target = variable("int32", self.partner[sample, a[0]])
            self.put(self.into, sample, j, 2 * target[0] + 1 - self.before[sample, target[0]])

    def put(self, array: Expr, sample: Expr, place: Expr, token: Expr) -> None:
        if array is not None:
            T.buffer_store(array, T.cast(token, "int64"), [sample, place])
