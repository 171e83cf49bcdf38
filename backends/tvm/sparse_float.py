"""Weights in float32 without the inputs that no output of a block uses, and whether multiplying by these is worth it.

A block is a vector of neighbouring outputs (structure OB16 of `planish.ir.sparsity` where a vector has sixteen lanes).
Activations stay as they lie: a tile takes elements of its rows by the list of inputs that the block uses. An infinite
activation that meets nothing but zeros makes no NaN, as it would in dense products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.float_tiles import cycles, step, tiling
from planish.backends.tvm.isa import Isa
from planish.backends.tvm.scope import Expr, Scope
from planish.backends.tvm.tiles import Tiling, evened

ROW_SUMS = 4  # of a single row under way, so that one needn't wait for the other

_NEAR = 40 << 10  # bytes of the rows of a tile, which stay in the nearest cache
_LEAST = 14  # rows of a tile, so that sums don't wait for their last product
_WORTH = 0.95  # of the time of dense products
_PER_SUM = 0.5  # cycles that a vector of sums costs more, beginning and ending shorter loops


@dataclass(frozen=True)
class Kept:
    """float32 [K, N] as blocks of `width` columns: from starts[block] on, the inputs `places` with their `values`.

    starts, places: int32. values: float32 [kept, width], 0 where N ends. plan: tiles of the rows.
    """

    starts: np.ndarray
    places: np.ndarray
    values: np.ndarray
    plan: Tiling

    def declared(self, scope: Scope) -> KeptPanels:
        """As parameters of a kernel."""
        starts, places = scope.constant("starts", self.starts), scope.constant("places", self.places)
        return KeptPanels(starts, places, scope.constant("values", self.values), self.values.shape[1], self.plan)


@dataclass(frozen=True)
class KeptPanels:
    """`Kept` in a kernel."""

    starts: Expr
    places: Expr
    values: Expr
    width: int
    plan: Tiling

    def vector(self, place: Expr) -> Expr:
        """Weights of an input that is kept."""
        return self.values[place, T.Ramp(0, 1, self.width)]


def kept(weights: np.ndarray, rows: int, isa: Isa) -> Kept | None:
    """float32 [K, N] without inputs that blocks don't use; None where dense products take no longer."""
    (depth, columns), width = weights.shape, isa.lanes
    if np.count_nonzero(weights) == weights.size or not weights.size or width < 4:
        return None
    blocks = -(-columns // width)
    padded = np.zeros((depth, blocks * width), np.float32)
    padded[:, :columns] = weights
    cut = padded.reshape(depth, blocks, width).transpose(1, 0, 2)
    block, place = np.nonzero(np.any(cut != 0, axis=2))
    plan = evened(rows, min(max(_NEAR // (4 * depth), _LEAST), isa.registers - 2), 1)
    starts = np.searchsorted(block, np.arange(blocks + 1)).astype(np.int32)
    if cost(len(block), blocks, plan) > _WORTH * depth * cycles(tiling(rows, columns, isa), blocks):
        return None
    found = cut[block, place] if len(block) else np.zeros((1, width), np.float32)
    return Kept(starts, (place if len(place) else np.zeros(1)).astype(np.int32), found, plan)


def cost(used: int, blocks: int, plan: Tiling) -> float:
    """Cycles of products by `used` vectors of weights in so many blocks."""
    if plan.spans == ((1, 1),):
        return step(ROW_SUMS, 1) / ROW_SUMS * used + _PER_SUM * blocks
    return sum(count * (step(height, 1) * used + height * _PER_SUM * blocks) for count, height in plan.spans)


def one_row(right: KeptPanels, first: Expr, count: Expr, element: Callable[[Expr], Expr]) -> list[Expr]:
    """Sums of a single row: several inputs at a time, whose sums are added in the end."""
    lanes, every = right.width, T.Ramp(0, 1, right.width)
    sums = [T.alloc_buffer((lanes,), "float32", scope="global") for _ in range(ROW_SUMS)]
    for acc in sums:
        T.buffer_store(acc, T.Broadcast(T.float32(0), lanes), [every])

    def add(acc: Expr, place: Expr) -> None:
        row = T.Broadcast(element(right.places[place]), lanes)
        T.buffer_store(acc, T.fma(row, right.vector(place), acc[every]), [every])

    whole = T.floordiv(count, ROW_SUMS)
    with T.serial(0, whole) as group:
        for i, acc in enumerate(sums):
            add(acc, first + group * ROW_SUMS + i)
    with T.serial(0, count - whole * ROW_SUMS) as rest:
        add(sums[0], first + whole * ROW_SUMS + rest)
    for acc in sums[1:]:
        T.buffer_store(sums[0], sums[0][every] + acc[every], [every])
    return sums[:1]
