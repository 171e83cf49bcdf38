"""Codes of a codebook lie in the file in their bits, and ONNX Runtime unpacks them to the same codes."""

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest

from planish.backends.onnx.dialect import STANDARD
from planish.backends.onnx.writer import build
from planish.backends.ort.taps import taps
from planish.ir import dtypes, ops
from planish.ir.codebooks import CODEBOOKS, GROUP
from planish.ir.data import Data
from planish.ir.graph import Graph
from planish.ir.interpret import interpret
from planish.ir.loc import Loc
from planish.ir.op import Return
from planish.ir.types import Quant, TensorType
from planish.ir.verify import verify

RNG = np.random.default_rng(8)


def codes_of(name, shape, axis):
    book = CODEBOOKS[name]
    if book.values is not None:
        return RNG.choice(np.asarray(book.values), shape).astype(np.int8)
    rows = np.empty((shape[axis], int(np.prod(shape)) // shape[axis]), np.int8)
    for start in range(0, rows.shape[1], GROUP):
        levels = RNG.integers(0, 128, (shape[axis], book.levels))
        part = rows[:, start : start + GROUP]
        chosen = np.take_along_axis(levels, RNG.integers(0, book.levels, part.shape), axis=1)
        part[...] = chosen * RNG.choice([-1, 1], part.shape)
    others = [extent for i, extent in enumerate(shape) if i != axis]
    return np.moveaxis(rows.reshape(shape[axis], *others), 0, axis)


def linear(codes, name, scale=None, bias=None):
    graph = Graph("g")
    graph.opsets = {"": 18}
    x = graph.add_input("x", TensorType(dtypes.f32, (3, codes.shape[0])))
    scales = tuple(RNG.uniform(0.1, 1, codes.shape[1]).tolist()) if scale is None else scale
    y = ops.ShiftLinear()(x, Data(codes, Quant(scales, 0, 1, name)), *([] if bias is None else [bias]))
    graph.attach(y, None, Loc(("y",)))
    graph.add(Return(("y",)), y)
    verify(graph)
    return graph


@pytest.mark.parametrize("name", CODEBOOKS)
@pytest.mark.parametrize("shape", [(5, 3), (33, 7), (64, 16), (1, 1)])
def test_a_linear_layer_by_packed_codes_is_that_by_its_codes(name, shape):
    graph = linear(codes_of(name, shape, 1), name, bias=RNG.normal(size=shape[1]).astype(np.float32))
    feed = {"x": RNG.normal(size=(3, shape[0])).astype(np.float32)}
    (found,) = taps(graph, list(graph.outputs))(feed)
    np.testing.assert_allclose(found, interpret(graph, feed)["y"], rtol=2e-5, atol=2e-3)


@pytest.mark.parametrize("name", ["apot6", "apot5", "apot4", "ternary", "bcq3"])
def test_integers_by_packed_codes_are_the_same(name):
    codes = codes_of(name, (6, 3, 3, 2), 0)
    graph = Graph("g")
    x = graph.add_input("x", TensorType(dtypes.f32, (2, 3, 7, 6)))
    q = ops.Quantize(0.05, 3, dtypes.i8)(x)
    y = ops.Dequantize()(ops.IntConv((1, 2), (1, 0, 1, 0), (1, 1))(q, Data(codes, Quant((0.5,) * 6, 0, 0, name))))
    graph.attach(y, None, Loc(("y",)))
    graph.add(Return(("y",)), y)
    verify(graph)
    feed = {"x": RNG.normal(size=(2, 3, 7, 6)).astype(np.float32)}
    (found,) = taps(graph, list(graph.outputs))(feed)
    np.testing.assert_array_equal(found, interpret(graph, feed)["y"])


@pytest.mark.parametrize(("name", "share"), [("apot6", 6), ("apot5", 5), ("apot4", 4), ("bcq3", 4), ("ternary", 2)])
def test_the_file_is_as_small_as_the_codebook(name, share):
    codes = codes_of(name, (512, 384), 1)
    model = onnx_ir.to_proto(build(linear(codes, name), spellings=STANDARD))
    onnx.checker.check_model(model, full_check=True)
    held = sum(onnx.numpy_helper.to_array(t).nbytes for t in model.graph.initializer)
    assert codes.size * share / 8 <= held <= codes.size * share / 8 * 1.03 + 4096


def test_evenly_spaced_codes_stay_four_bits_in_memory():
    codes = codes_of("int4", (300, 7), 1)
    graph = linear(codes, "int4", bias=RNG.normal(size=7).astype(np.float32))
    model = onnx_ir.to_proto(build(graph))
    assert [node.op_type for node in model.graph.node] == ["MatMulNBits"]
    assert sum(onnx.numpy_helper.to_array(t).nbytes for t in model.graph.initializer) < 0.62 * 512 * 7 + 200
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = RNG.normal(size=(3, 300)).astype(np.float32)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], interpret(graph, {"x": x})["y"], rtol=1e-5, atol=1e-3)


def test_nothing_of_a_weight_is_left_that_nobody_reads():
    graph = linear(codes_of("int4", (40, 6), 1), "int4")
    model = onnx_ir.to_proto(build(graph))
    read = {name for node in model.graph.node for name in node.input}
    assert {t.name for t in model.graph.initializer} <= read
