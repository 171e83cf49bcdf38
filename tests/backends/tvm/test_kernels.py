"""Every kernel on odd shapes, on every instruction set that this CPU has, against the ops' reference."""

from __future__ import annotations

import numpy as np
import pytest

from planish.backends.tvm.build import assembly
from planish.backends.tvm.isa import ISAS
from planish.backends.tvm.program import lower
from planish.backends.tvm.regions import regions
from planish.ir import dtypes, ops
from planish.ir.data import Data
from planish.ir.graph import Graph
from planish.ir.loc import Loc
from planish.ir.op import Return
from planish.ir.types import Quant, TensorType
from tests.backends.tvm.graphs import RNG, coded, codes, graph_of, linear, weights
from tests.backends.tvm.running import HOST, assert_exact, runnable_isas

RUNNABLE = runnable_isas()
# products


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize(
    ("rows", "columns", "depth"),
    [
        (1, 1, 1),
        (1, 10, 96),
        (2, 17, 3),
        (5, 64, 64),
        (7, 33, 31),
        (13, 100, 5),
        (29, 47, 130),
        (197, 96, 33),
        (3, 2049, 7),
    ],
)
def test_a_linear_layer(isa, rows, columns, depth):
    def build(x):
        return ops.Requantize(0.07, 3, dtypes.u8)(linear(x, depth, columns))

    assert_exact(*graph_of(coded(dtypes.u8, rows, depth, zero=121), build=build), isa)


@pytest.mark.parametrize(("rows", "columns", "depth"), [(2049, 5, 3), (1, 2049, 2049), (37, 1025, 513), (6, 7, 2047)])
def test_a_large_odd_linear_layer(rows, columns, depth):
    def build(x):
        return ops.Requantize(1.0, 0, dtypes.i8)(linear(x, depth, columns))

    assert_exact(*graph_of(coded(dtypes.u8, rows, depth, zero=7), build=build))


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 1, 1), (3, 17, 5), (32, 197, 32), (50, 33, 31)])
@pytest.mark.parametrize("dtype", [dtypes.i8, dtypes.i16])
def test_sums_by_signs(isa, rows, depth, columns, dtype):
    def build(a, b):
        return ops.Requantize(0.31, 0, dtypes.i16)(ops.IntAddMatMul()(a, b))

    graph, feeds = graph_of(
        coded(dtypes.i8, 2, 3, rows, depth, scale=1.0), coded(dtype, 2, 3, depth, columns), build=build
    )
    assert_exact(graph, feeds | {"x0": np.where(feeds["x0"] < 0, -1, 1).astype(np.int8)}, isa)


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("dtype", [dtypes.i8, dtypes.u8, dtypes.i16, dtypes.u16])
def test_codes_of_every_kind_go_through_a_linear_layer(isa, dtype):
    def build(x):
        return ops.Requantize(40.0 if dtype.bits > 8 else 0.2, -3, dtypes.i8)(linear(x, 21, 19))

    zero = 5 if dtype.min < 0 else 30000 if dtype.bits > 8 else 130
    assert_exact(*graph_of(coded(dtype, 11, 21, zero=zero), build=build), isa)


