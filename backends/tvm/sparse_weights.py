"""Weights with zeros, stored without them: which form of a product is worth it, and how it is laid out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planish.backends.tvm.isa import Isa, Product, TileProduct
from planish.ir.dtypes import DType
from planish.ir.sparsity import blocks

GROUP = 4  # inputs of one product
_TILE_OUTPUTS, _TILE_GROUPS = 16, 16


@dataclass(frozen=True)
class Compact:
    """int8 [K, N] as lists of groups of four inputs for blocks of `outputs` neighbouring columns.

    starts: int32, the first group of each block, and the end. places: uint64 per group, four inputs in 16 bits
    each, the first one lowest: a scalar that is cut up stays out of vector registers. values: int32, a
    word of four weights per output of a group; in tiles, 16 groups at a time, [outputs][groups].
    """

    outputs: int
    starts: np.ndarray
    places: np.ndarray
    values: np.ndarray


def live(weights: np.ndarray, outputs: int) -> np.ndarray:
    """bool [K, blocks]: whether any of so many neighbouring outputs uses an input. weights: [K, N]."""
    found: np.ndarray = np.any(blocks(weights, outputs, 1) != 0, axis=-1)
    return found


def compact(weights: np.ndarray, outputs: int, unit: int) -> Compact:
    """The lists of int8 [K, N]; each block has whole units of groups, filled with zeros at its last input."""
    depth, columns = weights.shape
    used = live(weights, outputs)
    padded = np.zeros((depth, used.shape[1] * outputs), np.int8)
    padded[:, :columns] = weights
    whole = GROUP * unit
    places, values, starts = [], [], [0]
    for block in range(used.shape[1]):
        inputs = np.flatnonzero(used[:, block])
        size = -(-inputs.size // whole) * whole
        part = np.zeros((size, outputs), np.int8)
        part[: inputs.size] = padded[inputs, block * outputs : (block + 1) * outputs]
        places.append(np.concatenate([inputs, np.repeat(inputs[-1:], size - inputs.size)]))
        values.append(part.reshape(-1, unit, GROUP, outputs).transpose(0, 3, 1, 2).reshape(-1))
        starts.append(starts[-1] + size // GROUP)
    every = np.concatenate(values) if starts[-1] else np.zeros(GROUP, np.int8)
    order = np.concatenate(places) if starts[-1] else np.zeros(GROUP, np.int64)
    return Compact(outputs, np.asarray(starts, np.int32), order.astype("<u2").view("<u8"), every.view(np.int32))


@dataclass(frozen=True)
class Form:
    """A way to multiply by weights without their zeros: `outputs` neighbouring columns share inputs."""

    product: Product | TileProduct
    outputs: int

    def compact(self, weights: np.ndarray) -> Compact:
        return compact(weights, self.outputs, _TILE_GROUPS if isinstance(self.product, TileProduct) else 1)


def forms(isa: Isa, dtype: DType) -> list[Form]:
    """Those that an instruction set has for codes of a dtype; the fewest outputs first."""
    if not isa.multiplies or dtype.bits > 8 or isa.bytes_product is None:
        return []
    found = [Form(isa.bytes_product, GROUP)]
    if isa.registers > 16:
        found.append(Form(isa.bytes_product, 2 * GROUP))
    return [*found, Form(TileProduct(str(dtype.storage)), _TILE_OUTPUTS)] if isa.tiles else found


def form_of(weights: np.ndarray, rows: int, isa: Isa, dtype: DType) -> Form | None:
    """The form that is worth it for so many rows of codes by int8 [K, N]; None for the dense one."""
    if weights.shape[0] > _MOST_INPUTS or not weights.size or np.count_nonzero(weights) > _DENSE * weights.size:
        return None
    costs = {form: cost(form, weights, rows, isa) for form in forms(isa, dtype)}
    best = min(costs, key=lambda form: costs[form], default=None)
    return best if best is not None and costs[best] < _WORTH * dense_cost(weights.shape, rows, isa, dtype) else None


_MOST_INPUTS = 1 << 16
_DENSE = 0.9  # of weights that aren't 0: more are never worth it
_WORTH = 0.95  # of the time of dense products


def dense_cost(shape: tuple[int, ...], rows: int, isa: Isa, dtype: DType) -> float:
    """Time of dense products, in that of one multiply-accumulate in vectors."""
    depth, columns = shape
    each = _DENSE_TILE if isinstance(isa.product_of(dtype, rows), TileProduct) else 1.0
    return rows * columns * (each * depth + _DENSE_SUM)


def cost(form: Form, weights: np.ndarray, rows: int, isa: Isa) -> float:
    """Time of a sparse form in the same unit.

    Products of what is left, by tokens in whole vectors; then what is done once per input and per sum of a token:
    transposing codes, and putting sums in order. Fitted to measurements of 768 x 768, 768 x 3072 and 3072 x 768 with 128
    and 384 tokens at densities of 0.1 to 0.5 on Sapphire Rapids, where four inputs take 8 shuffles and 16 products on
    two ports, and so at least 1.5 times what they take without shuffles.
    """
    depth, columns = weights.shape
    tiles = isinstance(form.product, TileProduct)
    unit = GROUP * (_TILE_GROUPS if tiles else 1)
    used = np.count_nonzero(live(weights, form.outputs), axis=0)
    left = float(np.sum(-(-used // unit) * unit)) * form.outputs
    each, per_sum, per_input = _COSTS[form.outputs]
    tokens = -(-rows // isa.lanes) * isa.lanes
    return tokens * (each * left + per_input * depth) + rows * per_sum * columns


_DENSE_TILE, _DENSE_SUM = 0.28, 20.0
_COSTS = {4: (1.42, 70.0, 35.0), 8: (1.18, 70.0, 35.0), _TILE_OUTPUTS: (0.55, 90.0, 40.0)}
"""Of a multiply-accumulate, of a sum and of an input of a token, by outputs that share inputs."""
