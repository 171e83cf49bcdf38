"""Every integer op on ONNX Runtime computes the integers of its numpy reference, over odd shapes and extreme values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planish.backends.onnx.writer import LOWERINGS
from planish.backends.ort.taps import taps
from planish.ir import dtypes, fixedpoint, ops
from planish.ir.data import Data
from planish.ir.dtypes import BY_NAME, DType
from planish.ir.graph import Graph, Value
from planish.ir.interpret import interpret
from planish.ir.loc import Loc
from planish.ir.op import OPS, Op
from planish.ir.ops.int_norm import NORM_BITS
from planish.ir.types import Quant, TensorType

RNG = np.random.default_rng(0)
EXACT = (
    *(ops.FromCodes, ops.ToCodes, ops.ScaleBy, ops.Requantize, ops.IntAdd, ops.IntTable, ops.IntLinear, ops.IntMatMul),
    ops.IntAddMatMul,
    *(ops.IntConv, ops.IntMul, ops.IntReduceSum, ops.IntLayerNorm, ops.IntRMSNorm, ops.ShiftLayerNorm, ops.IntExp),
    *(ops.IntWeightedMean, ops.IntSoftmax, ops.Shiftmax, ops.ShiftGelu, ops.Quantize, ops.Dequantize),
)


def test_every_op_of_codes_is_lowered_and_tested_here():
    modules = ("int_", "quantize")
    integer = {kind for kind in OPS.values() if kind.__module__.rpartition(".")[2].startswith(modules)}
    elsewhere = {ops.IntMatchTokens, ops.IntMergeTokens}  # test_token_ops.py: they have several results
    assert integer - set(EXACT) - elsewhere == {ops.IntLinearDequantize}  # real results: to a tolerance, below
    assert all(kind in LOWERINGS for kind in integer)


def codes(dtype: DType, *shape: int, low: int | None = None, high: int | None = None) -> np.ndarray:
    bounds = dtype.min if low is None else low, (dtype.max if high is None else high) + 1
    return RNG.integers(*bounds, shape, np.int64).astype(dtype.storage)


def per_channel(array: np.ndarray, axis: int, low: float = 1e-3, high: float = 1e-1) -> Data:
    return Data(array, Quant(tuple(RNG.uniform(low, high, array.shape[axis]).tolist()), 0, axis))


def graph_of_one(
    op: Op, *operands: np.ndarray | Data, quants: tuple[Quant | None, ...] = (), batch: bool = True
) -> tuple[Graph, dict[str, np.ndarray]]:
    """A graph of one op and what to feed it. Arrays become inputs (with a symbolic batch), Data constants."""
    graph = Graph("one")
    values: list[Value] = []
    feed: dict[str, np.ndarray] = {}
    for i, operand in enumerate(operands):
        if isinstance(operand, Data):
            values.append(graph.add(ops.Const(operand)).result)
            continue
        name = f"x{i}"
        shape = ("n", *operand.shape[1:]) if batch and operand.ndim > 1 and operand.shape[0] > 1 else operand.shape
        feed[name] = operand
        value = graph.add_input(name, TensorType(dtypes.of(operand), shape))
        quant = quants[i] if i < len(quants) else None
        if quant is not None:
            value = graph.add(ops.FromCodes(quant.scale[0], quant.zero), value, loc=Loc(("input",))).result
        values.append(value)
    result = graph.add(op, *values, loc=Loc(("op",))).result
    graph.add(ops.Return(("y",)), result)
    return graph, feed


def same_on_ort(
    op: Op, *operands: np.ndarray | Data, quants: tuple[Quant | None, ...] = (), batch: bool = True
) -> None:
    """Results must agree to the bit, and in dtype."""
    graph, feed = graph_of_one(op, *operands, quants=quants, batch=batch)
    expected = interpret(graph, feed)["y"]
    (found,) = taps(graph, graph.outputs)(feed)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("source", ["i32", "i16", "u8", "i8"])
@pytest.mark.parametrize("target", ["u8", "i8", "i16", "u16", "i32"])
@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.25, 0.0371, 3.7, 1e-7, 1e-12])
def test_requantize(source, target, ratio):
    dtype, to = BY_NAME[source], BY_NAME[target]
    x = codes(dtype, 3, 5, 7)
    x.reshape(-1)[:4] = dtype.min, dtype.max, 0, 1
    zero = 0 if source == "i32" else 7
    same_on_ort(ops.Requantize(0.1, 3, to), x, quants=(Quant((0.1 * ratio,), zero),))


def test_requantize_of_channels_and_ties():
    w = per_channel(codes(dtypes.i8, 5, 6), 1, 1e-6, 1e-2)
    x = codes(dtypes.u8, 2, 3, 5)
    graph_op = ops.IntLinear()
    sums = np.arange(-64, 64, dtype=np.int32).reshape(2, 64)
    same_on_ort(ops.Requantize(1.0, 0, dtypes.i8), sums, quants=(Quant((0.5,)),))  # every second one is a tie
    same_on_ort(graph_op, x, w, quants=(Quant((0.02,), 77),))


@pytest.mark.parametrize("left", ["u8", "i8", "u16", "i16"])
@pytest.mark.parametrize("rows", [1, 3])
def test_linear_with_bias(left, rows):
    dtype = BY_NAME[left]
    x, w = codes(dtype, rows, 5, 9), per_channel(codes(dtypes.i8, 9, 7), 1)
    quant = Quant((0.03,), 5)
    sums = Quant(w.type.quant.times(0.03).scale, 0, 0)
    same_on_ort(ops.IntLinear(), x, w, Data(codes(dtypes.i32, 7, low=-(10**6), high=10**6), sums), quants=(quant,))


@pytest.mark.parametrize("left", ["u8", "i8", "u16", "i16"])
@pytest.mark.parametrize("right", ["u8", "i8", "i16"])
def test_products_of_matrices(left, right):
    a, b = codes(BY_NAME[left], 2, 3, 4, 5), codes(BY_NAME[right], 2, 3, 5, 6)
    if left.endswith("16") and right.endswith("16"):
        a, b = (a // 8).astype(a.dtype), (b // 8).astype(b.dtype)
    same_on_ort(ops.IntMatMul(), a, b, quants=(Quant((0.1,), 3), Quant((0.2,), 0 if right == "i8" else 9)))


@pytest.mark.parametrize("right", ["u8", "i8", "u16", "i16"])
@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 1, 1), (4, 5, 6), (197, 33, 7), (3, 197, 31)])
def test_sums_by_signs(right, rows, depth, columns):
    a = (RNG.integers(0, 2, (2, 3, rows, depth)) * 2 - 1).astype(np.int8)
    b = codes(BY_NAME[right], 2, 3, depth, columns)
    b[0, 0, 0] = BY_NAME[right].min
    b[1, 0, 0] = BY_NAME[right].max
    same_on_ort(ops.IntAddMatMul(), a, b, quants=(Quant((1.0,)), Quant((0.2,), 0 if right == "i8" else 9)))


def test_a_product_of_signs():
    a, b = (RNG.choice(np.asarray([-1, 1], np.int8), shape) for shape in ((2, 3, 4, 33), (2, 3, 33, 5)))
    same_on_ort(ops.IntBinaryMatMul(), a, b, quants=(Quant((1.0,)), Quant((0.5,))))


@pytest.mark.parametrize(
    ("strides", "pads", "dilations", "group", "kernel", "size"),
    [
        ((1, 1), (1, 1, 1, 1), (1, 1), 1, 3, 7),
        ((2, 2), (0, 1, 1, 0), (1, 1), 4, 3, 8),
        ((1, 1), (2, 2, 2, 2), (2, 2), 2, 3, 6),
        ((2, 2), (0, 0, 0, 0), (1, 1), 1, 2, 8),
        ((1, 1), (0, 0, 0, 0), (1, 1), 1, 1, 5),
    ],
)
@pytest.mark.parametrize("dtype", ["u8", "i8"])
def test_convolution_pads_with_the_zero_point(strides, pads, dilations, group, kernel, size, dtype):
    x = codes(BY_NAME[dtype], 2, 4, size, size)
    w = per_channel(codes(dtypes.i8, 8, 4 // group, kernel, kernel), 0)
    bias = Data(codes(dtypes.i32, 8, low=-999, high=999), Quant(w.type.quant.times(0.05).scale, 0, 0))
    same_on_ort(ops.IntConv(strides, pads, dilations, group), x, w, bias, quants=(Quant((0.05,), 11),))


def test_products_and_sums_of_elements():
    a, b = codes(dtypes.u8, 2, 3, 5), codes(dtypes.i16, 3, 1)
    same_on_ort(ops.IntMul(), a, b, quants=(Quant((0.1,), 128), Quant((0.2,))), batch=False)
    same_on_ort(ops.IntReduceSum((-2, -1), False), codes(dtypes.i16, 2, 3, 5, 4), quants=(Quant((0.1,)),))
    same_on_ort(ops.IntReduceSum((-1,), True), codes(dtypes.u8, 2, 3, 5), quants=(Quant((0.1,), 200),))


@pytest.mark.parametrize("scales", [(0.1, 0.1), (0.3, 0.01), (1e-5, 20.0)])
def test_addition_of_two_scales(scales):
    a, b = codes(dtypes.i32, 2, 3, 5), codes(dtypes.i16, 3, 5)
    same_on_ort(ops.IntAdd(0.1, 0, dtypes.i16), a, b, quants=tuple(Quant((s,)) for s in scales), batch=False)
    same_on_ort(
        ops.IntAdd(0.1, 9, dtypes.u8), b, b[::-1].copy(), quants=(Quant((0.1,), 3), Quant((0.05,))), batch=False
    )


@pytest.mark.parametrize(("source", "target"), [("u8", "u8"), ("i8", "i16"), ("i8", "i32"), ("u8", "i8")])
def test_tables_of_every_code(source, target):
    dtype, to = BY_NAME[source], BY_NAME[target]
    x = np.arange(dtype.min, dtype.max + 1, dtype=np.int64).astype(dtype.storage).reshape(2, 2, 64)
    same_on_ort(ops.IntTable(0.1, 1, to), x, Data(codes(to, 256)), quants=(Quant((0.1,), 3),))


def rows_for_norms(channels: int) -> np.ndarray:
    x = codes(dtypes.i16, 10, channels)
    x[1], x[2], x[3] = 0, 77, dtypes.i16.max
    x[4], x[4, 0] = 0, 1
    x[5], x[5, : channels // 2] = dtypes.i16.min, dtypes.i16.max
    x[6] = RNG.integers(-3, 4, channels)
    return x


@pytest.mark.parametrize("channels", [1, 7, 96, 1536])
@pytest.mark.parametrize("kind", [ops.IntLayerNorm, ops.IntRMSNorm, ops.ShiftLayerNorm])
def test_norms(kind, channels):
    unit = math.sqrt(channels) / 2.0**30 if kind is ops.ShiftLayerNorm else 2.0**-NORM_BITS
    step = 0.05 / 2.0**40 / unit
    gamma = Data(fixedpoint.quantized(RNG.normal(size=channels), dtypes.i32, step), Quant((step,)))
    beta = Data(fixedpoint.quantized(RNG.normal(size=channels), dtypes.i64, step * unit), Quant((step * unit,)))
    operands = (gamma,) if kind is ops.IntRMSNorm else (gamma, beta)
    same_on_ort(kind(0.05, 9, dtypes.u8, 1e-6), rows_for_norms(channels), *operands, quants=(Quant((1e-3,)),))


@pytest.mark.parametrize("length", [1, 5, 197, 600])
def test_softmax(length):
    x = codes(dtypes.i16, 6, length, low=-400, high=400)
    x[0], x[1], x[2], x[2, 0] = 0, dtypes.i16.max, dtypes.i16.min, dtypes.i16.max
    quant = Quant((0.02,))
    same_on_ort(ops.IntExp(), x, quants=(quant,))
    keep = RNG.random((6, length)) < 0.5
    keep[3] = False
    same_on_ort(ops.IntExp(), x, keep, quants=(quant,))
    same_on_ort(ops.IntSoftmax(32767, dtypes.u16), x, quants=(quant,))
    same_on_ort(ops.IntSoftmax(65535, dtypes.u16), x, quants=(quant,))
    if length < 600:
        same_on_ort(ops.Shiftmax(), codes(dtypes.i8, 6, length), quants=(Quant((0.05,)),))


@pytest.mark.parametrize("length", [3, 197, 700])
@pytest.mark.parametrize("bits", [0, 7, 16])
def test_weighted_means(length, bits):
    e, v = codes(dtypes.u8, 2, 3, 4, length), codes(dtypes.i8, 2, 3, length, 5)
    e[0, 0, 0] = 0
    if bits == 16:
        v = (v // 8).astype(np.int8)
    same_on_ort(ops.IntWeightedMean(bits), e, v, quants=(Quant((1 / 255,)), Quant((0.1,))))


@pytest.mark.parametrize("scale", [0.02, 0.05, 0.11])
def test_gelu_of_every_code(scale):
    x = np.arange(-128, 128).astype(np.int8).reshape(2, 128)
    same_on_ort(ops.ShiftGelu(), x, quants=(Quant((scale,)),))


@pytest.mark.parametrize("to", ["u8", "i8", "i16", "u16"])
def test_the_float_border(to):
    dtype = BY_NAME[to]
    x = np.concatenate([RNG.normal(size=60) * 5, [0.05, 0.15, -0.05, 1e9, -1e9, 0.0]]).astype(np.float32).reshape(6, 11)
    same_on_ort(ops.Quantize(0.1, 5, dtype), x)
    same_on_ort(ops.Dequantize(), codes(dtype, 4, 6), quants=(Quant((0.1,), 5),))
    same_on_ort(ops.Dequantize(), codes(dtypes.i32, 4, 6), quants=(Quant((0.013,)),))


def test_linear_with_a_real_result():
    x, w = codes(dtypes.u8, 3, 5, 9), per_channel(codes(dtypes.i8, 9, 7), 1)
    graph = Graph("one")
    codes_in = graph.add(ops.FromCodes(0.02, 100), graph.add_input("x", TensorType(dtypes.u8, x.shape))).result
    bias = graph.add(ops.Const(Data(RNG.normal(size=7).astype(np.float32)))).result
    y = graph.add(ops.IntLinearDequantize(), codes_in, graph.add(ops.Const(w)).result, bias).result
    graph.add(ops.Return(("y",)), y)
    (found,) = taps(graph, [y])({"x": x})
    np.testing.assert_allclose(found, interpret(graph, {"x": x})["y"], rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    ratio=st.floats(1e-9, 1e6),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    zero=st.integers(-128, 127),
)
def test_requantize_of_any_integers_by_any_ratio(seed, ratio, shape, zero):
    x = np.random.default_rng(seed).integers(-(2**31), 2**31, shape).astype(np.int32)
    same_on_ort(ops.Requantize(0.01, zero, dtypes.i8), x, quants=(Quant((0.01 * ratio,)),))
