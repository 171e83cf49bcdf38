"""Weights that GPUs can skip zeros of: the axis that a product sums over, in every spelling that ONNX has for it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import TensorProto, numpy_helper

from planish.tools.semi_structured import TORCH_SHAPES, SemiStructured, semi_structured, why_not_torch

RNG = np.random.default_rng(24)


def two_of_four(shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Random numbers; of each four neighbours along an axis, two are zero."""
    moved = RNG.normal(size=shape).astype(np.float32).swapaxes(axis, -1).copy()
    fours = moved.reshape(-1, 4)
    fours[np.arange(len(fours))[:, None], RNG.permuted(np.tile(np.arange(4), (len(fours), 1)), axis=1)[:, :2]] = 0
    return fours.reshape(moved.shape).swapaxes(axis, -1).copy()


def found_in(nodes: list[onnx.NodeProto], **constants: np.ndarray) -> list[SemiStructured]:
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = oh.make_graph(
        nodes,
        "g",
        [oh.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [oh.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        tensors,
    )
    return semi_structured(oh.make_model(graph))


@pytest.mark.parametrize(
    ("node", "shape", "axis"),
    [
        (oh.make_node("MatMul", ["x", "w"], ["y"]), (32, 16), 0),
        (oh.make_node("MatMul", ["x", "w"], ["y"]), (3, 32, 16), 1),
        (oh.make_node("MatMul", ["w", "x"], ["y"]), (16, 32), 1),
        (oh.make_node("Gemm", ["x", "w"], ["y"]), (32, 16), 0),
        (oh.make_node("Gemm", ["x", "w"], ["y"], transB=1), (16, 32), 1),
        (oh.make_node("Conv", ["x", "w"], ["y"]), (16, 32, 3, 3), 1),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else None,
)
def test_the_axis_that_a_product_sums_over_decides(node, shape, axis):
    (weight,) = found_in([node], w=two_of_four(shape, axis))
    assert (weight.name, weight.op, weight.shape, weight.axis, weight.fault) == ("w", node.op_type, shape, axis, "")
    assert weight.eligible
    other = next(i for i, extent in enumerate(shape) if i != axis and extent % 4 == 0)
    (weight,) = found_in([node], w=two_of_four(shape, other))
    assert weight.fault == f"its zeros are 2:4 along axis {other}, but products sum over axis {axis}"


@pytest.mark.parametrize("zero", [None, 0, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_it_looks_through_quantization_and_transposes(zero, transposed):
    w = two_of_four((32, 16), 0)
    codes = np.clip(np.round(w * 30), -100, 100).astype(np.int8)
    constants = {"w": (codes.T if transposed else codes) + np.int8(zero or 0), "s": np.ones(1, np.float32)}
    inputs = ["w", "s"]
    if zero is not None:
        constants["z"] = np.full(1, zero, np.int8)
        inputs.append("z")
    nodes = [oh.make_node("DequantizeLinear", inputs, ["d"]), oh.make_node("Cast", ["d"], ["c"], to=TensorProto.FLOAT)]
    nodes += [oh.make_node("Transpose", ["c"], ["t"], perm=[1, 0])] if transposed else []
    nodes += [oh.make_node("MatMul", ["x", "t" if transposed else "c"], ["y"])]
    (weight,) = found_in(nodes, **constants)
    assert weight.name == "w"
    assert weight.fault == ("its codes have a zero point" if zero else "")


def test_quantization_per_channel_and_in_both_directions():
    w = two_of_four((16, 32, 1, 1), 1)
    nodes = [
        oh.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], axis=0),
        oh.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=0),
        oh.make_node("Conv", ["x", "d"], ["y"]),
    ]
    (weight,) = found_in(nodes, w=w, s=np.full(16, 0.1, np.float32), z=np.zeros(16, np.int8))
    assert weight.eligible
    codes = np.where(w == 0, 0, 5).astype(np.int8) + np.arange(16, dtype=np.int8).reshape(-1, 1, 1, 1)
    (weight,) = found_in(nodes[1:], q=codes, s=np.full(16, 0.1, np.float32), z=np.arange(16, dtype=np.int8))
    assert weight.fault == "its codes have a zero point"


def test_what_else_stands_in_the_way():
    node = oh.make_node("MatMul", ["x", "w"], ["y"])
    ragged = RNG.normal(size=(34, 16)).astype(np.float32)
    ragged[::2] = 0
    (weight,) = found_in([node], w=ragged)
    assert weight.fault == "it sums over 34, which isn't a multiple of 4"
    thin = two_of_four((32, 16), 0)
    thin[:3, 0], thin[4:8, 0] = 1.0, 0.0
    (weight,) = found_in([node], w=thin)
    assert weight.fault == "3 of 4 neighbours along axis 0 aren't 0, more than 2"
    codes = np.where(two_of_four((32, 16), 0) == 0, 0, 3).astype(np.int8)
    (weight,) = found_in([oh.make_node("MatMulInteger", ["x", "w"], ["y"])], w=codes)
    assert weight.fault == "TensorRT reads DequantizeLinear, not MatMulInteger"
    dense = RNG.normal(size=(32, 16)).astype(np.float32)
    assert found_in([node], w=dense) == []
    assert found_in([node, oh.make_node("Add", ["y", "w"], ["u"])], w=dense) == []


@pytest.mark.parametrize("backend", TORCH_SHAPES)
def test_torch_wants_multiples_of_its_tiles(backend):
    rows, columns = TORCH_SHAPES[backend]["float16"]
    assert why_not_torch(two_of_four((rows, 2 * columns), 1), backend) == ""
    few = why_not_torch(two_of_four((rows + 8, columns), 1), backend)
    assert few == f"it has {rows + 8} outputs, not a multiple of {rows}"
    assert "along axis 0, but products sum over axis 1" in why_not_torch(two_of_four((rows, columns), 0), backend)
    assert why_not_torch(two_of_four((32, 128), 1), backend, "float64") == f"{backend} has no float64"
    (weight,) = found_in([oh.make_node("MatMul", ["x", "w"], ["y"])], w=two_of_four((columns, 2 * rows), 0))
    assert weight.torch[backend] == ""


@pytest.mark.torch
def test_the_tiles_are_those_of_torch():
    semi = pytest.importorskip("torch.sparse.semi_structured")
    kinds = {"cutlass": semi.SparseSemiStructuredTensorCUTLASS, "cusparselt": semi.SparseSemiStructuredTensorCUSPARSELT}
    for backend, kind in kinds.items():
        wanted = {str(dtype).removeprefix("torch."): (c.sparse_min_rows, c.sparse_min_cols)
                  for dtype, c in kind._DTYPE_SHAPE_CONSTRAINTS.items()}  # fmt: skip
        assert {dtype: wanted[dtype] for dtype in TORCH_SHAPES[backend]} == TORCH_SHAPES[backend]
        assert all("float8" in dtype for dtype in wanted.keys() - TORCH_SHAPES[backend].keys())
