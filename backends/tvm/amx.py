"""Products in AMX's tile registers.

A tile of weights is 16 groups of K (four bytes each) by 16 columns, as `Panels` hold them, and one instruction
multiplies it by a tile of 16 rows. Four tiles of sums take two of rows and two of weights per step, so that loads keep
up with products.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.isa import TileProduct
from planish.backends.tvm.scope import Expr, Scope

if TYPE_CHECKING:
    from planish.backends.tvm.tiles import Finish, Panels, Rows, Start

ROWS, BLOCK, WIDEST = 16, 32, 64  # of a tile; rows and columns of a block
_LANES, DEPTH = 16, 64  # columns of a tile; bytes of K
_LEFT, _RIGHT = 4, 6  # first registers of rows and of weights; sums are in 0 to 3


@dataclass(frozen=True)
class Room:
    """Memory for the sums of a block: int32 elements of a flat array from `place` on."""

    array: Expr
    place: Expr


@contextmanager
def configured(scope: Scope, piece: Expr, pieces: int) -> Iterator[Room]:
    """Set the shape of all tiles, 16 rows of 64 bytes, for the statements within, on the thread that runs them.

    Yields room for the sums of a block, one for each piece of the work.
    """
    size = BLOCK * WIDEST
    room = Room(scope.scratch((pieces * size,), "int32"), piece * size)
    do("ldtilecfg", T.address_of(scope.constant("tile shapes", tile_shapes())[0]))
    yield room
    do("tilerelease")


def tile_shapes() -> np.ndarray:
    """What the instruction takes that sets the shape of tiles."""
    shapes = np.zeros(64, np.uint8)
    shapes[0] = 1
    shapes[16:32:2] = DEPTH
    shapes[48:56] = ROWS
    return shapes


def multiply(
    rows: Rows,
    first_row: Expr,
    height: int,
    vectors: int,
    steps: int,
    panels: Panels,
    start: Start | None,
    product: TileProduct,
    room: Room,
    finish: Finish,
) -> None:
    """As `tiles.multiply`, by way of memory. Tiles reach beyond the rows; what they read there enters no sum in use.

    Sums start from zero and what they should start from is added as they are read, which takes less time.
    """
    width = vectors * _LANES
    tops = range(0, height, ROWS)
    for left in range(0, vectors, 2):
        across = range(left, min(left + 2, vectors))
        for register in range(2 * len(tops)):
            do("tilezero", T.int8(register))
        with T.serial(0, steps) as k:
            for i, top in enumerate(tops):
                place = (first_row + top) * rows.stride + k * DEPTH
                do("tileloadd64", T.int8(_LEFT + i), T.address_of(rows.array[place]), T.int64(rows.stride))
            for j, v in enumerate(across):
                place = panels.at(v) + k * (DEPTH // product.group * panels.stride)
                do("tileloadd64", T.int8(_RIGHT + j), T.address_of(panels.array[place]), T.int64(panels.stride))
            for i in range(len(tops)):
                for j in range(len(across)):
                    do(product.instruction, T.int8(2 * i + j), T.int8(_LEFT + i), T.int8(_RIGHT + j))
        for i, top in enumerate(tops):
            for j, v in enumerate(across):
                place = T.address_of(room.array[room.place + top * width + v * _LANES])
                do("tilestored64", T.int8(2 * i + j), place, T.int64(4 * width))
    with T.serial(0, height) as row:

        def sum_of(column: Expr) -> Expr:
            found = room.array[room.place + row * width + column]
            return found if start is None else found + start.array[start.place + column]

        finish(row, sum_of)


def do(instruction: str, *operands: Expr) -> None:
    """An instruction on tile registers."""
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{instruction}", *operands))
