"""Norms that ONNX Runtime's optimizer writes, with skip connections that broadcast."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from planish.frontend import load
from planish.ir.interpret import interpret
from planish.ir.ops import Opaque


def skip_norm(path: Path, skip: tuple[int, ...]) -> Path:
    """LayerNorm of x[2, 5, 8] + skip, with the sum as a second output."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    rng = np.random.default_rng(0)
    operands = ["x", "skip", "gamma", "beta"]
    node = helper.make_node("SkipLayerNormalization", operands, ["y", "", "", "sum"], domain="com.microsoft")
    graph = helper.make_graph(
        [node],
        "main",
        [helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", (2, 5, 8)), ("skip", skip))],
        [helper.make_tensor_value_info(name, 1, (2, 5, 8)) for name in ("y", "sum")],
        [numpy_helper.from_array(rng.standard_normal(8).astype(np.float32), name) for name in ("gamma", "beta")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.mark.parametrize("skip", [(2, 5, 8), (1, 5, 8), (5, 8)])
def test_skip_connections_broadcast(skip: tuple[int, ...], tmp_path: Path):
    path = skip_norm(tmp_path / "model.onnx", skip)
    graph = load(path)
    assert [node.op.name for node in graph if node.op.name not in ("Const", "Return")] == ["Add", "LayerNorm"]
    rng = np.random.default_rng(1)
    feed = {name: rng.standard_normal(s).astype(np.float32) for name, s in (("x", (2, 5, 8)), ("skip", skip))}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = interpret(graph, feed)
    for value, want in zip(found.values(), session.run(["y", "sum"], feed), strict=True):
        np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-5)


def test_a_skip_connection_that_is_larger_is_carried(tmp_path: Path):
    graph = load(skip_norm(tmp_path / "model.onnx", (3, 2, 5, 8)))
    assert graph.nodes(Opaque)
