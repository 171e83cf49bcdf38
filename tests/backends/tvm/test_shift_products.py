"""Layers of constant weights without a multiplication: the same integers, and no such instruction on vectors."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from planish.backends.tvm.build import assembly
from planish.backends.tvm.cpu import cpu_flags
from planish.backends.tvm.isa import ISAS, ShiftProduct, host_isa, isa_named
from planish.backends.tvm.program import lower
from planish.ir import dtypes, ops, signed_digits
from planish.ir.codebooks import CODEBOOKS
from planish.ir.data import Data
from planish.ir.errors import UnsupportedOp
from planish.ir.types import Quant
from tests.backends.tvm.graphs import RNG, coded, graph_of
from tests.backends.tvm.running import HOST, assert_exact

FLAGS = cpu_flags()
RUNNABLE = [
    pytest.param(isa_named(f"{name}-shift"), id=name, marks=pytest.mark.skipif(not isa.features <= FLAGS, reason="CPU"))
    for name, isa in ISAS.items()
    if isa.triple == HOST.triple and name in ("avx512-vnni", "avx2", "x86-64", "arm64")
]
VECTOR_PRODUCTS = re.compile(
    r"^\s+(v?pmul\w*|v?pmadd\w*|vpdp\w*|tdp\w*|v?mulp[sd]|[us]?m(?:ul|la|ls)l?2?\s+v\d|[us]{1,2}dot\s)", re.MULTILINE
)


def weights_of(name, *shape, axis=-1):
    values = np.arange(-128, 128) if not name else np.asarray(CODEBOOKS[name].values)
    scales = tuple(float(s) for s in RNG.uniform(0.001, 0.01, shape[axis]))
    return Data(RNG.choice(values, shape).astype(np.int8), Quant(scales, 0, axis % len(shape), name))


def layer(name, dtype, rows, depth, columns, added=False):
    def build(x, *residual):
        y = ops.IntLinear()(x, weights_of(name, depth, columns))
        if residual:
            return ops.IntAdd(0.01, 0, dtypes.i16)(*residual, y)
        return ops.Requantize(3.0 if dtype.bits == 8 else 300.0, 3, dtypes.u8)(y)

    types = [coded(dtype, rows, depth, zero=5)]
    return graph_of(*types, *([coded(dtypes.i16, rows, columns, scale=0.002)] if added else []), build=build)


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize(
    ("name", "dtype", "rows", "depth", "columns", "added"),
    [
        ("", dtypes.u8, 7, 33, 31, False),
        ("csd2", dtypes.i8, 1, 70, 40, True),
        ("pot4", dtypes.i16, 9, 31, 17, True),
        ("ternary", dtypes.u8, 3, 32, 5, False),
    ],
)
def test_a_linear_layer(isa, name, dtype, rows, depth, columns, added):
    assert_exact(*layer(name, dtype, rows, depth, columns, added), isa)


@pytest.mark.parametrize("isa", RUNNABLE)
def test_a_convolution(isa):
    def build(x):
        conv = ops.IntConv(strides=(1, 2), pads=(1, 0, 1, 1), dilations=(1, 1))
        return ops.Requantize(0.5, 7, dtypes.u8)(conv(x, weights_of("apot4", 9, 3, 3, 3, axis=0)))

    assert_exact(*graph_of(coded(dtypes.u8, 1, 3, 5, 7, zero=9), build=build), isa)


def test_a_single_scale_is_multiplied_by_its_signed_digits():
    weights = Data(RNG.integers(-9, 10, (20, 33)).astype(np.int8), Quant((0.003,)))
    build = lambda x: ops.Requantize(0.07, -3, dtypes.i16)(ops.IntLinear()(x, weights))  # noqa: E731
    assert_exact(*graph_of(coded(dtypes.u8, 5, 20, zero=5), build=build), isa_named(f"{HOST.name}-shift"))


@pytest.mark.parametrize("name", ["avx512-vnni", "avx2", "x86-64", "arm64"])
@pytest.mark.parametrize("added", [False, True])
def test_no_instruction_multiplies_vectors(name, added):
    graph, _ = layer("", dtypes.u8, 5, 33, 20, added)
    shifting, usual = isa_named(f"{name}-shift"), ISAS[name]
    assert VECTOR_PRODUCTS.findall(assembly(lower(graph, shifting), shifting.target())) == []
    assert VECTOR_PRODUCTS.findall(assembly(lower(graph, usual), usual.target()))


def test_weights_take_as_many_planes_as_they_have_bits():
    isa = isa_named("avx2-shift")
    for values, planes in (([-1, 1], 2), ([-2, 1], 2), ([0], 1), ([-10, 10], 5), ([-128, 127], 8), ([0, 64], 8)):
        product = isa.product_by(np.asarray(values, np.int8), dtypes.u8, 1)
        assert isinstance(product, ShiftProduct)
        assert product.planes == planes


def test_signed_digits_are_the_number_and_have_no_neighbours():
    for number in [0, 1, 3, 7, 85, 2**31 - 1, *map(int, RNG.integers(0, 2**31, 100))]:
        digits = [(place, int(sign)) for place, sign in signed_digits.planes(np.asarray(number))][::-1]
        assert sum(sign << place if sign > 0 else -(1 << place) for place, sign in digits) == number
        assert all(a - b > 1 for (a, _), (b, _) in itertools.pairwise(digits))


def test_it_is_asked_for_by_name_alone():
    assert host_isa().multiplies
    assert isa_named("avx2-shift").name == "avx2-shift"
    with pytest.raises(UnsupportedOp, match="no instruction set 'avx9-shift'"):
        isa_named("avx9-shift")
