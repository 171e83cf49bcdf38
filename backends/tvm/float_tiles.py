"""Register tiles of float32 products: how they are cut, what they read, and how they are summed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.isa import Isa
from planish.backends.tvm.scope import Expr
from planish.backends.tvm.tiles import Tiling, evened

_MOST_VECTORS = 8
_LATENCY = 4  # cycles of a multiply-add
_NEAR_LOADS = 8  # loads from the nearest cache for each cycle that is lost to one from the next; measured


def tiling(rows: int, columns: int, isa: Isa) -> Tiling:
    """The tile that takes the fewest cycles: two multiply-adds and two loads in each, if no sum waits for its last one.

    A step of K takes a register per vector of weights and one for an element of a row.
    """
    most = -(-columns // isa.lanes)
    plans = []
    for vectors in range(1, min(_MOST_VECTORS, most) + 1):
        highest = (isa.registers - 1 - vectors) // vectors
        if highest > 0:
            plans.append(evened(rows, highest, vectors))
    return min(plans, key=lambda plan: cycles(plan, most))


def step(height: int, vectors: int) -> float:
    """Cycles of a step of K in a tile."""
    loads = height + vectors
    return max(height * vectors / 2, loads / 2, _LATENCY) + loads / _NEAR_LOADS


def cycles(plan: Tiling, vectors: int) -> float:
    """Cycles of a step of K over all rows and so many vectors of columns."""

    def across(each: int) -> float:
        return sum(count * step(height, each) for count, height in plan.spans)

    whole, rest = divmod(vectors, plan.vectors)
    return whole * across(plan.vectors) + (across(rest) if rest else 0.0)


@dataclass(frozen=True)
class Matrix:
    """Matrices in a flat array: element (i, j) of number `part` at part * size + i * stride + j."""

    array: Expr
    stride: int
    size: int

    def at(self, part: Expr, i: Expr, j: Expr) -> Expr:
        return self.array[part * self.size + i * self.stride + j]

    def vector(self, part: Expr, i: Expr, j: Expr, lanes: int) -> Expr:
        return self.array[T.Ramp(part * self.size + i * self.stride + j, 1, lanes)]


@dataclass(frozen=True)
class Panels:
    """Right operands cut into blocks of `width` columns, each of them whole in memory: [part, N / width, K, width]."""

    array: Expr
    width: int

    def vector(self, part: Expr, k: Expr, column: Expr, lanes: int) -> Expr:
        block = T.floordiv(column, self.width)
        return self.array[part, block, k, T.Ramp(T.floormod(column, self.width), 1, lanes)]


def pack(weights: np.ndarray, width: int) -> np.ndarray:
    """float32 [parts, K, N] as `Panels` hold it, with zeros where N ends."""
    parts, depth, columns = weights.shape
    padded = np.zeros((parts, depth, -(-columns // width) * width), np.float32)
    padded[:, :, :columns] = weights
    return np.ascontiguousarray(padded.reshape(parts, depth, -1, width).transpose(0, 2, 1, 3))


def tile(
    height: int,
    vectors: int,
    steps: tuple[Expr, int],
    element: Callable[[int, Expr], Expr],
    panel: Callable[[Expr, int], Expr],
    lanes: int,
    first: Callable[[int, int], Expr] | None = None,
) -> list[Expr]:
    """Sums over K of `height` rows by `vectors` vectors of columns, as a local array per row (they stay in registers).

    steps: first k, and how many. element: of a row at k. panel: of the columns at k. first: what sums begin with.
    """
    sums = [T.alloc_buffer((vectors * lanes,), "float32", scope="global") for _ in range(height)]
    places = [T.Ramp(v * lanes, 1, lanes) for v in range(vectors)]
    for i, acc in enumerate(sums):
        for v, place in enumerate(places):
            T.buffer_store(acc, first(i, v) if first else T.Broadcast(T.float32(0), lanes), [place])
    start, count = steps
    with T.serial(0, count) as step:
        k = start + step
        for i, acc in enumerate(sums):
            row = T.Broadcast(element(i, k), lanes)
            for v, place in enumerate(places):
                T.buffer_store(acc, T.fma(row, panel(k, v), acc[place]), [place])
    return sums
