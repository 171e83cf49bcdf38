"""Sparse products of sixteen outputs that share inputs: codes are interleaved once, in memory, for all of them."""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T

from planish.backends.tvm import amx
from planish.backends.tvm.isa import Product, TileProduct
from planish.backends.tvm.scope import Expr
from planish.backends.tvm.sparse_weights import CHUNK, GROUP
from planish.backends.tvm.sparse_work import WIDTH, Work, held

_GATHERED = 64  # groups of four inputs that vectors multiply by at a time: what the nearest cache holds
_TALL, _WIDE = 8, 2  # outputs and vectors of tokens whose sums stay in registers


def room_of(work: Work) -> int:
    """int32 elements that a form needs beside the sums of a block."""
    if isinstance(work.product, TileProduct):
        return 2 * amx.ROWS * work.wide  # codes that are met now and next
    return _GATHERED * work.wide


def in_tiles(
    work: Work, outputs: int, block: Expr, column: Expr, tokens: int, used: int, room: Expr, place: Expr, settled: bool
) -> None:
    """Sums of a block of tokens by `used` columns in tile registers: weights are tiles of rows, codes of columns.

    What the next tiles hold is gathered as those that were gathered before are multiplied.
    """
    product, lanes = work.product, work.isa.lanes
    assert isinstance(product, TileProduct)
    count = -(-tokens // lanes)
    tile, groups = amx.ROWS * lanes, amx.DEPTH // GROUP
    codes = held(place + work.wide * WIDTH)
    base = held(block * (work.depth * work.wide))
    bundles, parts = held(column * (WIDTH // outputs)), -(-used // outputs)
    first, end = held(work.starts[bundles]), held(work.starts[bundles + parts])

    def side(step: Expr) -> Expr:
        return codes + T.floormod(step, 2) * (count * tile)

    def gather(step: Expr, chunk: Expr, into: Expr) -> None:
        for i in range(CHUNK):
            group = chunk * CHUNK + i
            work.gather(base, step * groups + group, count, room, into + group * lanes, tile)

    with T.serial(0, T.if_then_else(first < end, work.sizes[first], 0)) as chunk:
        gather(first, chunk, side(first))
    with T.serial(0, parts) as part:
        begin = held(work.starts[bundles + part])
        for i in range(count):
            amx.do("tilezero", T.int8(i))
        with T.serial(0, work.starts[bundles + part + 1] - begin) as number:
            step = held(begin + number)
            here, there = held(side(step)), held(side(step + 1))
            ahead = held(T.if_then_else(step + 1 < end, work.sizes[step + 1], 0))
            amx.do("tileloadd64", T.int8(4), T.address_of(work.values[step * tile]), T.int64(amx.DEPTH))
            for i in range(groups // CHUNK):
                with T.If(i < ahead), T.Then():
                    gather(step + 1, i, there)
                if i < count:
                    right = T.int8(5 + i % 3)
                    amx.do("tileloadd64", right, T.address_of(room[here + i * tile]), T.int64(amx.DEPTH))
                    amx.do(_SWAPPED[product.dtype], T.int8(i), T.int8(4), right)
        for i in range(count):
            above = T.address_of(room[place + part * (outputs * work.wide) + i * lanes])
            amx.do("tilestored64", T.int8(i), above, T.int64(4 * work.wide))
    if settled:
        work.settle_in_place(used, column * WIDTH, count, room, place)


_SWAPPED = {"uint8": "tdpbsud", "int8": "tdpbssd"}
"""Instructions with weights on the left, by the dtype of codes."""


def in_vectors(
    work: Work, outputs: int, block: Expr, column: Expr, tokens: int, used: int, room: Expr, place: Expr, settled: bool
) -> None:
    """The same in vector registers, a few outputs and vectors of tokens at a time."""
    product, lanes = work.product, work.isa.lanes
    assert isinstance(product, Product)
    count, every = -(-tokens // lanes), T.Ramp(0, 1, lanes)
    codes = held(place + work.wide * WIDTH)
    base = held(block * (work.depth * work.wide))

    def tile(part: Expr, top: int, left: int, chunk: Expr, first: Expr, groups: Expr) -> None:
        across = range(left, min(left + _WIDE, count))
        sums = [[T.alloc_buffer((lanes,), "int32", scope="global") for _ in across] for _ in range(_TALL)]
        above = [place + (part * outputs + top + i) * work.wide for i in range(_TALL)]
        with T.If(chunk == 0):
            with T.Then():
                for i, row in enumerate(sums):
                    start = T.Broadcast(work.start[column * WIDTH + part * outputs + top + i], lanes)
                    for acc in row:
                        T.buffer_store(acc, start, [every])
            with T.Else():
                for row, where in zip(sums, above, strict=True):
                    for acc, vector in zip(row, across, strict=True):
                        T.buffer_store(acc, room[T.Ramp(where + vector * lanes, 1, lanes)], [every])
        with T.serial(0, groups) as group:
            where = codes + group * (count * lanes)
            if top == left == 0:  # shuffles go well with products
                gathered = work.gather(base, first + group, count, room, where, lanes)[:_WIDE]
            else:
                gathered = [room[T.Ramp(where + vector * lanes, 1, lanes)] for vector in across]
            bytes_ = [T.reinterpret(f"{product.dtype}x{work.wide}", vector) for vector in gathered]
            for i, row in enumerate(sums):
                word = T.Broadcast(work.values[(first + group) * outputs + top + i], lanes)
                panel = T.reinterpret(f"int8x{work.wide}", word)
                for acc, inputs in zip(row, bytes_, strict=True):
                    T.buffer_store(acc, product.of_vectors(acc[every], inputs, panel, lanes), [every])
        for row, where in zip(sums, above, strict=True):
            for acc, vector in zip(row, across, strict=True):
                T.buffer_store(room, acc[every], [T.Ramp(where + vector * lanes, 1, lanes)])

    with T.serial(0, -(-used // outputs)) as part:
        bundle = column * (WIDTH // outputs) + part
        begin, end = held(work.starts[bundle]), held(work.starts[bundle + 1])
        with T.serial(0, T.max(T.floordiv(end - begin + _GATHERED - 1, _GATHERED), 1)) as chunk:
            first = held(begin + chunk * _GATHERED)
            groups = held(T.min(end - first, _GATHERED))
            for top in range(0, outputs, _TALL):
                for left in range(0, count, _WIDE):
                    tile(part, top, left, chunk, first, groups)
    if settled:
        work.settle_in_place(used, None, count, room, place)
