"""Register tiles: how a product of rows by packed int8 weights is cut, packed and summed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.isa import Isa, Product
from planish.backends.tvm.scope import Expr


@dataclass(frozen=True)
class Tiling:
    """Blocks of a product's result: `blocks` of rows, `taller` of which have `height` rows and the others one less.

    vectors: columns of a block, in vectors.
    """

    rows: int
    height: int
    blocks: int
    vectors: int

    @property
    def taller(self) -> int:
        return self.rows - self.blocks * (self.height - 1)


def tiling(rows: int, columns: int, isa: Isa, product: Product) -> Tiling:
    """The tile that keeps most sums in registers, in blocks of almost equal height.

    A step of K takes a register per vector of weights and one for the row (one more where the product isn't one
    instruction). Four vectors across do best, three where they fit the columns exactly; few rows take more, so that
    enough sums are under way to hide the latency of one.
    """
    free = isa.registers - (1 if product.whole else 2)
    most = -(-columns // isa.lanes)
    if rows <= 3 and free > 16:
        vectors = min(8, most)
    else:
        wide = 4 if free > 16 else 2
        vectors = next((v for v in (wide, 3) if most % v == 0 and free // v > 3), min(wide, most))
    highest = max(1, (free - vectors) // vectors)
    blocks = -(-rows // highest)
    return Tiling(rows, -(-rows // blocks), blocks, vectors)


def pack(weights: np.ndarray, vectors: int, isa: Isa, product: Product) -> np.ndarray:
    """int8 [K, N] as [N / W][K / g][W * g], W = vectors * lanes, g the product's group; zeros where N and K end."""
    width, group = vectors * isa.lanes, product.group
    depth, columns = weights.shape
    padded = np.zeros((-(-depth // group) * group, -(-columns // width) * width), np.int8)
    padded[:depth, :columns] = weights
    split = padded.reshape(-1, group, padded.shape[1] // width, width)
    return np.ascontiguousarray(split.transpose(2, 0, 3, 1)).reshape(split.shape[2], split.shape[0], -1)


@dataclass(frozen=True)
class Rows:
    """Rows of codes in the dtype that a product takes: element (m, k) at m * stride + k of a flat array."""

    array: Expr
    stride: int


def tile(
    rows: Rows,
    first_row: Expr,
    height: int,
    vectors: int,
    steps: int,
    panel: Callable[[Expr, int], Expr],
    start: Callable[[int], Expr],
    isa: Isa,
    product: Product,
) -> list[Expr]:
    """Sums of `height` rows by `vectors` vectors of columns, as a local array per row (they stay in registers).

    panel: the packed weights of a step of K and a vector. start: first sums of a vector.
    """
    lanes = isa.lanes
    sums = [T.alloc_buffer((vectors * lanes,), "int32", scope="global") for _ in range(height)]
    places = [T.Ramp(v * lanes, 1, lanes) for v in range(vectors)]
    for acc in sums:
        for v, place in enumerate(places):
            T.buffer_store(acc, start(v), [place])
    with T.serial(0, steps) as k:
        for row, acc in enumerate(sums):
            word = product.word(rows.array, (first_row + row) * rows.stride + k * product.group)
            for v, place in enumerate(places):
                T.buffer_store(acc, product(acc[place], word, panel(k, v), lanes), [place])
    return sums
