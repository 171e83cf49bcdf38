"""Codes go from sparse product to sparse product in blocks of tokens, with the interpreter's bits in the end."""

from __future__ import annotations

import numpy as np
import pytest

from planish.backends.tvm import gemm
from planish.backends.tvm.between_products import layouts
from planish.backends.tvm.build import assembly
from planish.backends.tvm.epilogue import Context
from planish.backends.tvm.isa import ISAS, TileProduct
from planish.backends.tvm.program import lower
from planish.backends.tvm.regions import regions
from planish.backends.tvm.scope import Scratch
from planish.backends.tvm.sparse_weights import forms
from planish.ir import dtypes, ops
from planish.ir.data import Data
from planish.ir.graph import Graph
from planish.ir.loc import Loc
from planish.ir.op import Return
from planish.ir.types import Quant
from tests.backends.tvm.graphs import RNG, coded, codes, graph_of
from tests.backends.tvm.running import HOST, assert_exact, runnable_isas

RUNNABLE = runnable_isas()


def product(x, columns, density=0.3):
    """IntLinear by weights with whole blocks of four neighbouring outputs that are zero."""
    depth = x.tensor.dims[-1]
    kept = np.repeat(RNG.random((depth, -(-columns // 4))) < density, 4, axis=1)[:, :columns]
    array = (RNG.integers(-128, 128, (depth, columns)) * kept).astype(np.int8)
    scales = tuple(float(s) for s in RNG.uniform(0.001, 0.01, columns))
    scale = x.tensor.quant.scale[0]
    bias = Data(RNG.integers(-9999, 9999, columns).astype(np.int32), Quant(tuple(scale * s for s in scales), 0, 0))
    return ops.IntLinear()(x, Data(array, Quant(scales, 0, 1)), bias)


def table(x, dtype, zero=0):
    return ops.IntTable(0.02, zero, dtype)(x, codes(dtype, 256))


def pair(x, hidden=75, columns=21, dtype=dtypes.u8, densities=(0.3, 0.3)):
    looked_up = table(ops.Requantize(0.05, -3, dtypes.i8)(product(x, hidden, densities[0])), dtype, zero=7)
    return ops.Requantize(0.9, 3, dtypes.u8)(product(looked_up, columns, densities[1]))


@pytest.fixture(params=[(4, False), (8, False), (16, False), (16, True)], ids=["4", "8", "16", "tiles"])
def in_form(request, monkeypatch):
    """Has every layer take the form of so many outputs, worth it or not; the test is skipped where there is none."""

    def choose(isa, rows):
        outputs, tiles = request.param

        def fitting(dtype):
            able = [form for form in forms(isa, dtype, rows) if isinstance(form.product, TileProduct) == tiles]
            return [form for form in able if form.outputs == outputs]

        if not fitting(dtypes.u8):
            pytest.skip(f"{isa.name} has no such form")
        monkeypatch.setattr(gemm, "form_of", lambda weights, rows, isa, dtype: fitting(dtype)[0])

    return choose


def decided(graph, isa=HOST):
    """What is read and written in blocks of tokens."""
    found, stored = regions(graph)
    return layouts(found, Context(stored, isa))


def shared(graph, isa=HOST):
    """How many kernels take each piece of working memory that several do."""
    taken: dict[Scratch, int] = {}
    for call in lower(graph, isa).calls:
        for argument in call.kernel.arguments:
            if isinstance(argument, Scratch):
                taken[argument] = taken.get(argument, 0) + 1
    return [count for count in taken.values() if count > 1]


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize(("rows", "dtype"), [(7, dtypes.i8), (130, dtypes.u8)])
def test_codes_are_handed_on_by_column(isa, rows, dtype, in_form):
    in_form(isa, rows)
    graph, feeds = graph_of(coded(dtypes.u8, rows, 70, zero=9), build=lambda x: pair(x, dtype=dtype))
    found = decided(graph, isa)
    assert len(found.written) == len(found.read) == 1
    assert_exact(graph, feeds, isa)


@pytest.mark.parametrize("outer", [(63,), (1, 65), (2, 3, 21)])
@pytest.mark.parametrize(("depth", "hidden", "columns"), [(33, 200, 3), (200, 3, 130)])
def test_odd_shapes(outer, depth, hidden, columns, in_form):
    in_form(HOST, int(np.prod(outer)))
    build = lambda x: pair(x, hidden, columns, dtypes.i8)  # noqa: E731
    graph, feeds = graph_of(coded(dtypes.i8, *outer, depth, zero=2), build=build)
    assert decided(graph).written
    assert_exact(graph, feeds)


def test_a_single_row_stays_as_it_is(in_form):
    in_form(HOST, 1)
    graph, feeds = graph_of(coded(dtypes.u8, 1, 70), build=pair)
    assert not decided(graph).read
    assert_exact(graph, feeds)


@pytest.mark.parametrize("rows", [5, 100])
def test_a_chain_of_products_and_views(rows, in_form):
    in_form(HOST, rows)

    def build(x):
        y = ops.Reshape((1, rows, 68))(ops.Requantize(0.05, 0, dtypes.i8)(product(x, 68)))
        z = ops.Requantize(0.2, 4, dtypes.u8)(table(ops.Requantize(0.05, 0, dtypes.i8)(product(y, 90)), dtypes.i8))
        return ops.Requantize(0.9, 3, dtypes.u8)(product(z, 17))

    graph, feeds = graph_of(coded(dtypes.u8, rows, 40, zero=9), build=build)
    assert decided(graph).written
    assert_exact(graph, feeds)


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize(("rows", "dtype"), [(130, dtypes.i8)])
def test_products_of_the_same_codes_transpose_them_once(isa, rows, dtype, in_form):
    in_form(isa, rows)

    def build(x):
        y = ops.Requantize(0.05, 1, dtype)(x)
        first, *others = [ops.Requantize(0.9, 3, dtypes.i16)(product(y, columns)) for columns in (70, 70, 70)]
        for other in others:
            first = ops.IntAdd(1.0, 0, dtypes.i16)(first, other)
        return first

    graph, feeds = graph_of(coded(dtypes.i16, rows, 50), build=build)
    found = decided(graph, isa)
    assert len(found.read) == 3
    assert len({id(blocks) for blocks in found.read.values()}) == 1
    assert not found.written
    assert shared(graph, isa) == [3]
    assert_exact(graph, feeds, isa)


def other_reader(x):
    y = table(ops.Requantize(0.05, 0, dtypes.i8)(product(x, 40)), dtypes.i8)
    return ops.IntAdd(0.05, 0, dtypes.i8)(ops.Requantize(0.9, 0, dtypes.i8)(product(y, 40)), y)


def turned(x):
    y = ops.Transpose((1, 0))(table(ops.Requantize(0.05, 0, dtypes.i8)(product(x, 40)), dtypes.i8))
    return ops.Requantize(0.9, 0, dtypes.i8)(product(y, 12))


def regrouped(x):
    y = ops.Reshape((140, 20))(table(ops.Requantize(0.05, 0, dtypes.i8)(product(x, 40)), dtypes.i8))
    return ops.Requantize(0.9, 0, dtypes.i8)(product(y, 12))


@pytest.mark.parametrize("build", [other_reader, turned, regrouped])
def test_codes_that_others_read_or_that_move_stay_in_rows(build, in_form):
    in_form(HOST, 70)
    graph, feeds = graph_of(coded(dtypes.u8, 70, 33, zero=9), build=build)
    assert not decided(graph).written
    assert_exact(graph, feeds)


def test_outputs_stay_in_rows(in_form):
    in_form(HOST, 70)
    graph = Graph()
    x = graph.add_input("x", coded(dtypes.u8, 70, 33, zero=9))
    y = table(ops.Requantize(0.05, 0, dtypes.i8)(product(x, 40)), dtypes.i8)
    z = ops.Requantize(0.9, 0, dtypes.i8)(product(y, 12))
    graph.attach(z, None, Loc(("made",)))
    graph.add(Return(("y", "z")), y, z)
    assert not decided(graph).written
    assert_exact(graph, {"x": codes(dtypes.u8, 70, 33)})


@pytest.mark.parametrize(("densities", "handed_on"), [((1.0, 0.1), 0), ((0.1, 1.0), 0), ((0.1, 0.1), 1)])
def test_dense_products_read_and_write_rows(densities, handed_on):
    graph, _ = graph_of(coded(dtypes.u8, 128, 96), build=lambda x: pair(x, 128, 96, densities=densities))
    found = decided(graph, ISAS["avx512-vnni"])
    assert len(found.read) == len(found.written) == handed_on


@pytest.mark.parametrize("isa", RUNNABLE)
def test_codes_that_no_instruction_packs_take_the_order_of_blocks_by_a_move(isa, in_form):
    in_form(isa, 70)

    def build(x):
        y = ops.Requantize(1e-7, 0, dtypes.i8)(product(x, 40))  # sums grow: they may leave 32 bits
        return ops.Requantize(0.9, 0, dtypes.i8)(product(y, 12))

    graph, feeds = graph_of(coded(dtypes.u8, 70, 33, zero=9), build=build)
    assert decided(graph, isa).written
    assert_exact(graph, feeds, isa)


@pytest.mark.parametrize("name", ["amx-int8", "avx512-vnni", "avx-vnni", "arm-i8mm"])
def test_code_is_generated_for_every_instruction_set(name, in_form):
    in_form(ISAS[name], 70)
    graph, _ = graph_of(coded(dtypes.u8, 70, 33, zero=9), build=pair)
    assert decided(graph, ISAS[name]).written
    assert assembly(lower(graph, ISAS[name]), ISAS[name].target())
