"""Products by weights without their zeros give the interpreter's bits, whatever is zero, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from planish.backends.tvm import gemm
from planish.backends.tvm.build import assembly
from planish.backends.tvm.by_column import ByColumn
from planish.backends.tvm.isa import ISAS, TileProduct
from planish.backends.tvm.program import lower
from planish.backends.tvm.sparse_weights import GROUP, Form, compact, cost, dense_cost, form_of, forms
from planish.ir import dtypes, ops
from planish.ir.data import Data
from planish.ir.types import Quant
from tests.backends.tvm.graphs import RNG, coded, graph_of
from tests.backends.tvm.running import HOST, assert_exact, runnable_isas

RUNNABLE = runnable_isas()


def matrix(depth, columns, density, outputs=4):
    """int8 [depth, columns] with so large a share of whole blocks of neighbouring outputs that aren't zero."""
    kept = np.repeat(RNG.random((depth, -(-columns // outputs))) < density, outputs, axis=1)[:, :columns]
    return (RNG.integers(-128, 128, (depth, columns)) * kept).astype(np.int8)


def quantised(array):
    scales = tuple(float(s) for s in RNG.uniform(0.001, 0.01, array.shape[1]))
    return Data(array, Quant(scales, 0, 1))


def layer(array, dtype=dtypes.u8, rows=7, zero=5, bias=True):
    def build(x):
        w = quantised(array)
        b = Data(
            RNG.integers(-10000, 10000, array.shape[1]).astype(np.int32),
            Quant(tuple(0.05 * s for s in w.type.quant.scale), 0, 0),
        )
        y = ops.IntLinear()(x, w, b) if bias else ops.IntLinear()(x, w)
        return ops.Requantize(0.9, 3, dtypes.u8)(y)

    return graph_of(coded(dtype, rows, array.shape[0], zero=zero), build=build)


@pytest.fixture(params=[(4, False), (8, False), (16, False), (16, True)], ids=["4", "8", "16", "tiles"])
def in_form(request, monkeypatch):
    """Has every layer take the form of so many outputs, worth it or not; the test is skipped where there is none."""

    def choose(isa, dtype, rows):
        outputs, tiles = request.param
        able = [form for form in forms(isa, dtype, rows) if isinstance(form.product, TileProduct) == tiles]
        found = [form for form in able if form.outputs == outputs]
        if not found:
            pytest.skip(f"{isa.name} has no such form")
        taken: list[Form] = []

        def form(*_):
            taken.append(found[0])
            return found[0]

        monkeypatch.setattr(gemm, "form_of", form)
        return taken

    return choose


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize(
    ("density", "rows", "depth", "columns"),
    [(0.2, 1, 70, 37), (1.0, 1, 33, 150), (0.0, 5, 33, 150), (0.02, 75, 130, 67), (0.5, 75, 70, 70)],
)
def test_odd_shapes(isa, density, rows, depth, columns, in_form):
    taken = in_form(isa, dtypes.u8, rows)
    assert_exact(*layer(matrix(depth, columns, density), rows=rows), isa)
    assert len(taken) == 1


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("dtype", [dtypes.i8, dtypes.u8])
@pytest.mark.parametrize("rows", [1, 64, 129])
def test_codes_of_both_signs(isa, dtype, rows, in_form):
    in_form(isa, dtype, rows)
    assert_exact(*layer(matrix(96, 64, 0.3), dtype, rows, bias=False), isa)


@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 3, 1), (1, 1, 5), (16, 1, 64), (17, 259, 65), (200, 64, 3)])
def test_the_smallest_and_the_unevenest(rows, depth, columns, in_form):
    in_form(HOST, dtypes.u8, rows)
    assert_exact(*layer(matrix(depth, columns, 0.6), rows=rows))


@pytest.mark.parametrize("outer", [(2, 3, 21), (1, 130)])
def test_rows_of_several_axes(outer, in_form):
    in_form(HOST, dtypes.u8, 100)
    array = matrix(65, 130, 0.3)
    build = lambda x: ops.Requantize(0.9, 3, dtypes.u8)(ops.IntLinear()(x, quantised(array)))  # noqa: E731
    assert_exact(*graph_of(coded(dtypes.u8, *outer, 65, zero=7), build=build))


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("rows", [1, 70])
def test_extremes(isa, rows, in_form):
    in_form(isa, dtypes.u8, rows)
    array = np.where(RNG.random((300, 40)) < 0.5, -128, 127).astype(np.int8)
    graph, _ = layer(array, rows=rows, zero=0)
    assert_exact(graph, {"x0": np.full((rows, 300), 255, np.uint8)}, isa)


@pytest.mark.parametrize("rows", [1, 20])
def test_outputs_and_inputs_that_are_all_zero(rows, in_form):
    in_form(HOST, dtypes.u8, rows)
    array = matrix(90, 140, 0.4)
    array[:, 16:36] = 0
    array[:, 64:128] = 0
    array[40:80] = 0
    assert_exact(*layer(array, rows=rows))


@pytest.mark.parametrize("rows", [1, 77])
def test_what_follows_is_done_as_for_dense_products(rows, in_form):
    in_form(HOST, dtypes.u8, rows)
    array = matrix(60, 84, 0.3)
    table = RNG.integers(-128, 128, 256).astype(np.int8)

    def build(x, residual):
        codes = ops.Requantize(0.05, 0, dtypes.i8)(ops.IntLinear()(x, quantised(array)))
        looked_up = ops.IntTable(0.02, 0, dtypes.i8)(codes, table)
        total = ops.IntAdd(0.02, 4, dtypes.i16)(residual, looked_up)
        return ops.Transpose((1, 0))(total)

    types = [coded(dtypes.u8, rows, 60, zero=9), coded(dtypes.i16, rows, 84, scale=0.002)]
    assert_exact(*graph_of(*types, build=build))


@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (130, 100), (192, 17)])
@pytest.mark.parametrize("dtype", [dtypes.i8, dtypes.u8])
def test_codes_of_whole_blocks_are_made_by_column(rows, columns, dtype, in_form, monkeypatch):
    in_form(HOST, dtypes.u8, rows)
    made, finish = [], ByColumn.finish
    monkeypatch.setattr(ByColumn, "finish", lambda self, *rest: (made.append(rest), finish(self, *rest)))
    array = matrix(60, columns, 0.3)
    table = RNG.integers(dtype.min, dtype.max + 1, 256).astype(dtype.storage)

    def build(x):
        codes = ops.Requantize(0.05, -3, dtypes.i8)(ops.IntLinear()(x, quantised(array)))
        return ops.Transpose((0, 2, 1))(ops.IntTable(0.02, 0, dtype)(codes, table))

    graph, feeds = graph_of(coded(dtypes.u8, 1, rows, 60, zero=9), build=build)
    assert_exact(graph, feeds)
    assert made


