"""Sparse attention in ONNX: plain ops that stock ONNX Runtime runs, whatever the patterns and the batch."""

import numpy as np
import onnx_ir
import onnxruntime
import pytest

from planish.backends.onnx.dialect import ORT_CPU, STANDARD
from planish.backends.onnx.writer import build
from planish.ir import dtypes, ops
from planish.ir.graph import Graph
from planish.ir.loc import Loc
from planish.ir.op import Return
from planish.ir.types import tensor

RNG = np.random.default_rng(8)
PLAIN = {
    "Gather",
    "Reshape",
    "Transpose",
    "MatMul",
    "Softmax",
    "Mul",
    "Add",
    "Where",
    "Concat",
    "Slice",
    "Expand",
    "Shape",
}
HEADS = (
    "window 32 blocks 32",
    "skip",
    "stripe 0:16,48:64",
    "window 5",
    "window 4 blocks 32 period 16",
    "window 32 blocks 32",
)


def graph_of(causal: bool) -> Graph:
    graph = Graph()
    q, k, v = (graph.add_input(name, tensor(dtypes.f32, "batch", len(HEADS), 256, 8)) for name in "qkv")
    mean = RNG.normal(size=(1, 8)).astype(np.float32)
    y = ops.SparseAttention(0.4, HEADS, causal)(q, k, v, mean)
    graph.attach(y, None, Loc(("attention",)))
    graph.add(Return(("y",)), y)
    return graph


@pytest.mark.parametrize("spellings", [ORT_CPU, STANDARD])
@pytest.mark.parametrize("causal", [False, True])
def test_it_computes_what_numpy_says(causal, spellings):
    graph = graph_of(causal)
    model = onnx_ir.serde.serialize_model(
        build(graph, opset=23 if spellings is STANDARD else None, spellings=spellings)
    )
    kinds = {node.op_type for node in model.graph.node}
    assert kinds <= PLAIN | ({"Attention"} if spellings is STANDARD else set())
    assert {node.domain for node in model.graph.node} == {""}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (node,) = graph.nodes(ops.SparseAttention)
    for batch in (1, 3):
        arrays = [RNG.normal(size=(batch, len(HEADS), 256, 8)).astype(np.float32) for _ in "qkv"]
        (y,) = session.run(None, dict(zip("qkv", arrays, strict=True)))
        expected = node.op.evaluate(*arrays, node.inputs[3].op.data.numpy())
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
