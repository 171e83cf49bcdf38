"""Inactive neurons on the command line: what was measured is shown, the artifact leaves neurons out and agrees."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """One token through a layer of 512 neurons, of which about one in ten is active."""
    rng = np.random.default_rng(0)
    arrays = {
        "w1": rng.standard_normal((128, 512)) / 11.3,
        "b1": np.full(512, -1.28),
        "w2": rng.standard_normal((512, 128)),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="up"),
        helper.make_node("Add", ["a", "b1"], ["b"], name="bias"),
        helper.make_node("Relu", ["b"], ["c"], name="relu"),
        helper.make_node("MatMul", ["c", "w2"], ["d"], name="down"),
        helper.make_node("Add", ["d", "x"], ["y"], name="residual"),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 1, 128)) for name in "xy"]
    weights = [numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()]
    graph = helper.make_graph(nodes, "decoder", ports[:1], ports[1:], weights)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "samples.npz"
    np.savez(path, x=np.random.default_rng(1).standard_normal((16, 1, 1, 128)).astype(np.float32))
    return path


@pytest.mark.tvm
def test_the_compiled_artifact_leaves_neurons_out(model, data, tmp_path):
    pytest.importorskip("tvm")
    options = ("--recipe", "skip-inactive", "--target", "tvm-cpu")
    found = small_models.optimize(model, tmp_path, data, *options, "--json")
    assert found.exit_code == 0, found.output
    result = json.loads(found.stdout)
    (layer,) = result["inactive"][0]["layers"]
    assert layer["taken"]
    assert 0.85 < layer["proved"] < layer["inactive"] < 0.95
    (row,) = [row for row in result["passes"] if row["name"] == "skip-inactive"]
    assert row["rewrites"] == 1
    assert result["verification"]["passed"]
    shown = small_models.optimize(model, tmp_path, data, *options, "--force")
    assert "Inactive neurons" in shown.stdout


def test_onnx_runtime_gains_nothing_and_is_told_so(model, data, tmp_path):
    found = small_models.optimize(model, tmp_path, data, "--recipe", "skip-inactive", "--json")
    assert found.exit_code == 0, found.output
    result = json.loads(found.stdout)
    assert result["inactive"] == []
    (row,) = [row for row in result["passes"] if row["name"] == "skip-inactive"]
    assert "computes all neurons anyway" in str(row)
