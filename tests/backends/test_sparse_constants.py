"""Weights with zeros lie in the file without them; ONNX Runtime makes the same initializers of them as it loads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest

from planish.backends.onnx.dialect import ORT_CPU
from planish.backends.onnx.writer import build
from planish.ir import dtypes, ops
from planish.ir.data import Data
from planish.ir.graph import Graph
from planish.ir.interpret import interpret
from planish.ir.loc import Loc
from planish.ir.op import Return
from planish.ir.sparsity import blocks, pattern
from planish.ir.types import Quant, Sparsity, TensorType
from planish.ir.verify import verify

COMPACT = replace(ORT_CPU, compact=True)
RNG = np.random.default_rng(11)


def weight(shape: tuple[int, ...], zeros: Sparsity, density: float, dtype: type = np.float32) -> np.ndarray:
    """Random numbers but for zero blocks."""
    array = np.clip(np.round(RNG.normal(size=shape) * 40) + 0.0, -127, 127).astype(dtype)
    axis = len(shape) - 1 if zeros.axis is None else zeros.axis
    length = zeros.block[0] if zeros.kind == "block" else 1
    kept = RNG.random(blocks(array, length, axis).shape[:-1]) < density
    wide = np.repeat(kept, length, axis=-1)[..., : shape[axis]]
    return np.where(np.moveaxis(wide, -1, axis), array, 0).astype(dtype)


def graph_of(w: Data, convolution: bool = False) -> Graph:
    graph = Graph("g")
    graph.opsets = {"": 18}
    shape = tuple(int(dim) for dim in w.type.dims)
    x = graph.add_input("x", TensorType(dtypes.f32, (2, shape[1], 5, 5) if convolution else (3, shape[0])))
    if convolution:
        y = ops.Conv((1, 1), (1, 1, 1, 1), (1, 1))(x, w)
    elif w.type.quant is not None:
        y = ops.Dequantize()(ops.IntLinear()(ops.Quantize(0.05, 3, dtypes.u8)(x), w))
    else:
        y = ops.Linear()(x, w)
    graph.attach(y, None, Loc(("y",)))
    graph.add(Return(("y",)), y)
    verify(graph)
    return graph


def run(graph: Graph, folder: Path) -> tuple[onnx.ModelProto, list[str]]:
    """The compact model, after a check that it computes what the dense one does, and ops that ONNX Runtime runs."""
    small, dense = (onnx_ir.to_proto(build(graph, spellings=spelling)) for spelling in (COMPACT, ORT_CPU))
    onnx.checker.check_model(small, full_check=True)
    feed = {v.hint: RNG.normal(size=tuple(map(int, v.tensor.dims))).astype(np.float32) for v in graph.inputs}
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    sessions = [
        onnxruntime.InferenceSession(model.SerializeToString(), chosen, providers=["CPUExecutionProvider"])
        for model, chosen in ((small, options), (dense, None))
    ]
    found, expected = (session.run(None, feed)[0] for session in sessions)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found, interpret(graph, feed)["y"], rtol=1e-4, atol=1e-2)
    return small, [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


def held(model: onnx.ModelProto) -> int:
    return sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer)


@pytest.mark.parametrize("name", ["ob4", "ob16", "ib4", "unstructured"])
@pytest.mark.parametrize("shape", [(128, 64), (130, 67)])
def test_linear_layers_are_folded_to_one_product(name, shape, tmp_path):
    zeros = pattern(name)
    w = weight(shape, zeros, 0.2)
    model, left = run(graph_of(Data(w, None, zeros)), tmp_path)
    assert left == ["MatMul"]
    length = zeros.block[0] if zeros.kind == "block" else 1
    count = int(np.count_nonzero(np.any(blocks(w, length, 1 if zeros.axis is None else zeros.axis), axis=-1)))
    assert held(model) <= count * length * 4 + w.size / length / 8 + 512


def test_convolutions_and_codes_too(tmp_path):
    zeros = pattern("ob4", "conv")
    model, left = run(graph_of(Data(weight((32, 16, 3, 3), zeros, 0.2), None, zeros), convolution=True), tmp_path)
    assert set(left) == {"Conv", "ReorderInput", "ReorderOutput"}
    assert held(model) < 0.3 * 32 * 16 * 9 * 4
    codes = Data(weight((256, 128), pattern("ob4"), 0.2, np.int8), Quant((0.5,) * 128, 0, 1), pattern("ob4"))
    model, left = run(graph_of(codes), tmp_path)
    assert "MatMulInteger" in left
    assert not {"CumSum", "Gather", "BitShift", "Slice"} & set(left)
    assert held(model) < 0.3 * 256 * 128


@pytest.mark.parametrize(
    ("name", "density"),
    [("ob4", 0.95), ("2:4", 0.4)],
)
def test_weights_that_would_hardly_be_smaller_and_what_tensorrt_looks_for_stay_dense(name, density, tmp_path):
    w = weight((128, 64), pattern("ob4"), density)
    if name == "2:4":
        w[::4] = w[1::4] = 0
    graph = graph_of(Data(w, None, pattern(name)))
    assert [node.op_type for node in onnx_ir.to_proto(build(graph, spellings=COMPACT)).graph.node] == ["MatMul"]


def test_zeros_with_a_sign_keep_it():
    w = np.zeros((128, 64), np.float32)
    w[5, 8:12] = -0.0
    model = onnx_ir.to_proto(build(graph_of(Data(w, None, pattern("ob4"))), spellings=COMPACT))
    (stored,) = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith(".blocks")]
    assert stored.shape == (2, 4)
    np.testing.assert_array_equal(np.signbit(stored), [[False] * 4, [True] * 4])