@pytest.mark.parametrize("isa", RUNNABLE)
def test_what_follows_a_linear_layer_is_done_in_its_kernel(isa):
    table = Data(codes(dtypes.u8, 256))

    def build(x, residual):
        inner = ops.Requantize(0.07, 128, dtypes.u8)(linear(x, 24, 70))
        looked_up = ops.IntTable(0.03, 7, dtypes.u8)(inner, table)
        return ops.IntAdd(0.01, 0, dtypes.i16)(residual, linear(looked_up, 70, 37))

    graph, feeds = graph_of(coded(dtypes.u8, 1, 9, 24, zero=3), coded(dtypes.i16, 1, 9, 37, scale=0.002), build=build)
    assert len(regions(graph)[0]) == 2
    assert_exact(graph, feeds, isa)


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize(
    ("group", "stride", "pad", "dtype"), [(1, 1, 1, dtypes.u8), (1, 2, 0, dtypes.i8), (6, 1, 1, dtypes.u8)]
)
def test_a_convolution(isa, group, stride, pad, dtype):
    filters = 12 if group > 1 else 19

    def build(x):
        w = weights(filters, 6 // group, 3, 3, axis=0)
        conv = ops.IntConv(strides=(stride, stride), pads=(pad,) * 4, dilations=(1, 1), group=group)(x, w)
        return ops.Requantize(0.02, 7, dtypes.u8)(conv)

    zero = 9 if dtype is dtypes.u8 else -9
    assert_exact(*graph_of(coded(dtype, 2, 6, 9, 7, zero=zero), build=build), isa)


def test_results_are_written_to_where_movement_takes_them():
    def build(x):
        y = ops.Requantize(0.07, 128, dtypes.u8)(linear(x, 24, 6 * 5))
        return ops.Transpose((0, 2, 1, 3))(ops.Reshape((1, 9, 6, 5))(y))

    graph, feeds = graph_of(coded(dtypes.u8, 1, 9, 24, zero=3), build=build)
    assert len(regions(graph)[0]) == 1
    assert_exact(graph, feeds)


# attention


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    ("batch", "heads", "rows", "tokens", "width"),
    [(1, 3, 197, 197, 32), (2, 2, 5, 17, 9), (1, 1, 1, 1, 1), (1, 2, 70, 65, 20), (1, 1, 3, 130, 64), (1, 1, 9, 5, 33)],
)
def test_attention_is_one_kernel(isa, keep, batch, heads, rows, tokens, width):
    def build(q, k, v, *mask):
        logits = ops.Requantize(0.02444, 0, dtypes.i16)(ops.ScaleBy(0.2)(ops.IntMatMul()(q, k)))
        mean = ops.IntWeightedMean(7)(ops.IntExp()(logits, *mask), v)
        y = ops.Requantize(0.02, 115, dtypes.u8)(mean)
        return ops.Reshape((batch, rows, heads * width))(ops.Transpose((0, 2, 1, 3))(y))

    types = [
        coded(dtypes.u8, batch, heads, rows, width, zero=120),
        coded(dtypes.i8, batch, heads, width, tokens),
        coded(dtypes.i8, batch, heads, tokens, width),
    ]
    if keep:
        types.append(TensorType(dtypes.boolean, (batch, 1, 1, tokens)))
    graph = Graph()
    inputs = [graph.add_input(f"x{i}", type_) for i, type_ in enumerate(types)]
    y = build(*inputs)
    graph.attach(y, None, Loc(("made",)))
    graph.add(Return(("y",)), y)
    feeds = {f"x{i}": codes(type_.dtype, *type_.dims) for i, type_ in enumerate(types[:3])}
    if keep:
        feeds["x3"] = RNG.random((batch, 1, 1, tokens)) < 0.7
        feeds["x3"][0] = tokens == 1  # a row that keeps nothing at all
    assert len(regions(graph)[0]) == 1
    assert_exact(graph, feeds, isa)


def test_long_attention_takes_wide_quotients():
    def build(q, k, v):
        logits = ops.Requantize(0.3, 0, dtypes.i16)(ops.IntMatMul()(q, k))
        return ops.Requantize(0.02, 115, dtypes.u8)(ops.IntWeightedMean(7)(ops.IntExp()(logits), v))

    types = coded(dtypes.u8, 1, 3, 8), coded(dtypes.i8, 1, 8, 1001), coded(dtypes.i8, 1, 1001, 8)
    assert_exact(*graph_of(*types, build=build))


# rows


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize(("rows", "channels"), [(5, 1), (3, 7), (4, 96), (2, 385), (1, 2049)])
@pytest.mark.parametrize("flat", [False, True])
def test_layer_normalisation(isa, rows, channels, flat):
    gamma = Data(RNG.integers(-(2**20), 2**20, channels).astype(np.int32), Quant((0.02 / 2**22,), 0))
    beta = Data(RNG.integers(-(2**40), 2**40, channels), Quant((0.02 / 2**42,), 0))

    def build(x):
        return ops.IntLayerNorm(0.02, 121, dtypes.u8, eps=1e-6)(x, gamma, beta)

    graph, feeds = graph_of(coded(dtypes.i16, 1, rows, channels, scale=1e-4), build=build)
    if flat:  # the reciprocal of a standard deviation of zero takes the wide path
        feeds["x0"][:] = 1234
        feeds["x0"][0, 0, :1] += 1
    assert_exact(graph, feeds, isa)


@pytest.mark.parametrize("isa", RUNNABLE)
def test_exponentials_means_and_sums_of_their_own(isa):
    def build(x, v):
        mean = ops.IntWeightedMean(3)(ops.IntExp()(x), v)
        return ops.IntReduceSum(axes=(-2,), keepdims=False)(ops.Requantize(0.1, 0, dtypes.i8)(mean))

    graph, feeds = graph_of(coded(dtypes.i8, 2, 7, 19), coded(dtypes.i8, 2, 19, 5), build=build)
    assert_exact(graph, feeds, isa)


@pytest.mark.parametrize("isa", RUNNABLE)
def test_pointwise_ops_and_movement(isa):
    table = Data(codes(dtypes.i8, 256))

    def build(x, y):
        looked_up = ops.IntTable(0.04, -5, dtypes.i8)(ops.Requantize(0.1, -7, dtypes.i8)(x), table)
        total = ops.IntAdd(0.2, 11, dtypes.u8)(ops.Transpose((1, 0))(looked_up), y)
        return ops.Concat(axis=1)(total, ops.Requantize(0.2, 11, dtypes.u8)(y))

    graph, feeds = graph_of(coded(dtypes.i16, 77, 5, scale=0.001), coded(dtypes.u8, 5, 77, zero=99), build=build)
    assert_exact(graph, feeds, isa)


