"""What the forms of sparse products share: the arrays that they read, codes that are gathered, and sums in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.interleaving import four, quads
from planish.backends.tvm.isa import Isa, Product, TileProduct
from planish.backends.tvm.scope import Expr
from planish.backends.tvm.sparse_weights import GROUP

WIDTH = 64  # columns whose sums are finished together


@dataclass(frozen=True)
class Work:
    """Arrays that the tasks of a kernel share. codes: [blocks of tokens][K][tokens of a block], flat.

    starts, places, values, sizes: of `Compact`. start: what sums start from.
    """

    isa: Isa
    product: Product | TileProduct
    tokens: int
    depth: int
    codes: Expr
    starts: Expr
    places: Expr
    values: Expr
    sizes: Expr
    start: Expr

    @property
    def wide(self) -> int:
        """Tokens of a block: a vector of bytes."""
        return GROUP * self.isa.lanes

    @property
    def square(self) -> int:
        """Sums of a block of tokens for four outputs."""
        return GROUP * self.wide

    def inputs(self, group: Expr) -> list[Expr]:
        """The four inputs of a group, int64."""
        word = self.places[group]
        return [T.cast((word >> T.uint64(16 * i)) & T.uint64(0xFFFF), "int64") for i in range(GROUP)]

    def gathered(self, base: Expr, group: Expr, count: int) -> list[Expr]:
        """Four inputs of a group for `count` vectors of tokens, interleaved. base: of a block of tokens."""
        wide = self.wide
        places = [T.cast(base, "int64") + k * T.int64(wide) for k in self.inputs(group)]
        inputs = [self.codes[T.Ramp(place, 1, wide)] for place in places]
        return quads(inputs, count, self.product.dtype, wide)

    def gather(self, base: Expr, group: Expr, count: int, room: Expr, place: Expr, apart: int) -> list[Expr]:
        """The same as int32, written one vector `apart` from the other as well."""
        lanes, every, vectors = self.isa.lanes, T.Ramp(0, 1, self.isa.lanes), []
        for inputs in self.gathered(base, group, count):
            kept = T.alloc_buffer((lanes,), "int32", scope="global")
            T.buffer_store(kept, T.reinterpret(f"int32x{lanes}", inputs), [every])
            vectors.append(kept[every])
        for i, vector in enumerate(vectors):
            T.buffer_store(room, vector, [T.Ramp(place + i * apart, 1, lanes)])
        return vectors

    def settle(self, sums: Sequence[Expr], vector: int, room: Expr, place: Expr) -> None:
        """Write sums of four outputs for a vector of tokens, four tokens of four outputs at a time."""
        lanes = self.isa.lanes
        for i, square in enumerate(four(list(sums), lanes)):
            T.buffer_store(room, square, [T.Ramp(place + i * self.wide + vector * lanes, 1, lanes)])

    def settle_in_place(self, columns: int, first: Expr | None, vectors: int, room: Expr, place: Expr) -> None:
        """The same for sums of `columns` outputs that lie in `room`, output by output.

        They are read a good while after they were written, since what stores tiles can't hand them over directly.
        first: column whose start is added to the first output's sums, and so on; None if they have theirs.
        """
        lanes, every = self.isa.lanes, T.Ramp(0, 1, self.isa.lanes)
        with T.serial(0, -(-columns // GROUP)) as number:
            above = place + number * self.square
            for vector in range(vectors):
                sums = [T.alloc_buffer((lanes,), "int32", scope="global") for _ in range(GROUP)]
                for i, row in enumerate(sums):
                    found = room[T.Ramp(above + i * self.wide + vector * lanes, 1, lanes)]
                    if first is not None:
                        found = found + T.Broadcast(self.start[first + number * GROUP + i], lanes)
                    T.buffer_store(row, found, [every])
                self.settle([row[every] for row in sums], vector, room, above)

    def row(self, token: Expr, used: int, room: Expr, place: Expr) -> Expr:
        """The sums of a token, put together from where they have been settled: an array of a block's columns."""
        lanes, row = self.isa.lanes, T.alloc_buffer((WIDTH,), "int32", scope="global")
        inner = T.floormod(token, lanes)
        where = place + T.floormod(inner, GROUP) * self.wide + (token - inner) + T.floordiv(inner, GROUP) * GROUP
        for first in range(0, used, lanes):
            parts = [room[T.Ramp(where + (first // GROUP + i) * self.square, 1, GROUP)] for i in range(lanes // GROUP)]
            joined = tirx.Shuffle(parts, [tirx.const(i, "int32") for i in range(lanes)]) if len(parts) > 1 else parts[0]
            T.buffer_store(row, joined, [T.Ramp(first, 1, lanes)])
        return row


def held(value: Expr) -> Expr:
    """An integer that is computed once, though memory is written before it is used."""
    kept = T.alloc_buffer((1,), str(value.ty.dtype), scope="global")
    T.buffer_store(kept, value, [0])
    return kept[0]
