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
    """A way to multiply by weights without their zeros. product: in vectors, or in tiles of 16 outputs."""

    product: Product | TileProduct

    @property
    def outputs(self) -> int:
        """Neighbouring columns that share inputs."""
        return _TILE_OUTPUTS if isinstance(self.product, TileProduct) else GROUP

    def compact(self, weights: np.ndarray) -> Compact:
        return compact(weights, self.outputs, _TILE_GROUPS if isinstance(self.product, TileProduct) else 1)


def forms(isa: Isa, dtype: DType) -> list[Form]:
    """Those that an instruction set has for codes of a dtype."""
    if not isa.multiplies or dtype.bits > 8 or isa.bytes_product is None:
        return []
    found = [Form(isa.bytes_product)]
    return [*found, Form(TileProduct(str(dtype.storage)))] if isa.tiles else found


def form_of(weights: np.ndarray, rows: int, isa: Isa, dtype: DType) -> Form | None:
    """The form that is worth it for so many rows of codes by int8 [K, N]; None for the dense one."""
    return None