# by shifts


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("dtype", [dtypes.i8, dtypes.i16])
def test_gelu_by_shifts(isa, dtype):
    scale = 0.02 if dtype is dtypes.i8 else 0.0005
    graph, feeds = graph_of(coded(dtype, 7, 65, scale=scale), build=lambda x: ops.ShiftGelu()(x))
    feeds["x0"][0, :3] = (dtype.min, dtype.max, 0)
    assert_exact(graph, feeds, isa)


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("op", [ops.Shiftmax(16), ops.Shiftmax(8), ops.IntSoftmax(), ops.IntSoftmax(32767, dtypes.u16)])
@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (3, 17), (5, 197)])
def test_softmax_by_shifts_and_by_table(isa, op, rows, tokens):
    graph, feeds = graph_of(coded(dtypes.i16, 2, rows, tokens, scale=0.01, zero=3), build=lambda x: op(x))
    feeds["x0"] //= 37
    feeds["x0"][0, 0] = 5  # a flat row
    assert_exact(graph, feeds, isa)


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize(("rows", "channels"), [(5, 1), (3, 7), (4, 96), (2, 385)])
def test_layer_normalisation_by_shifts(isa, rows, channels):
    unit = np.sqrt(channels) / 2**30
    gamma = Data(RNG.integers(-(2**20), 2**20, channels).astype(np.int32), Quant((0.02 / 2**32 / unit,), 0))
    beta = Data(RNG.integers(-(2**40), 2**40, channels), Quant((0.02 / 2**32,), 0))

    def build(x):
        return ops.ShiftLayerNorm(0.02, 121, dtypes.u8)(x, gamma, beta)

    graph, feeds = graph_of(coded(dtypes.i16, 1, rows, channels, scale=1e-4, zero=9), build=build)
    feeds["x0"][0, 0] = -77  # a row of one value
    assert_exact(graph, feeds, isa)


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("shape", [(1, 5, 96), (5, 96), (3, 1, 96), (3, 5, 1)])
def test_operands_that_broadcast_are_added_to_every_sample(isa, shape):
    def build(x, y):
        return ops.IntAdd(0.2, 0, dtypes.i16)(ops.Requantize(0.1, -7, dtypes.i16)(x), y)

    graph, feeds = graph_of(coded(dtypes.i16, 3, 5, 96, scale=0.1), coded(dtypes.i16, *shape, scale=0.3), build=build)
    assert_exact(graph, feeds, isa)


# other machines


def test_arm_code_has_its_dot_product():
    graph, _ = graph_of(coded(dtypes.u8, 9, 24), build=lambda x: ops.Requantize(0.07, 3, dtypes.u8)(linear(x, 24, 16)))
    isa = ISAS["arm-i8mm"]
    assert "usdot" in assembly(lower(graph, isa), isa.target())


@pytest.mark.parametrize("name", list(ISAS))
def test_code_is_generated_for_every_instruction_set(name):
    graph, _ = graph_of(coded(dtypes.u8, 9, 24), build=lambda x: ops.Requantize(0.07, 3, dtypes.u8)(linear(x, 24, 16)))
    assert assembly(lower(graph, ISAS[name]), ISAS[name].target())


def test_the_best_instruction_set_of_a_cpu_is_chosen_by_its_flags():
    from planish.backends.tvm.isa import host_isa

    if not HOST.triple.startswith("x86_64"):
        pytest.skip("the flags are those of x86")
    assert host_isa([]).name == "x86-64"
    assert host_isa(sorted(ISAS["avx2"].features)).name == "avx2"
    assert host_isa(sorted(ISAS["avx-vnni"].features)).name == "avx-vnni"
    assert host_isa(sorted(ISAS["avx512-vbmi"].features)).name == "avx512-vbmi"
    assert host_isa(sorted(ISAS["amx-int8"].features)).name == "amx-int8"


def test_code_for_tiles_uses_them_and_asks_for_them_first():
    graph, _ = graph_of(coded(dtypes.u8, 9, 24), build=lambda x: ops.Requantize(0.07, 3, dtypes.u8)(linear(x, 24, 16)))
    text = assembly(lower(graph, ISAS["amx-int8"]), ISAS["amx-int8"].target())
    assert "tdpbusd" in text
    assert text.count("syscall@") >= 1
    assert "tdpbusd" not in assembly(lower(graph, ISAS["avx512-vbmi"]), ISAS["avx512-vbmi"].target())
