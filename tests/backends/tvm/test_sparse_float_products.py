"""Linear in float32 by weights with zeros: the same results over odd shapes, from the inputs that are kept alone."""

from __future__ import annotations

import numpy as np
import pytest

from planish.backends.tvm.isa import ISAS
from planish.backends.tvm.sparse_float import kept
from planish.ir import ops
from planish.ir.data import Data
from tests.backends.tvm.floats import EPSILON, Case, assert_cases, float_isas, normal

WIDE = ISAS["avx512-vnni"]


def with_zeros(depth: int, columns: int, density: float, block: int = 16, seed: int = 0) -> np.ndarray:
    """float32 [K, N] of which that share of blocks of neighbouring outputs isn't 0; the first block column is empty."""
    rng = np.random.default_rng(seed)
    alive = rng.random((depth, -(-columns // block))) < density
    alive[:, 0] = False
    return (normal(depth, columns) * np.repeat(alive, block, axis=1)[:, :columns]).astype(np.float32)


def linear(rows: int, depth: int, columns: int, density: float, *, biased: bool = True) -> Case:
    x, w, b = normal(1, rows, depth), with_zeros(depth, columns, density), normal(columns)
    operands = (x, w, b) if biased else (x, w)
    error = EPSILON * (2 + np.sqrt(depth)) * ops.Linear().evaluate(*map(np.abs, operands))
    return Case(ops.Linear(), (x, *map(Data, operands[1:])), error)


@pytest.mark.parametrize("isa", float_isas())
def test_products_over_odd_shapes(isa):
    shapes = [(1, 96, 64), (1, 33, 130), (3, 64, 49), (17, 100, 33), (130, 96, 96), (9, 3000, 40), (2, 1, 16)]
    cases = [linear(*shape, density) for shape in shapes for density in (0.0, 0.05, 0.2)]
    assert_cases([*cases, linear(17, 40, 48, 0.1, biased=False)], isa)


@pytest.mark.parametrize(("rows", "density"), [(1, 0.1), (3, 0.2), (128, 0.2), (128, 0.5)])
def test_inputs_are_left_out_where_that_is_faster(rows, density):
    weights = with_zeros(768, 768, density)
    found = kept(weights, rows, WIDE)
    assert found is not None
    assert len(found.values) == np.count_nonzero(np.any(weights.reshape(768, 48, 16) != 0, axis=2))
    again = np.zeros((48, 768, 16), np.float32)
    for block in range(48):
        here = slice(found.starts[block], found.starts[block + 1])
        again[block, found.places[here]] = found.values[here]
    np.testing.assert_array_equal(again.transpose(1, 0, 2).reshape(768, 768), weights)


@pytest.mark.parametrize("weights", [normal(64, 64), with_zeros(768, 768, 0.97), with_zeros(768, 768, 0.3, block=1)])
def test_dense_products_stay_where_nothing_is_gained(weights):
    assert kept(np.asarray(weights, np.float32), 128, WIDE) is None
