"""Weights with zeros, stored without them: which form of a product is worth it, and how it is laid out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planish.backends.tvm import amx
from planish.backends.tvm.isa import Isa, Product, TileProduct
from planish.ir.dtypes import DType
from planish.ir.sparsity import blocks

GROUP = 4  # inputs of one product
CHUNK = 4  # groups of inputs that a tile has more or less of
ROW_GROUPS = 2  # that go to different sums of a single row, so that one doesn't wait for the other


@dataclass(frozen=True)
class Compact:
    """int8 [K, N] as lists of steps for blocks of `outputs` neighbouring columns, each of `unit` groups of four inputs.

    starts: int32, the first step of each block, and the end. places: uint64 per group, four inputs in 16 bits
    each, the first one lowest: a scalar that is cut up stays out of vector registers. values: int32, a
    word of four weights per output of a group, [groups][outputs]; in tiles, a step at a time, [outputs][groups].
    sizes: int32, in tiles: how many chunks of groups each step has before zeros fill it up; 0 at the end.
    """

    outputs: int
    unit: int
    starts: np.ndarray
    places: np.ndarray
    values: np.ndarray
    sizes: np.ndarray


def live(weights: np.ndarray, outputs: int) -> np.ndarray:
    """bool [K, blocks]: whether any of so many neighbouring outputs uses an input. weights: [K, N]."""
    found: np.ndarray = np.any(blocks(weights, outputs, 1) != 0, axis=-1)
    return found


def compact(weights: np.ndarray, outputs: int, unit: int = 1, *, tiles: bool = False) -> Compact:
    """The lists of int8 [K, N]; each block has whole steps of groups, filled with zeros at its last input."""
    depth, columns = weights.shape
    used = live(weights, outputs)
    padded = np.zeros((depth, used.shape[1] * outputs), np.int8)
    padded[:, :columns] = weights
    whole, chunk = GROUP * unit, GROUP * CHUNK
    places, values, starts, sizes = [], [], [0], [np.zeros(0, np.int64)]
    for block in range(used.shape[1]):
        inputs = np.flatnonzero(used[:, block])
        size = -(-inputs.size // whole) * whole
        part = np.zeros((size, outputs), np.int8)
        part[: inputs.size] = padded[inputs, block * outputs : (block + 1) * outputs]
        places.append(np.concatenate([inputs, np.repeat(inputs[-1:], size - inputs.size)]))
        values.append(part.reshape(-1, unit if tiles else 1, GROUP, outputs).transpose(0, 3, 1, 2).reshape(-1))
        starts.append(starts[-1] + size // whole)
        sizes.append(-(-np.minimum(inputs.size - np.arange(0, size, whole), whole) // chunk))
    every = np.concatenate(values) if starts[-1] else np.zeros(GROUP, np.int8)
    order = np.concatenate(places) if starts[-1] else np.zeros(GROUP, np.int64)
    return Compact(
        outputs,
        unit,
        np.asarray(starts, np.int32),
        order.astype("<u2").view("<u8"),
        every.view(np.int32),
        np.concatenate([*(sizes if tiles else []), [0]]).astype(np.int32),
    )


@dataclass(frozen=True)
class Form:
    """A way to multiply by weights without their zeros: `outputs` neighbouring columns share inputs.

    unit: groups that are met together.
    """

    product: Product | TileProduct
    outputs: int
    unit: int = 1

    def compact(self, weights: np.ndarray) -> Compact:
        return compact(weights, self.outputs, self.unit, tiles=isinstance(self.product, TileProduct))


def forms(isa: Isa, dtype: DType, rows: int) -> list[Form]:
    """Those that an instruction set has for so many rows of codes of a dtype; the fewest outputs first."""
    product = isa.bytes_product
    if not isa.multiplies or dtype.bits > 8 or product is None:
        return []
    if rows == 1:
        return [Form(product, outputs, ROW_GROUPS) for outputs in (4, 8, 16) if outputs <= isa.lanes]
    found = [Form(product, outputs) for outputs in (4, 8, 16) if outputs == 4 or isa.registers > 16]
    return [*found, Form(TileProduct(str(dtype.storage)), amx.ROWS, amx.DEPTH // GROUP)] if isa.tiles else found


def form_of(weights: np.ndarray, rows: int, isa: Isa, dtype: DType) -> Form | None:
    """The form that is worth it for so many rows of codes by int8 [K, N]; None for the dense one."""
    if weights.shape[0] > _MOST_INPUTS or np.count_nonzero(weights) > _DENSEST * weights.size or not weights.size:
        return None
    costs = {form: cost(form, weights, rows, isa) for form in forms(isa, dtype, rows)}
    best = min(costs, key=lambda form: costs[form], default=None)
    return best if best is not None and costs[best] < _WORTH * dense_cost(weights.shape, rows, isa, dtype) else None


_MOST_INPUTS = 1 << 16
_DENSEST = 0.9  # share of weights that aren't 0 with which nothing is gained
_WORTH = 0.95  # of the time of dense products


def dense_cost(shape: tuple[int, ...], rows: int, isa: Isa, dtype: DType) -> float:
    """Time of dense products, in that of one multiply-accumulate in vectors."""
    depth, columns = shape
    each = _DENSE_TILE if isinstance(isa.product_of(dtype, rows), TileProduct) else 1.0
    return max(_READ * depth * columns, rows * columns * (each * depth + _DENSE_SUM))


def cost(form: Form, weights: np.ndarray, rows: int, isa: Isa) -> float:
    """Time of a sparse form in the same unit.

    Products of what is left, by tokens in whole vectors; then what is done once per input and per sum of a token:
    transposing codes, and making codes of sums. Fitted to measurements of 768 x 768, 768 x 3072 and 3072 x 768 with
    1, 128 and 384 tokens at densities of 0.1 to 0.5 on Sapphire Rapids. There, four inputs take 8 shuffles on one port
    and 4 products per output on two: 1.5 times what four outputs take without shuffles, and 1.1 times for sixteen. A
    tile takes 32 shuffles, and 16 cycles of another unit.
    """
    depth, columns = weights.shape
    tiles = isinstance(form.product, TileProduct)
    used, unit = np.count_nonzero(live(weights, form.outputs), axis=0), CHUNK if tiles else form.unit
    groups = float(np.sum(-(-used // (GROUP * unit)))) * unit
    if rows == 1:
        return groups * max(_ROW_GROUP, _READ * (8 + GROUP * form.outputs))
    each, per_sum = _TILE_COSTS if tiles else _COSTS[form.outputs]
    blocks, rest = divmod(rows, GROUP * isa.lanes)
    tokens = blocks * GROUP * isa.lanes + (max(_FEWEST_TOKENS, -(-rest // isa.lanes) * isa.lanes) if rest else 0)
    return tokens * (each * groups * GROUP * form.outputs + _PER_INPUT * depth) + rows * per_sum * columns


_DENSE_TILE, _DENSE_SUM = 0.28, 20.0
_READ, _ROW_GROUP = 10.0, 500.0  # of a byte of weights from memory; of a group by a single row
_FEWEST_TOKENS = 36  # that a group takes the time of: it waits for its inputs
_COSTS, _TILE_COSTS = {4: (1.5, 35.0), 8: (1.27, 35.0), 16: (1.15, 38.0)}, (0.34, 80.0)
"""Of a multiply-accumulate and of a sum of a token, by outputs that share inputs."""
_PER_INPUT = 18.0
