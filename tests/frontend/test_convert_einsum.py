"""Einsum and the norms of ONNX Runtime's optimizer, read as plain ops, against ONNX Runtime on the original."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from planish.frontend.reader import load_onnx
from planish.ir.interpret import interpret

SIZES = {"b": 2, "h": 3, "i": 4, "j": 5, "d": 6, "n": 2, "s": 7}


def model_of(equation: str, *shapes: tuple[int, ...]) -> onnx.ModelProto:
    node = helper.make_node("Einsum", [f"x{k}" for k in range(len(shapes))], ["y"], equation=equation)
    inputs = [helper.make_tensor_value_info(f"x{k}", onnx.TensorProto.FLOAT, shape) for k, shape in enumerate(shapes)]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    graph = helper.make_graph([node], "einsum", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def shapes_of(equation: str) -> list[tuple[int, ...]]:
    return [tuple(SIZES[c] for c in part) for part in equation.partition("->")[0].split(",")]


@pytest.mark.parametrize(
    "equation",
    [
        "bhid,bhjd->bhij",
        "bhij,bhjd->bhid",
        "bsd,dnh->bsnh",
        "bsnh,nhd->bsd",
        "bid,bjd->bij",
        "bid,bjd->jib",
        "ij,jd->id",
        "i,j->ij",
        "id,d->i",
        "bihd,bjhd->bhij",
    ],
)
def test_einsum_of_two_tensors_is_read_as_a_matrix_product(equation, tmp_path):
    model = model_of(equation, *shapes_of(equation))
    onnx.save(model, tmp_path / "model.onnx")
    graph = load_onnx(tmp_path / "model.onnx")
    assert "Opaque" not in {node.op.name for node in graph}
    rng = np.random.default_rng(0)
    feeds = {f"x{k}": rng.standard_normal(s).astype(np.float32) for k, s in enumerate(shapes_of(equation))}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(interpret(graph, feeds)["y"], session.run(None, feeds)[0], atol=1e-5)


@pytest.mark.parametrize("equation", ["ii->i", "bi,bj,bd->ijd", "bid->bi", "...i,ij->...j", "bid,jb->ij"])
def test_other_einsums_are_carried(equation, tmp_path):
    shapes = [
        tuple(SIZES.get(c, 2) for c in part) for part in equation.replace("...", "s").partition("->")[0].split(",")
    ]
    onnx.save(model_of(equation, *shapes), tmp_path / "model.onnx")
    assert "Opaque" in {node.op.name for node in load_onnx(tmp_path / "model.onnx")}
