"""Products by constant integers without a multiplication: bits of weights choose what is added, and sums are doubled.

Weights are planes of bits of their two's complement. Per plane, from the highest on, sums double and each lane adds the
elements of the row at which its weights have that bit; the sign's plane counts negatively. In vectors this takes as
many additions as weights have bits, which is less than canonical signed digits do: those need two planes, one per sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.isa import Isa, ShiftProduct
from planish.backends.tvm.scope import Expr

if TYPE_CHECKING:
    from planish.backends.tvm.tiles import Finish, Panels, Rows, Start

_UNROLLED = 8  # elements of a row


def pack(weights: np.ndarray, width: int, product: ShiftProduct) -> np.ndarray:
    """int8 [K, N] as flat int32 [N / width][planes, the sign's first][K / 32][width]: bit i is of element i of K."""
    depth, columns = weights.shape
    steps, across = -(-depth // product.depth), -(-columns // width)
    padded = np.zeros((steps * product.depth, across * width), np.int64)
    padded[:depth, :columns] = weights
    planes = np.stack([(padded >> plane) & 1 for plane in reversed(range(product.planes))])
    bits = planes.reshape(product.planes, steps, product.depth, across, width)
    words = np.sum(bits << np.arange(product.depth).reshape(-1, 1, 1), axis=2).astype(np.uint32).view(np.int32)
    return np.ascontiguousarray(words.transpose(2, 0, 1, 3)).reshape(-1)


def multiply(
    rows: Rows,
    first_row: Expr,
    height: int,
    vectors: int,
    steps: int,
    panels: Panels,
    start: Start | None,
    isa: Isa,
    product: ShiftProduct,
    finish: Finish,
) -> None:
    """As `tiles.multiply`, for rows of int32; what sums should start from is added as they are read."""
    lanes = isa.lanes
    sums = [T.alloc_buffer((vectors * lanes,), "int32", scope="global") for _ in range(height)]  # stay in registers
    places = [T.Ramp(v * lanes, 1, lanes) for v in range(vectors)]
    zero, one = T.Broadcast(T.int32(0), lanes), T.Broadcast(T.int32(1), lanes)
    every = [(acc, place) for acc in sums for place in places]
    for acc, place in every:
        T.buffer_store(acc, zero, [place])
    with T.serial(0, product.planes) as plane:
        for acc, place in every:
            T.buffer_store(acc, acc[place] << one, [place])
        with T.serial(0, steps) as k:
            above = (plane * steps + k) * panels.stride
            words = [panels.array[T.Ramp(panels.at(v) + above, 1, lanes)] for v in range(vectors)]
            with T.serial(0, product.depth // _UNROLLED) as part:
                for i in range(_UNROLLED):
                    element = part * _UNROLLED + i
                    bit = T.Broadcast(T.int32(1) << T.cast(element, "int32"), lanes)
                    chosen = [tirx.NE(word & bit, zero) for word in words]
                    for row, acc in enumerate(sums):
                        x = rows.array[(first_row + row) * rows.stride + k * product.depth + element]
                        for place, here in zip(places, chosen, strict=True):
                            more = acc[place] + T.Broadcast(x, lanes)
                            T.buffer_store(acc, T.Select(here, more, acc[place]), [place])
        with T.If(plane == 0), T.Then():
            for acc, place in every:
                T.buffer_store(acc, zero - acc[place], [place])
    for row, acc in enumerate(sums):

        def sum_of(column: Expr, acc: Expr = acc) -> Expr:
            return acc[column] if start is None else acc[column] + start.array[start.place + column]

        finish(row, sum_of)


def times_one(code: Expr, signs: Sequence[int], places: Expr) -> Expr:
    """code * multiplier for an int64 code: a shift and an addition for each signed digit of the multiplier.

    signs: 1 or -1 of each. places: their exponents in an array of int64, since LLVM makes a multiplication of known
    ones again.
    """
    total: Expr = T.int64(0)
    for i, sign in enumerate(signs):
        term = code << places[i]
        total = total + term if sign > 0 else total - term
    return total


def times_own(code: Expr, multiplier: Expr, every: np.ndarray) -> Expr:
    """code * multiplier for int64, where each bit of a multiplier that isn't negative says whether the code is added.

    every: all multipliers that occur; bits that none has take no time.
    """
    used = int(np.bitwise_or.reduce(every))
    places = [place for place in reversed(range(used.bit_length())) if used >> place & 1]
    total: Expr = T.int64(0)
    for place, following in zip(places, [*places[1:], 0], strict=True):
        chosen = T.Select(tirx.NE(multiplier & T.int64(1 << place), T.int64(0)), code, T.int64(0))
        total = (total + chosen) << T.int64(place - following)
    return total
