"""Weights of a codebook are stored in its bits and give the same sums as bytes, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from planish.backends.tvm.build import assembly
from planish.backends.tvm.codes import Codes
from planish.backends.tvm.isa import ISAS
from planish.backends.tvm.program import lower
from planish.ir import dtypes, ops
from planish.ir.codebooks import CODEBOOKS
from planish.ir.data import Data
from planish.ir.types import Quant
from tests.backends.tvm.graphs import RNG, coded, graph_of
from tests.backends.tvm.running import HOST, assert_exact, runnable_isas

RUNNABLE = runnable_isas()
PACKED = [name for name, book in CODEBOOKS.items() if book.values is not None and book.bits < 8]


def weights_of(name, *shape, axis=-1):
    scales = tuple(float(s) for s in RNG.uniform(0.001, 0.01, shape[axis]))
    values = np.asarray(CODEBOOKS[name].values, np.int8)
    return Data(RNG.choice(values, shape), Quant(scales, 0, axis % len(shape), name))


def layer(name, dtype, rows, depth, columns, zero=5):
    def build(x):
        y = ops.IntLinear()(x, weights_of(name, depth, columns))
        return ops.Requantize(0.9 if dtype.bits == 8 else 90.0, 3, dtypes.u8)(y)

    return graph_of(coded(dtype, rows, depth, zero=zero), build=build)


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 70, 37), (2, 33, 150), (29, 130, 47)])
def test_a_linear_layer(isa, name, rows, depth, columns):
    assert_exact(*layer(name, dtypes.u8, rows, depth, columns), isa)


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("dtype", [dtypes.i8, dtypes.i16, dtypes.u16])
@pytest.mark.parametrize("rows", [1, 40])
def test_codes_of_every_kind_meet_packed_weights(isa, dtype, rows):
    assert_exact(*layer("apot5", dtype, rows, 45, 50), isa)


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 2049, 300), (3, 777, 1030), (7, 2049, 65), (300, 515, 515)])
def test_a_large_odd_linear_layer(name, rows, depth, columns):
    assert_exact(*layer(name, dtypes.u8, rows, depth, columns))


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("name", ["pot4", "apot6"])
def test_a_convolution(isa, name):
    def build(x):
        conv = ops.IntConv(strides=(1, 2), pads=(1, 0, 1, 1), dilations=(1, 1))
        return ops.Requantize(0.5, 7, dtypes.u8)(conv(x, weights_of(name, 19, 6, 3, 3, axis=0)))

    assert_exact(*graph_of(coded(dtypes.u8, 2, 6, 9, 7, zero=9), build=build), isa)


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("name", PACKED)
def test_packed_weights_take_as_many_bits_as_the_codebook_has(name, rows):
    depth, columns = 512, 256
    graph, _ = layer(name, dtypes.u8, rows, depth, columns)
    sizes = [
        argument.nbytes
        for call in lower(graph, HOST).calls
        for argument in call.kernel.arguments
        if isinstance(argument, np.ndarray)
    ]
    assert max(sizes) == depth * columns * CODEBOOKS[name].bits // 8


def test_codes_of_eight_bits_and_binary_coded_ones_stay_bytes():
    for name, values in (("csd2", CODEBOOKS["csd2"].values), ("bcq4", (-3, -1, 1, 3))):
        weights = Data(RNG.choice(np.asarray(values, np.int8), (64, 64)), Quant((0.01,) * 64, 0, 1, name))
        build = lambda x, w=weights: ops.Requantize(1.0, 3, dtypes.u8)(ops.IntLinear()(x, w))  # noqa: E731
        assert_exact(*graph_of(coded(dtypes.u8, 5, 64, zero=3), build=build))


def test_planes_hold_groups_of_k_in_the_bits_of_one_byte():
    codes = Codes(5, CODEBOOKS["apot5"].values)
    panels = np.asarray(codes.values, np.int8)[np.arange(8)]  # eight groups of one element: codes 0 to 7
    assert codes.packed(panels, 8, 1).tolist() == [0x10, 0x32, 0x54, 0x76, 0]
    panels = np.asarray(codes.values, np.int8)[[16, 1, 2, 3, 4, 5, 6, 23]]
    assert codes.packed(panels, 8, 1).tolist() == [0x10, 0x32, 0x54, 0x76, 0b10000001]


def test_few_rows_decode_in_registers_and_many_rows_a_panel_at_a_time():
    isa = ISAS["avx512-vbmi"]
    few, many = (assembly(lower(layer("pot4", dtypes.u8, rows, 256, 256)[0], isa), isa.target()) for rows in (1, 64))
    assert "vpermb" in few
    assert "vpermb" in many
    assert "AllocWorkspace" in many
    assert "AllocWorkspace" not in few


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["pot4", "apot6"])
@pytest.mark.parametrize("rows", [1, 40])
def test_code_is_generated_for_every_instruction_set(isa, name, rows):
    graph, _ = layer(name, dtypes.u8, rows, 48, 80)
    assert assembly(lower(graph, ISAS[isa]), ISAS[isa].target())
