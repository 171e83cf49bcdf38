"""Register tiles: how a product of rows by packed int8 weights is cut, packed and summed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm import amx, shift_products
from planish.backends.tvm.codes import Codes, Decoder
from planish.backends.tvm.isa import Isa, Product, ShiftProduct, TileProduct
from planish.backends.tvm.scope import Expr, Scope


@dataclass(frozen=True)
class Tiling:
    """Blocks of a product's result: so many of a height, then so many of another, `vectors` of columns wide.

    rows_first: go along the columns of a block of rows, which then stays in the nearest cache; else down the rows.
    """

    spans: tuple[tuple[int, int], ...]
    vectors: int
    rows_first: bool = False

    @property
    def blocks(self) -> int:
        return sum(count for count, _ in self.spans)

    @property
    def height(self) -> int:
        """Of the highest block."""
        return max(height for _, height in self.spans)


def tiling(rows: int, columns: int, isa: Isa, product: Product | TileProduct) -> Tiling:
    """The tile that keeps most sums in registers.

    In vector registers, a step of K takes a register per vector of weights and one for the row (one more where the
    product isn't one instruction). Four vectors across do best, three where they fit the columns exactly; few rows take
    more, so that enough sums are under way to hide the latency of one.
    """
    most = -(-columns // isa.lanes)
    if isinstance(product, TileProduct):
        return _blocked(rows, amx.BLOCK, min(4, most))
    free = _free(isa, product)
    if rows <= 3 and free > 16:
        vectors = min(8, most)
    else:
        wide = 4 if free > 16 else 2
        vectors = next((v for v in (wide, 3) if most % v == 0 and free // v > 3), min(wide, most))
    return evened(rows, max(1, (free - vectors) // vectors), vectors)


def tilings(rows: int, columns: int, isa: Isa, product: Product | TileProduct) -> list[Tiling]:
    """Tilings worth measuring, that of `tiling` first."""
    most = -(-columns // isa.lanes)
    found = [tiling(rows, columns, isa, product)]
    for vectors in (v for v in (1, 2, 3, 4, 6, 8) if v <= most):
        if isinstance(product, TileProduct):
            found += [_blocked(rows, amx.BLOCK, vectors)] if vectors in (2, 4) else []
            continue
        highest = (_free(isa, product) - vectors) // vectors
        found += [evened(rows, height, vectors) for height in {highest, max(1, highest // 2)} if height > 0]
    ordered = [replace(plan, rows_first=rows_first) for plan in found for rows_first in (False, True)]
    return list(dict.fromkeys(plan for plan in ordered if plan.blocks > 1 or not plan.rows_first))


def _free(isa: Isa, product: Product) -> int:
    """Registers for sums and weights."""
    return isa.registers - (1 if product.whole else 2)


def _blocked(rows: int, height: int, vectors: int) -> Tiling:
    """Blocks of one height, and what is left."""
    whole, rest = divmod(rows, height)
    return Tiling(tuple(span for span in ((whole, height), (int(rest > 0), rest)) if span[0]), vectors)


def evened(rows: int, highest: int, vectors: int) -> Tiling:
    """Blocks of almost equal heights, up to `highest`."""
    blocks = -(-rows // highest)
    height = -(-rows // blocks)
    taller = rows - blocks * (height - 1)
    spans = ((taller, height), (blocks - taller, height - 1))
    return Tiling(tuple(span for span in spans if span[0]), vectors)


def in_block(
    plan: Tiling, part: Expr, column: Expr, columns: int, width: int, body: Callable[[Expr, int, int], None]
) -> None:
    """Run `body` for one block of a product, with its first row, its height and the columns that it has.

    part, column: numbers of the block along the rows and along the columns; width: of a block, in columns.
    """
    wide = -(-columns // width)
    last = columns - (wide - 1) * width

    def columns_of(row: Expr, height: int) -> None:
        either(last < width and wide > 1, column < wide - 1,
                lambda: body(row, height, width if wide > 1 else last),
                lambda: body(row, height, last))  # fmt: skip

    (count, height), (_, rest) = plan.spans[0], plan.spans[-1]
    either(
        len(plan.spans) > 1, part < count,
        lambda: columns_of(part * height, height),
        lambda: columns_of((part - count) * rest + count * height, rest),
    )  # fmt: skip


def either(both: bool, condition: Expr, first: Callable[[], None], second: Callable[[], None]) -> None:
    """One or the other at run time, if both can be."""
    if not both:
        first()
        return
    with T.If(condition):
        with T.Then():
            first()
        with T.Else():
            second()


def pack(
    weights: np.ndarray, vectors: int, isa: Isa, product: Product | TileProduct, codes: Codes | None = None
) -> np.ndarray:
    """int8 [K, N] as flat [N / W][K / g][W * g], W = vectors * lanes, g the product's group; zeros where N, K end.

    K is rounded up to what the product and units of codes take.
    """
    width, group = vectors * isa.lanes, product.group
    if isinstance(product, ShiftProduct):
        return shift_products.pack(weights, width, product)
    columns = weights.shape[1]
    depth = steps_of(weights.shape[0], product, codes) * product.depth
    padded = np.zeros((depth, -(-columns // width) * width), np.int8)
    padded[: weights.shape[0], :columns] = weights
    split = padded.reshape(-1, group, padded.shape[1] // width, width)
    return np.ascontiguousarray(split.transpose(2, 0, 3, 1)).reshape(-1)


def steps_of(depth: int, product: Product | TileProduct, codes: Codes | None = None) -> int:
    """Steps along K, each of the product's depth, with as many as whole units of codes take."""
    whole = product.depth if codes is None else max(product.depth, codes.unit * product.group)
    return -(-depth // whole) * whole // product.depth


@dataclass(frozen=True)
class Rows:
    """Rows of codes in the dtype that a product takes: element (m, k) at m * stride + k of a flat array.

    shift: what is still to be added to make such codes of them, where they are moved anyway.
    """

    array: Expr
    stride: int
    shift: int = 0


@dataclass(frozen=True)
class Panels:
    """Packed weights in a flat array: `at(v)` is where vector v of columns starts, a group of K is `stride` further.

    decoder: of codes, for which `stride` leads to the next part of a unit. fetched: bytes ahead that are asked for.
    """

    array: Expr
    at: Callable[[int], Expr]
    stride: int
    decoder: Decoder | None = None
    fetched: int = 0

    @property
    def unit(self) -> int:
        """Groups of K that are read together."""
        return 1 if self.decoder is None else self.decoder.codes.unit

    def vectors(self, v: int, unit: Expr, size: int) -> list[Expr]:
        """int8 vectors of `size` elements, one for each group of a unit of K."""
        if self.decoder is None:
            return [self.array[T.Ramp(self.at(v) + unit * self.stride, 1, size)]]
        first = self.at(v) + unit * (self.decoder.codes.parts * self.stride)
        return self.decoder.vectors(lambda part: self.array[T.Ramp(first + part * self.stride, 1, size)])

    def fetch(self, unit: Expr) -> None:
        """Ask for what will be read some units later."""
        if self.fetched:
            size = self.stride * (1 if self.decoder is None else self.decoder.codes.parts)
            for line in range(0, size, LINE):
                prefetch(self.array[self.at(0) + unit * size + line + self.fetched])


LINE = 64  # bytes of a cache line
_FOR_READING = (T.int32(0), T.int32(2), T.int32(1))  # into the second-level cache, as data


def prefetch(element: Expr) -> None:
    """Ask for the cache line of an element, which need not exist."""
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", T.address_of(element), *_FOR_READING))


@dataclass(frozen=True)
class Start:
    """What sums of columns start from: elements of a flat array from `place` on."""

    array: Expr
    place: Expr


Finish = Callable[[Expr, Callable[[Expr], Expr]], None]
"""Takes the number of a row of a tile, and its sums as a function of the column."""


def multiply(
    rows: Rows,
    first_row: Expr,
    height: int,
    vectors: int,
    steps: int,
    panels: Panels,
    start: Start | None,
    isa: Isa,
    product: Product | TileProduct,
    room: amx.Room | None,
    finish: Finish,
) -> None:
    """Sums of `height` rows by `vectors` vectors of columns, handed to `finish` row by row.

    steps: of K, each of the product's depth. start: None for zeros. room: what `shared_out` gives.
    """
    if isinstance(product, TileProduct):
        assert room is not None
        amx.multiply(rows, first_row, height, vectors, steps, panels, start, product, room, finish)
        return
    if isinstance(product, ShiftProduct):
        shift_products.multiply(rows, first_row, height, vectors, steps, panels, start, isa, product, finish)
        return
    lanes, group = isa.lanes, product.group
    sums = [T.alloc_buffer((vectors * lanes,), "int32", scope="global") for _ in range(height)]  # stay in registers
    places = [T.Ramp(v * lanes, 1, lanes) for v in range(vectors)]
    zero = T.Broadcast(T.int32(0), lanes)
    for acc in sums:
        for v, place in enumerate(places):
            first = zero if start is None else start.array[T.Ramp(start.place + v * lanes, 1, lanes)]
            T.buffer_store(acc, first, [place])
    with T.serial(0, steps // panels.unit) as unit:
        panels.fetch(unit)
        across = [panels.vectors(v, unit, lanes * group) for v in range(vectors)]
        for step in range(panels.unit):
            for row, acc in enumerate(sums):
                k = (unit * panels.unit + step) * group
                word = product.word(rows.array, (first_row + row) * rows.stride + k)
                for place, panel in zip(places, across, strict=True):
                    T.buffer_store(acc, product(acc[place], word, panel[step], lanes), [place])
    for row, acc in enumerate(sums):
        finish(row, lambda column, acc=acc: acc[column])  # type: ignore[misc]


_PIECES = 24  # of a kernel's work, for all threads: divisible by most counts of them


@contextmanager
def shared_out(tasks: int, scope: Scope, product: Product | TileProduct) -> Iterator[tuple[Expr, amx.Room | None]]:
    """A loop over tasks on all threads, in at most so many pieces that each is worth setting up tiles for.

    Yields the task and the room that products need.
    """
    pieces = min(tasks, _PIECES)
    with T.parallel(0, pieces) as piece:
        first, last = (T.floordiv(p * tasks, pieces) for p in (piece, piece + 1))
        tiles = amx.configured(scope, piece, pieces) if isinstance(product, TileProduct) else nullcontext()
        with tiles as room, T.serial(first, last) as task:
            yield task, room
