"""IntLinear and IntConv by weights with many zeros: only groups of inputs that blocks of outputs use are multiplied.

Neighbouring outputs, four or sixteen, share the inputs that any of them uses (structure OB4 of `planish.ir.sparsity`,
"4x1" in arXiv 2306.16601, whose index loop this is). Codes are transposed in blocks of tokens once, so that a vector
holds many tokens of one input, four of which are interleaved as they are met. Sums are transposed back a block at a
time and go the way of dense ones from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm import amx
from planish.backends.tvm.interleaving import four, quads, transposed_codes
from planish.backends.tvm.isa import Isa, Product, TileProduct
from planish.backends.tvm.scope import Expr, Scope
from planish.backends.tvm.sparse_weights import GROUP, ROW_GROUPS, Compact
from planish.backends.tvm.tiles import Rows

WIDTH = 64  # columns whose sums are finished together
_PIECES = 24  # of a kernel's work, for all threads

Finish = Callable[[Expr, Expr, int, Callable[[Expr], Expr]], None]
"""Takes a row, the first column of a block, the count of columns, and sums as a function of the column in the block."""


@dataclass(frozen=True)
class _Work:
    """Arrays that the tasks of a kernel share. codes: [blocks of tokens][K][tokens of a block], flat."""

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


def multiply(
    rows: Rows,
    count: int,
    depth: int,
    columns: int,
    weights: Compact,
    start: Expr,
    isa: Isa,
    product: Product | TileProduct,
    scope: Scope,
    finish: Finish,
) -> None:
    """Products of `count` rows by sparse weights [depth, columns], handed to `finish` row by row, WIDTH columns each.

    One row of codes stays as it is, and four sums are a vector; weights and places are streamed.
    start: what sums of columns start from, int32, at least whole blocks of columns.
    """
    one = count == 1 and isinstance(product, Product)
    codes, padded = (rows.array, depth) if one else transposed_codes(rows, count, depth, isa, scope)
    constants = (
        scope.constant("starts", weights.starts),
        scope.constant("places", weights.places),
        scope.constant("values", weights.values),
        scope.constant("sizes", weights.sizes),
    )
    work = _Work(isa, product, count, padded, codes, *constants, start)
    blocks, across = -(-count // work.wide), -(-columns // WIDTH)
    rest, last = count - (blocks - 1) * work.wide, columns - (across - 1) * WIDTH

    def task(block: Expr, column: Expr, tokens: int, used: int, room: Expr, place: Expr) -> None:
        body = _of_one_row if one else _in_tiles if isinstance(product, TileProduct) else _in_vectors
        body(work, weights.outputs, block, column, tokens, used, room, place)
        with T.serial(0, tokens) as token:
            row, first = (room, place) if one else (_row(work, token, used, room, place), 0)
            finish(block * work.wide + token, column * WIDTH, used, lambda c: row[first + c])

    with _shared_out(weights, blocks, rest, across, scope, work) as (number, room, place):
        block, column = T.floordiv(number, across), T.floormod(number, across)

        def of_columns(tokens: int) -> None:
            _either(last < WIDTH and across > 1, column < across - 1,
                    lambda: task(block, column, tokens, WIDTH if across > 1 else last, room, place),
                    lambda: task(block, column, tokens, last, room, place))  # fmt: skip

        _either(rest < work.wide and blocks > 1, block < blocks - 1,
                lambda: of_columns(work.wide if blocks > 1 else rest),
                lambda: of_columns(rest))  # fmt: skip


def _in_vectors(
    work: _Work, outputs: int, block: Expr, column: Expr, tokens: int, used: int, room: Expr, place: Expr
) -> None:
    """Sums of a block of tokens by `used` columns, a few outputs at a time, as `_settle` leaves them in `room`."""
    isa, product = work.isa, work.product
    assert isinstance(product, Product)
    lanes, every = isa.lanes, T.Ramp(0, 1, isa.lanes)
    base = block * (work.depth * work.wide)
    with T.serial(0, -(-used // outputs)) as part:
        first = column * WIDTH + part * outputs
        bundle = column * (WIDTH // outputs) + part
        most = isa.registers // 2 // outputs  # vectors whose sums stay in registers
        for left in range(0, -(-tokens // lanes), most):
            count = min(most, -(-tokens // lanes) - left)
            sums = [[T.alloc_buffer((lanes,), "int32", scope="global") for _ in range(count)] for _ in range(outputs)]
            for output, across in enumerate(sums):
                for acc in across:
                    T.buffer_store(acc, T.Broadcast(work.start[first + output], lanes), [every])
            with T.serial(0, work.starts[bundle + 1] - work.starts[bundle]) as step:
                group = work.starts[bundle] + step
                found = work.gathered(base, group, left + count)[left:]
                for output, across in enumerate(sums):
                    word = T.Broadcast(work.values[group * outputs + output], lanes)
                    panel = T.reinterpret(f"int8x{lanes * GROUP}", word)
                    for acc, inputs in zip(across, found, strict=True):
                        T.buffer_store(acc, product.of_vectors(acc[every], inputs, panel, lanes), [every])
            for i in range(count):
                for output in range(0, outputs, GROUP):
                    settled = [across[i][every] for across in sums[output : output + GROUP]]
                    square = (part * outputs + output) // GROUP
                    _settle(work, settled, left + i, room, place + square * work.square)


def _of_one_row(
    work: _Work, outputs: int, block: Expr, column: Expr, tokens: int, used: int, room: Expr, place: Expr
) -> None:
    """The same for a single row: the four codes of a group become one word; in `room`: [used]."""
    assert isinstance(work.product, Product)
    product, every = work.product.narrowed(outputs), T.Ramp(0, 1, outputs)
    with T.serial(0, -(-used // outputs)) as part:
        bundle = column * (WIDTH // outputs) + part
        sums = [T.alloc_buffer((outputs,), "int32", scope="global") for _ in range(ROW_GROUPS)]
        for i, acc in enumerate(sums):
            start = work.start[T.Ramp(column * WIDTH + part * outputs, 1, outputs)]
            T.buffer_store(acc, T.Broadcast(T.int32(0), outputs) if i else start, [every])
        first = T.floordiv(work.starts[bundle], ROW_GROUPS)
        with T.serial(0, T.floordiv(work.starts[bundle + 1], ROW_GROUPS) - first) as step:
            for i, acc in enumerate(sums):
                group = (first + step) * ROW_GROUPS + i
                word: Expr = T.uint32(0)
                for j, k in enumerate(work.inputs(group)):
                    word = word | T.cast(work.codes[k], "uint32") << T.uint32(8 * j)
                codes = T.reinterpret(f"{product.dtype}x{outputs * GROUP}", T.Broadcast(word, outputs))
                weights = work.values[T.Ramp(group * outputs, 1, outputs)]
                panel = T.reinterpret(f"int8x{outputs * GROUP}", weights)
                T.buffer_store(acc, product.of_vectors(acc[every], codes, panel, outputs), [every])
        total = sum((acc[every] for acc in sums[1:]), sums[0][every])
        T.buffer_store(room, total, [T.Ramp(place + part * outputs, 1, outputs)])


def _settle(work: _Work, sums: Sequence[Expr], vector: Expr, room: Expr, place: Expr) -> None:
    """Write sums of four outputs for a vector of tokens, four tokens of four outputs at a time."""
    lanes = work.isa.lanes
    for i, square in enumerate(four(list(sums), lanes)):
        T.buffer_store(room, square, [T.Ramp(place + i * work.wide + vector * lanes, 1, lanes)])


def _row(work: _Work, token: Expr, used: int, room: Expr, place: Expr) -> Expr:
    """The sums of a token, put together from where `_settle` has written them: an array of a block's columns."""
    lanes, row = work.isa.lanes, T.alloc_buffer((WIDTH,), "int32", scope="global")
    inner = T.floormod(token, lanes)
    where = place + T.floormod(inner, GROUP) * work.wide + (token - inner) + T.floordiv(inner, GROUP) * GROUP
    for first in range(0, used, lanes):
        parts = [room[T.Ramp(where + (first // GROUP + i) * work.square, 1, GROUP)] for i in range(lanes // GROUP)]
        joined = tirx.Shuffle(parts, [tirx.const(i, "int32") for i in range(lanes)]) if len(parts) > 1 else parts[0]
        T.buffer_store(row, joined, [T.Ramp(first, 1, lanes)])
    return row


def _in_tiles(
    work: _Work, outputs: int, block: Expr, column: Expr, tokens: int, used: int, room: Expr, place: Expr
) -> None:
    """The same, sixteen outputs at a time in tile registers: weights are tiles of rows, codes tiles of columns."""
    product, lanes = work.product, work.isa.lanes
    assert isinstance(product, TileProduct)
    count = -(-tokens // lanes)
    tile, groups = amx.ROWS * lanes, amx.DEPTH // GROUP
    codes = held(place + work.wide * WIDTH)
    base = held(block * (work.depth * work.wide))
    bundles = held(column * (WIDTH // outputs))
    parts = -(-used // outputs)
    first, end = held(work.starts[bundles]), held(work.starts[bundles + parts])

    def gather(step: Expr, side: Expr, chunk: Expr) -> None:
        for g in range(UNIT):
            group = chunk * UNIT + g
            for i, inputs in enumerate(work.gathered(base, step * groups + group, count)):
                word = T.reinterpret(f"int32x{lanes}", inputs)
                T.buffer_store(room, word, [T.Ramp(side + i * tile + group * lanes, 1, lanes)])

    with T.serial(0, T.if_then_else(first < end, work.sizes[first], 0)) as chunk:
        gather(first, codes + T.floormod(first, 2) * (count * tile), chunk)
    with T.serial(0, parts) as part:
        begin = held(work.starts[bundles + part])
        for i in range(count):
            amx.do("tilezero", T.int8(i))
        with T.serial(0, work.starts[bundles + part + 1] - begin) as number:
            step = held(begin + number)
            side = held(codes + T.floormod(step, 2) * (count * tile))
            other = held(codes + T.floormod(step + 1, 2) * (count * tile))
            ahead = held(T.if_then_else(step + 1 < end, work.sizes[step + 1], 0))
            amx.do("tileloadd64", T.int8(4), T.address_of(work.values[step * tile]), T.int64(amx.DEPTH))
            for i in range(groups // UNIT if INTER else count):
                if INTER:
                    with T.If(i < ahead):
                        with T.Then():
                            gather(step + 1, other, i)
                if i < count:
                    amx.do("tileloadd64", T.int8(5 + i % 3), T.address_of(room[side + i * tile]), T.int64(amx.DEPTH))
                    amx.do(_SWAPPED[product.dtype], T.int8(i), T.int8(4), T.int8(5 + i % 3))
            if not INTER:
                with T.serial(0, ahead) as chunk:
                    gather(step + 1, other, chunk)
        for i in range(count):
            above = T.address_of(room[place + part * outputs * work.wide + i * lanes])
            amx.do("tilestored64", T.int8(i), above, T.int64(4 * work.wide))
    if not int(os.environ.get("SETTLE","1")): return
    with T.serial(0, parts * (outputs // GROUP)) as square:
        above = place + square * work.square
        for i in range(count):
            loaded = [T.alloc_buffer((lanes,), "int32", scope="global") for _ in range(GROUP)]
            every = T.Ramp(0, 1, lanes)
            for j, row in enumerate(loaded):
                start = T.Broadcast(work.start[column * WIDTH + square * GROUP + j], lanes)
                T.buffer_store(row, room[T.Ramp(above + j * work.wide + i * lanes, 1, lanes)] + start, [every])
            _settle(work, [row[every] for row in loaded], i, room, above)


def held(value: Expr) -> Expr:
    """An integer that is computed once, though memory is written before it is used."""
    kept = T.alloc_buffer((1,), str(value.ty.dtype if hasattr(value.ty, "dtype") else value.ty), scope="global")
    T.buffer_store(kept, value, [0])
    return kept[0]


import os
INTER = True
UNIT = 4
_SWAPPED = {"uint8": "tdpbsud", "int8": "tdpbssd"}
"""Instructions with weights on the left, by the dtype of codes."""


@contextmanager
def _shared_out(
    weights: Compact, blocks: int, rest: int, across: int, scope: Scope, work: _Work
) -> Iterator[tuple[Expr, Expr, Expr]]:
    """A loop over blocks of tokens by blocks of columns on all threads, in pieces of almost equal work.

    Yields the number of the task and room for its sums, int32 elements of a flat array from a place on.
    """
    bundles = WIDTH // weights.outputs
    edges = np.minimum(np.arange(across + 1) * bundles, weights.starts.size - 1)
    each = np.diff(weights.starts[edges]).astype(np.float64) * weights.outputs + WIDTH * _FINISHING
    whole = np.concatenate([np.tile(each, blocks - 1), each * rest / work.wide])
    pieces = min(whole.size, _PIECES)
    done = np.concatenate([[0.0], np.cumsum(whole)])
    bounds = np.searchsorted(done, done[-1] * np.arange(pieces + 1) / pieces - 1e-9 * done[-1])
    bounds[-1] = whole.size
    limits = scope.constant("bounds", bounds.astype(np.int32))
    size = work.wide * WIDTH
    if isinstance(work.product, TileProduct):  # and for one part of them, and codes that are met now and next
        size += 2 * amx.ROWS * work.wide
    with T.parallel(0, pieces) as piece:  # loops start from 0: TVM loses where one starts that is read from memory
        room = T.alloc_buffer((size,), "int32", scope="global")
        tiles = amx.configured(scope, piece, pieces) if isinstance(work.product, TileProduct) else nullcontext()
        with tiles, T.serial(0, limits[piece + 1] - limits[piece]) as step:
            yield limits[piece] + step, room, T.int64(0)


_FINISHING = 8  # groups of four inputs whose products take as long as all that follows a sum


def _either(both: bool, condition: Expr, first: Callable[[], None], second: Callable[[], None]) -> None:
    """One or the other at run time, if both can be."""
    if not both:
        first()
        return
    with T.If(condition):
        with T.Then():
            first()
        with T.Else():
            second()