def test_a_convolution(in_form):
    in_form(HOST, dtypes.u8, 2 * 9 * 4)
    array = matrix(6 * 9, 20, 0.3).T.reshape(20, 6, 3, 3)

    def build(x):
        scales = tuple(float(s) for s in RNG.uniform(0.001, 0.01, 20))
        conv = ops.IntConv(strides=(1, 2), pads=(1, 1, 1, 1), dilations=(1, 1))
        return ops.Requantize(0.5, 7, dtypes.u8)(conv(x, Data(np.ascontiguousarray(array), Quant(scales, 0, 0))))

    assert_exact(*graph_of(coded(dtypes.u8, 2, 6, 9, 7, zero=9), build=build))


def test_inputs_are_listed_by_block_and_weights_lie_group_by_group():
    array = np.zeros((6, 5), np.int8)
    array[[0, 2, 3, 4, 5], 1] = [1, 2, 3, 4, 5]
    array[1, 4] = 7
    found = compact(array, 4)
    assert found.starts.tolist() == [0, 2, 3]
    assert found.places.view(np.uint16).reshape(-1, 4).tolist() == [[0, 2, 3, 4], [5, 5, 5, 5], [1, 1, 1, 1]]
    weights = found.values.view(np.int8).reshape(3, 4, 4)
    assert weights[0, 1].tolist() == [1, 2, 3, 4]
    assert weights[1, 1].tolist() == [5, 0, 0, 0]
    assert weights[2, 0].tolist() == [7, 0, 0, 0]
    assert np.count_nonzero(weights) == 6


@pytest.mark.parametrize("name", ["amx-int8", "avx512-vnni", "avx-vnni", "arm-i8mm"])
@pytest.mark.parametrize("rows", [1, 128])
def test_zeros_are_skipped_only_where_that_is_worth_it(name, rows):
    isa = ISAS[name]
    assert form_of(matrix(768, 768, 1.0), rows, isa, dtypes.u8) is None
    assert form_of(matrix(768, 768, 0.02), rows, isa, dtypes.u8) is not None
    scattered = matrix(768, 768, 0.5, outputs=1)
    assert form_of(scattered, rows, isa, dtypes.u8) is None


def test_blocks_of_sixteen_go_to_tiles_and_blocks_of_four_to_vectors():
    isa, narrow, wide = ISAS["amx-int8"], matrix(768, 768, 0.05), matrix(768, 768, 0.1, outputs=16)
    by_four, by_sixteen = (form_of(array, 128, isa, dtypes.u8) for array in (narrow, wide))
    assert by_four is not None
    assert by_four.outputs == GROUP
    assert by_sixteen is not None
    assert isinstance(by_sixteen.product, TileProduct)


def test_the_chosen_form_costs_less_than_dense_products_by_a_margin():
    for density in (0.05, 0.2, 0.4, 0.6, 0.8):
        array = matrix(256, 256, density)
        found = form_of(array, 64, ISAS["avx512-vnni"], dtypes.u8)
        costs = [cost(form, array, 64, ISAS["avx512-vnni"]) for form in forms(ISAS["avx512-vnni"], dtypes.u8, 64)]
        worth = min(costs) < 0.95 * dense_cost(array.shape, 64, ISAS["avx512-vnni"], dtypes.u8)
        assert (found is not None) == worth


def test_instruction_sets_without_products_of_bytes_stay_dense():
    for name in ("avx2", "x86-64", "arm64"):
        assert form_of(matrix(768, 768, 0.05), 128, ISAS[name], dtypes.u8) is None
    assert form_of(matrix(768, 768, 0.05), 128, HOST, dtypes.i16) is None


def test_an_artifact_holds_what_is_left_of_the_weights():
    depth, columns = 512, 512
    array = matrix(depth, columns, 0.1)
    constants = [
        argument.nbytes
        for call in lower(layer(array, rows=64)[0], ISAS["avx512-vnni"]).calls
        for argument in call.kernel.arguments
        if isinstance(argument, np.ndarray)
    ]
    left = np.count_nonzero(array.reshape(depth, -1, 4).any(axis=2)) * 4
    assert sum(constants) < 1.5 * left + 16 * columns + 4096


@pytest.mark.parametrize("name", ["amx-int8", "avx512-vnni", "avx-vnni", "arm-i8mm"])
@pytest.mark.parametrize("rows", [1, 40])
def test_code_is_generated_for_every_instruction_set_that_has_a_form(name, rows):
    array = matrix(768, 768, 0.03)
    assert form_of(array, rows, ISAS[name], dtypes.u8) is not None
    assert assembly(lower(layer(array, rows=rows)[0], ISAS[name]), ISAS[name].target())
