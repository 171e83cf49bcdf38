"""Without multiplications, ONNX Runtime computes the integers of the numpy reference, and the checker certifies it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planish.backends.onnx.dialect import NO_MULTIPLY
from planish.backends.onnx.writer import build, write
from planish.backends.ort.session import open_session
from planish.backends.ort.taps import taps
from planish.ir import dtypes, fixedpoint, ops, signed_digits
from planish.ir.data import Data
from planish.ir.dtypes import BY_NAME
from planish.ir.errors import UnsupportedOp
from planish.ir.graph import Graph
from planish.ir.interpret import interpret
from planish.ir.op import Op
from planish.ir.ops.int_norm import NORM_BITS
from planish.ir.types import Quant, TensorType
from planish.tools.no_multiply import inspect_no_multiply
from tests.conformance.test_integer_ops_on_ort import codes, graph_of_one, per_channel, rows_for_norms

RNG = np.random.default_rng(0)
MULTIPLYING = {"Mul", "Div", "Mod", "Pow", "Gemm", "Conv", "MatMul"}


@pytest.fixture
def same(tmp_path):
    """Checks that an op written without multiplications is certified and computes what the reference does."""

    def check(
        op: Op, *operands: np.ndarray | Data, quants: tuple[Quant | None, ...] = (), batch: bool = True
    ) -> onnx.ModelProto:
        graph, feed = graph_of_one(op, *operands, quants=quants, batch=batch)
        return check_graph(graph, feed, tmp_path)

    return check


def check_graph(graph: Graph, feed: dict[str, np.ndarray], folder: Path) -> onnx.ModelProto:
    path = folder / "model.onnx"
    write(graph, path, spellings=NO_MULTIPLY)
    assert inspect_no_multiply(path).verdict == "no multiplications"
    expected = interpret(graph, feed)["y"]
    found = open_session(path, threads=1).run(feed)["y"]
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    model = onnx.load(path)
    assert not {node.op_type for node in model.graph.node} & MULTIPLYING
    return model


def test_signed_digits_are_exact_and_few():
    numbers = np.concatenate([np.arange(-5000, 5000), 2 ** np.arange(60), [2**31 - 1, -(2**60) + 1]])
    rising, falling = signed_digits.bit_masks(numbers)
    np.testing.assert_array_equal(rising.astype(np.int64) - falling.astype(np.int64), numbers)
    both = rising | falling
    assert not np.any(both & (both << np.uint64(1)))  # no two neighbours: canonical, and so the fewest
    assert signed_digits.count(np.array([0, 1, 7, 85, -96, 2**31 - 1])).tolist() == [0, 1, 2, 4, 2, 2]
    weights = np.arange(-128, 128).reshape(16, 16)
    planes = list(signed_digits.planes(weights))
    np.testing.assert_array_equal(sum(plane.astype(int) << p for p, plane in planes), weights)
    assert all(set(np.unique(plane)) <= {-1, 0, 1} for _, plane in planes)


@pytest.mark.parametrize("source", ["i32", "i16", "u8", "i8"])
@pytest.mark.parametrize("target", ["u8", "i16", "i32"])
@pytest.mark.parametrize("ratio", [1.0, 0.25, 0.0371, 3.7, 1e-7, 1e-12])
def test_requantize(same, source, target, ratio):
    dtype = BY_NAME[source]
    x = codes(dtype, 3, 5, 7)
    x.reshape(-1)[:4] = dtype.min, dtype.max, 0, 1
    same(ops.Requantize(0.1, 3, BY_NAME[target]), x, quants=(Quant((0.1 * ratio,), 0 if source == "i32" else 7),))


def sums_of_channels(x: np.ndarray, scales: np.ndarray, axis: int) -> tuple[Graph, dict[str, np.ndarray]]:
    """A graph that requantizes i32 sums with one scale per channel; x is added to zeros that have the scales."""
    graph = Graph("one")
    value = graph.add_input("x", TensorType(dtypes.u8, x.shape))
    centred = graph.add(ops.FromCodes(1.0, 0), value).result
    weight = Data(np.eye(x.shape[-1], dtype=np.int8) * 127, Quant(tuple(scales.tolist()), 0, 1))
    sums = graph.add(ops.IntLinear(), centred, graph.add(ops.Const(weight)).result).result
    y = graph.add(ops.Requantize(scales.max() * 40, 3, dtypes.i16), sums).result
    graph.add(ops.Return(("y",)), y)
    return graph, {"x": x}


def test_requantize_of_channels_with_different_digits(tmp_path):
    """Powers of two have one digit, others many, and the smallest none at all."""
    scales = np.concatenate([2.0 ** -np.arange(1, 40, 6), RNG.uniform(1e-4, 1, 9), [1e-14]])
    x = codes(dtypes.u8, 4, 3, scales.size)
    graph, feed = sums_of_channels(x, scales, 2)
    check_graph(graph, feed, tmp_path)


@pytest.mark.parametrize("scales", [(0.1, 0.1), (0.3, 0.01), (1e-5, 20.0)])
def test_addition_of_two_scales(same, scales):
    a, b = codes(dtypes.i32, 2, 3, 5), codes(dtypes.i16, 3, 5)
    same(ops.IntAdd(0.1, 0, dtypes.i16), a, b, quants=tuple(Quant((s,)) for s in scales), batch=False)
    same(ops.IntAdd(0.1, 9, dtypes.u8), b, b[::-1].copy(), quants=(Quant((0.1,), 3), Quant((0.05,))), batch=False)


@pytest.mark.parametrize("dtype", ["u8", "i8", "u16", "i16"])
@pytest.mark.parametrize("rows", [1, 3])
def test_linear_with_bias(same, dtype, rows):
    x, w = codes(BY_NAME[dtype], rows, 5, 9), codes(dtypes.i8, 9, 7)
    w[0, :3] = -128, 127, 85
    weight = per_channel(w, 1)
    sums = Quant(weight.type.quant.times(0.03).scale, 0, 0)
    bias = Data(codes(dtypes.i32, 7, low=-(10**6), high=10**6), sums)
    same(ops.IntLinear(), x, weight, bias, quants=(Quant((0.03,), 5),))


def test_linear_takes_a_product_per_power_that_occurs(same):
    x = codes(dtypes.u8, 3, 5, 4)
    w = np.array([[64, -64], [0, 1], [65, 63], [-1, 0]], np.int8)
    model = same(ops.IntLinear(), x, Data(w, Quant((0.1,))), quants=(Quant((0.03,), 5),))
    assert sum(node.op_type == "MatMulInteger" for node in model.graph.node) == 2
    model = same(ops.IntLinear(), x, Data(np.zeros((4, 2), np.int8), Quant((0.1,))), quants=(Quant((0.03,), 5),))
    assert sum(node.op_type == "MatMulInteger" for node in model.graph.node) == 1
    constants = {tensor.name for tensor in model.graph.initializer}
    assert constants <= {name for node in model.graph.node for name in node.input}  # the weights themselves are gone


@pytest.mark.parametrize("left", ["u8", "i8", "u16", "i16"])
@pytest.mark.parametrize("right", ["u8", "i8", "i16"])
def test_products_of_data(same, left, right):
    a, b = codes(BY_NAME[left], 2, 3, 4, 5), codes(BY_NAME[right], 2, 3, 5, 6)
    if left.endswith("16") and right.endswith("16"):
        a, b = (a // 8).astype(a.dtype), (b // 8).astype(b.dtype)
    b[0, 0, 0, :2] = np.iinfo(b.dtype).min // (8 if right == "i16" else 1), 0
    same(ops.IntMatMul(), a, b, quants=(Quant((0.1,), 3), Quant((0.2,), 0 if right == "i8" else 9)))


def test_signs_by_signs_are_one_product(same):
    a, b = (RNG.choice(np.asarray([-1, 1], np.int8), shape) for shape in ((2, 3, 4, 33), (2, 3, 33, 5)))
    model = same(ops.IntBinaryMatMul(), a, b, quants=(Quant((1.0,)), Quant((0.5,))))
    assert sum(node.op_type == "MatMulInteger" for node in model.graph.node) == 1


@pytest.mark.parametrize("right", ["u8", "i8", "u16", "i16"])
def test_signed_sums_take_one_product_per_byte(same, right):
    a = np.where(RNG.random((2, 3, 4, 5)) < 0.5, -1, 1).astype(np.int8)
    b = codes(BY_NAME[right], 2, 3, 5, 6)
    b[0, 0, 0] = np.iinfo(b.dtype).min
    model = same(ops.IntAddMatMul(), a, b, quants=(Quant((1.0,)), Quant((0.2,), 9)))
    products = sum(node.op_type == "MatMulInteger" for node in model.graph.node)
    assert products == np.iinfo(b.dtype).bits // 8


@pytest.mark.parametrize(
    ("strides", "pads", "dilations", "group", "kernel", "size"),
    [
        ((1, 1), (1, 1, 1, 1), (1, 1), 1, 3, 7),
        ((2, 2), (0, 1, 1, 0), (1, 1), 4, 3, 8),
        ((1, 1), (2, 2, 2, 2), (2, 2), 2, 3, 6),
        ((2, 2), (0, 0, 0, 0), (1, 1), 1, 2, 8),
    ],
)
@pytest.mark.parametrize("dtype", ["u8", "i8"])
def test_convolutions(same, strides, pads, dilations, group, kernel, size, dtype):
    x, w = codes(BY_NAME[dtype], 2, 4, size, size), per_channel(codes(dtypes.i8, 8, 4 // group, kernel, kernel), 0)
    bias = Data(codes(dtypes.i32, 8, low=-999, high=999), Quant(w.type.quant.times(0.05).scale, 0, 0))
    same(ops.IntConv(strides, pads, dilations, group), x, w, bias, quants=(Quant((0.05,), 11),))


@pytest.mark.parametrize(("left", "right"), [("u8", "i8"), ("u8", "u8"), ("i16", "u8"), ("u8", "u16")])
def test_products_of_elements(same, left, right):
    a, b = codes(BY_NAME[left], 5, 3, 7), codes(BY_NAME[right], 3, 1)
    a[0, :, 0] = np.iinfo(a.dtype).min, np.iinfo(a.dtype).max, 0
    b[:, 0] = np.iinfo(b.dtype).min, np.iinfo(b.dtype).max, 1
    zeros = (128 if left == "u8" else -9), (255 if right == "u8" else 0)
    same(ops.IntMul(), a, b, quants=tuple(Quant((0.1,), zero) for zero in zeros), batch=False)


def test_sums_and_tables(same):
    same(ops.IntReduceSum((-2, -1), False), codes(dtypes.i16, 2, 3, 5, 4), quants=(Quant((0.1,)),))
    x = np.arange(-128, 128, dtype=np.int64).astype(np.int8).reshape(2, 2, 64)
    same(ops.IntTable(0.1, 1, dtypes.i16), x, Data(codes(dtypes.i16, 256)), quants=(Quant((0.1,), 3),))


@pytest.mark.parametrize("channels", [1, 7, 96, 1536])
@pytest.mark.parametrize("kind", [ops.IntLayerNorm, ops.IntRMSNorm])
def test_norms(same, kind, channels):
    unit = 2.0**-NORM_BITS
    step = 0.05 / 2.0**40 / unit
    gamma = Data(fixedpoint.quantized(RNG.normal(size=channels), dtypes.i32, step), Quant((step,)))
    beta = Data(fixedpoint.quantized(RNG.normal(size=channels), dtypes.i64, step * unit), Quant((step * unit,)))
    operands = (gamma,) if kind is ops.IntRMSNorm else (gamma, beta)
    same(kind(0.05, 9, dtypes.u8, 1e-6), rows_for_norms(channels), *operands, quants=(Quant((1e-3,)),))


def test_norms_of_bytes_with_a_zero_point(same):
    step = 0.05 / 2.0**40 * 2.0**NORM_BITS
    gamma = Data(fixedpoint.quantized(RNG.normal(size=9), dtypes.i32, step), Quant((step,)))
    x = codes(dtypes.u8, 4, 2, 9)
    x[0, 0], x[1, 1] = 0, 255
    same(ops.IntLayerNorm(0.05, 9, dtypes.u8, 1e-6), x, gamma, quants=(Quant((0.03,), 200),))


def test_a_root_too_wide_for_64_bits_is_refused():
    step = 0.05 / 2.0**40 * 2.0**NORM_BITS
    gamma = Data(np.ones(4096, np.int32), Quant((step,)))
    graph, _ = graph_of_one(
        ops.IntLayerNorm(0.05, 9, dtypes.u8, 1e-30), codes(dtypes.i16, 2, 4096), gamma, quants=(Quant((1e-3,)),)
    )
    with pytest.raises(UnsupportedOp, match=r"a division by up to \d+ with a quotient of 41 bits has no form"):
        build(graph, spellings=NO_MULTIPLY)


@pytest.mark.parametrize("length", [1, 5, 197, 600])
def test_softmax(same, length):
    x = codes(dtypes.i16, 6, length, low=-400, high=400)
    x[0], x[1], x[2], x[2, 0] = 0, dtypes.i16.max, dtypes.i16.min, dtypes.i16.max
    quant = Quant((0.02,))
    keep = RNG.random((6, length)) < 0.5
    keep[3] = False
    same(ops.IntExp(), x, quants=(quant,))
    same(ops.IntExp(), x, keep, quants=(quant,))
    same(ops.IntSoftmax(255, dtypes.u8), x, quants=(quant,))
    same(ops.IntSoftmax(65535, dtypes.u16), x, quants=(quant,))


@pytest.mark.parametrize("length", [3, 197, 700])
@pytest.mark.parametrize("bits", [0, 7, 16])
def test_weighted_means(same, length, bits):
    e, v = codes(dtypes.u8, 2, 3, 4, length), codes(dtypes.i8, 2, 3, length, 5)
    e[0, 0, 0], e[0, 0, 1], v[0, 0, :, 0], v[0, 0, :, 1] = 0, 255, -128, 127
    if bits == 16:
        v = (v // 8).astype(np.int8)
    same(ops.IntWeightedMean(bits), e, v, quants=(Quant((1 / 255,)), Quant((0.1,))))


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), ratio=st.floats(1e-9, 1e6), zero=st.integers(-128, 127))
def test_requantize_of_any_integers_by_any_ratio(seed, ratio, zero):
    x = np.random.default_rng(seed).integers(-(2**31), 2**31, (3, 5)).astype(np.int32)
    graph, feed = graph_of_one(ops.Requantize(0.01, zero, dtypes.i8), x, quants=(Quant((0.01 * ratio,)),))
    (found,) = taps(graph, graph.outputs, spellings=NO_MULTIPLY)(feed)
    np.testing.assert_array_equal(found, interpret(graph, feed)["y"])


def test_real_numbers_are_scaled_at_the_border_only(tmp_path):
    graph = Graph("border")
    x = graph.add_input("x", TensorType(dtypes.f32, (2, 5)))
    q = graph.add(ops.Quantize(0.1, 5, dtypes.u8), x).result
    y = graph.add(ops.Dequantize(), graph.add(ops.Requantize(0.3, 0, dtypes.i8), q).result).result
    graph.add(ops.Return(("y",)), y)
    write(graph, tmp_path / "model.onnx", spellings=NO_MULTIPLY)
    found = inspect_no_multiply(tmp_path / "model.onnx")
    assert (found.verdict, found.boundary) == ("no multiplications between its boundaries", ("x", "y"))
    assert graph.tail is not None
    graph.erase(graph.tail)
    again = graph.add(ops.Dequantize(), graph.add(ops.Quantize(0.1, 0, dtypes.i8), y).result).result
    graph.add(ops.Return(("y",)), again)
    with pytest.raises(UnsupportedOp, match="Dequantize inside the graph has no form without multiplications"):
        build(graph, spellings=NO_MULTIPLY)


@pytest.mark.parametrize("dtype", ["i64", "i32", "u8"])
def test_plain_integers_by_a_constant(same, dtype):
    x = codes(BY_NAME[dtype], 3, 5)
    for factor in ([64], [0], [3, 255, 7, 0, 8]):
        same(ops.Mul(), x, Data(np.array(factor, x.dtype)))
    same(ops.Mul(), Data(np.array(100, x.dtype)), x)


def test_what_multiplies_is_refused_by_name():
    for dtype, kind in ((dtypes.f32, ops.Mul), (dtypes.i32, ops.Mul), (dtypes.f32, ops.MatMul), (dtypes.i64, ops.Div)):
        graph = Graph("real")
        x = graph.add_input("x", TensorType(dtype, (2, 2)))
        graph.add(ops.Return(("y",)), graph.add(kind(), x, x).result)
        with pytest.raises(UnsupportedOp, match=f"{kind.__name__}.* has no form without multiplications"):
            build(graph, spellings=NO_MULTIPLY)
