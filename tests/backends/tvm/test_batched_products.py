"""Products of matrices that are known at run time only, by bytes and by signs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planish.backends.tvm.binary_bytes import table_of
from planish.backends.tvm.build import assembly
from planish.backends.tvm.isa import ISAS
from planish.backends.tvm.program import lower
from planish.backends.tvm.regions import regions
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


def followed(inner, after):
    """A product of signs and what follows it."""
    scale = 0.05 * 0.05
    c = lambda a, b: ops.IntBinaryMatMul()(a, b)  # noqa: E731
    coarser = ops.Requantize(scale * (inner / 150 + 0.4), 3, dtypes.i8)
    table = np.random.default_rng(inner).integers(0, 255, 256, endpoint=True).astype(np.uint8)
    return {
        "nothing": c,
        "i8": lambda a, b: coarser(c(a, b)),
        "u8": lambda a, b: ops.Requantize(scale * 1.3, 77, dtypes.u8)(ops.ScaleBy(0.5)(c(a, b))),
        "i16": lambda a, b: ops.Requantize(scale / 111, -9, dtypes.i16)(c(a, b)),
        "table": lambda a, b: ops.IntTable(0.1, 4, dtypes.u8)(coarser(c(a, b)), table),
        "plain": lambda a, b: ops.ToCodes()(coarser(c(a, b))),
        "float": lambda a, b: ops.Dequantize()(coarser(c(a, b))),
        "twice": lambda a, b: (lambda q: ops.IntAdd(scale * 2, 1, dtypes.i8)(q, q))(coarser(c(a, b))),
        "turned": lambda a, b: ops.Transpose((0, 2, 1))(coarser(c(a, b))),
        "heads": lambda a, b: ops.Transpose((1, 0, 2))(coarser(c(a, b))),
    }[after]


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize(
    ("inner", "batch", "rows", "columns", "after"),
    [
        (1, 2, 3, 16, "i8"),
        (7, 3, 33, 65, "table"),
        (8, 1, 64, 129, "i16"),
        (33, 2, 5, 40, "u8"),
        (64, 2, 67, 197, "i8"),
        (64, 1, 9, 64, "plain"),
        (64, 2, 9, 15, "i8"),
        (65, 2, 35, 63, "table"),
        (127, 1, 40, 100, "i8"),
        (128, 1, 5, 31, "i16"),
        (200, 2, 37, 77, "i8"),
        (200, 2, 4, 16, "table"),
        (255, 1, 3, 128, "u8"),
        (256, 1, 3, 33, "i8"),
        (64, 2, 21, 33, "nothing"),
        (65, 2, 21, 70, "float"),
        (33, 2, 21, 70, "twice"),
        (64, 2, 21, 70, "turned"),
        (64, 3, 21, 70, "heads"),
    ],
)
def test_what_follows_signs(isa, inner, batch, rows, columns, after):
    build = followed(inner, after)
    if rows % 2:
        graph, feeds = graph_of(
            coded(dtypes.i8, batch, rows, inner),
            coded(dtypes.i8, batch, columns, inner),
            build=lambda a, b: build(a, ops.Transpose((0, 2, 1))(b)),
        )
    else:
        types = coded(dtypes.i8, batch, rows, inner), coded(dtypes.i8, batch, inner, columns)
        graph, feeds = graph_of(*types, build=build)
    assert_exact(graph, signs(feeds), isa)


def test_extreme_sums_of_signs():
    """Rows and columns that agree or differ everywhere, so that every end of the table is read."""
    for inner in (64, 127, 255):
        types = coded(dtypes.i8, 1, 6, inner), coded(dtypes.i8, 1, inner, 20)
        graph, feeds = graph_of(*types, build=followed(inner, "i8"))
        feeds = {name: np.ones_like(codes) for name, codes in feeds.items()}
        feeds["x0"][:, ::2] = -1
        feeds["x1"][..., 1::3] = -1
        assert_exact(graph, feeds)


@pytest.mark.parametrize(
    ("after", "kind"),
    [("i8", "Requantize"), ("table", "IntTable"), ("i16", "Requantize"), ("float", "Requantize"), ("nothing", None)],
)
def test_tables_hold_what_follows_a_sum_alone(after, kind):
    types = coded(dtypes.i8, 2, 5, 9), coded(dtypes.i8, 2, 9, 16)
    graph, _ = graph_of(*types, build=followed(9, after))
    (region,) = regions(graph)[0]
    table = table_of(region)
    assert (table.node.op.name if table else None) == kind
    if after == "i16":  # every difference lowers a sum by 2, that is a code by 222
        np.testing.assert_array_equal(table.entries, -9 + 111 * (9 - 2 * np.arange(10)))


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


@pytest.mark.parametrize(
    ("name", "instruction", "rescaled"),
    [
        ("avx512-vbmi", "vpopcntd", False),
        ("avx512-vbmi", "vpopcntb", True),
        ("avx512-vbmi", "vpermi2b", True),
        ("arm64", "cnt", False),
        ("arm64", "tbl", True),
    ],
)
def test_bits_are_counted_by_an_instruction_where_there_is_one(name, instruction, rescaled):
    graph, _ = product(ops.IntBinaryMatMul(), (2,), 9, 64, 40, dtypes.i8, 0, True, rescaled)
    assert instruction in assembly(lower(graph, ISAS[name]), ISAS[name].target())
