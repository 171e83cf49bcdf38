"""Products of matrices that are known at run time only, by bytes and by signs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planish.backends.tvm.build import assembly
from planish.backends.tvm.isa import ISAS
from planish.backends.tvm.program import lower
from planish.ir import dtypes, ops
from tests.backends.tvm.graphs import coded, graph_of
from tests.backends.tvm.running import HOST, assert_exact, runnable_isas

RUNNABLE = runnable_isas()
SHAPES = [((1, 2), 7, 64, 9), ((3,), 1, 31, 1), ((), 33, 65, 70), ((1, 6), 50, 64, 197), ((2,), 5, 300, 33)]


def product(op, batch, rows, inner, columns, dtype, zero, turned, rescaled):
    """The product as a graph. turned: the right operand is fed transposed."""

    def build(a, b):
        if turned:
            axes = range(len(batch))
            b = ops.Transpose((*axes, len(batch) + 1, len(batch)))(b)
        c = op(a, b)
        return ops.Requantize(0.4, 2, dtypes.i8)(c) if rescaled else c

    right = (*batch, columns, inner) if turned else (*batch, inner, columns)
    return graph_of(coded(dtype, *batch, rows, inner, zero=zero), coded(dtypes.i8, *right), build=build)


def signs(feeds):
    return {name: np.where(codes > 0, 1, -1).astype(np.int8) for name, codes in feeds.items()}


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("batch", "rows", "inner", "columns"), SHAPES)
def test_signs(isa, turned, batch, rows, inner, columns):
    op = ops.IntBinaryMatMul()
    graph, feeds = product(op, batch, rows, inner, columns, dtypes.i8, 0, turned, turned)
    assert_exact(graph, signs(feeds), isa)


def test_signs_without_an_instruction_that_gathers_them():
    graph, feeds = product(ops.IntBinaryMatMul(), (2,), 9, 70, 33, dtypes.i8, 0, True, False)
    assert_exact(graph, signs(feeds), replace(HOST, sign_bits=None))


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("dtype", "zero", "batch", "rows", "inner", "columns"),
    [
        (dtypes.u8, 121, (1, 2), 7, 64, 9),
        (dtypes.i8, 0, (), 33, 65, 70),
        (dtypes.i8, -7, (2,), 5, 300, 33),
    ],
)
def test_bytes(isa, turned, dtype, zero, batch, rows, inner, columns):
    assert_exact(*product(ops.IntMatMul(), batch, rows, inner, columns, dtype, zero, turned, turned), isa)


def test_other_products_go_by_plain_loops():
    build = lambda a, b: ops.IntMatMul()(a, b)  # noqa: E731
    assert_exact(*graph_of(coded(dtypes.u8, 4, 5, 6, zero=3), coded(dtypes.i8, 6, 7), build=build))
    assert_exact(*graph_of(coded(dtypes.u8, 2, 5, 6, zero=3), coded(dtypes.u8, 2, 6, 7, zero=9), build=build))
    graph, feeds = graph_of(coded(dtypes.i8, 4, 5, 6), coded(dtypes.i8, 6, 7), build=ops.IntBinaryMatMul())
    assert_exact(graph, signs(feeds))


@pytest.mark.parametrize(("name", "instruction"), [("avx512-vbmi", "vpopcntd"), ("arm64", "cnt")])
def test_bits_are_counted_by_an_instruction_where_there_is_one(name, instruction):
    graph, _ = product(ops.IntBinaryMatMul(), (2,), 9, 64, 40, dtypes.i8, 0, True, False)
    assert instruction in assembly(lower(graph, ISAS[name]), ISAS[name].target())
