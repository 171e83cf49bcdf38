"""Every op of the table computes in torch what its numpy law says, and lets a gradient through."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from planish.ir import dtypes, ops
from planish.ir.graph import Graph
from planish.ir.op import Op, Return
from planish.ir.types import of_array

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

from planish.tools.recovery.torch_graph import TorchGraph  # noqa: E402
from planish.tools.recovery.torch_ops import TORCH_OPS  # noqa: E402

RNG = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return (0.5 + RNG.random(shape)).astype(np.float32)


def mask(*shape: int) -> np.ndarray:
    chosen = RNG.random(shape) < 0.6
    chosen[..., 0] = True
    return chosen


def whole(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


X, Q, K = normal(2, 3, 5), normal(2, 4, 5, 6), normal(2, 2, 7, 6)
UNARY = (
    *(ops.Relu(), ops.Gelu(), ops.Gelu("tanh"), ops.Tanh(), ops.Sigmoid(), ops.Softplus(), ops.Swish(), ops.Swish(1.7)),
    *(ops.HardSigmoid(), ops.HardSigmoid(0.3, 0.1), ops.HardSwish(), ops.LeakyRelu(0.2), ops.Elu(0.7), ops.Clip()),
    *(ops.Clip(-0.5, 0.7), ops.Clip(lo=0.1), ops.Clip(hi=0), ops.Clip(1.0, -1.0), ops.Abs(), ops.Neg(), ops.Sign()),
    *(ops.Exp(), ops.Erf(), ops.Sin(), ops.Cos(), ops.Floor(), ops.Ceil(), ops.Round(), ops.Identity()),
    *(ops.Cast(dtypes.f32), ops.Softmax(), ops.Softmax(-2), ops.LogSoftmax(-3), ops.Transpose((2, 0, 1))),
    *(ops.Reshape((0, -1)), ops.Reshape((5, 6)), ops.Unsqueeze((0, 2, 5)), ops.Tile((2, 1, 3)), ops.Split(2, (1, 4))),
    *(ops.Slice((1,), (3,), (1,), (1,)), ops.Slice((-1, 0), (-100, 4), (0, 2), (-1, 2))),
    *(ops.Slice((4,), (0,), (2,), (-2,)), ops.Slice((3,), (1,), (2,), (1,))),
    *(ops.Pad((0, 1, 2, 1, 0, 3), value=1.5), ops.Pad((0, -1, 2, 1, 0, -3)), ops.Pad((0, 1, 2, 1, 0, 3), "reflect")),
    *(ops.Pad((1, 0, 2, 0, -1, 3), "edge"), ops.Pad((0, 2, 0, 0, 2, 0), "wrap")),
    *(
        kind(axes, keep)
        for kind in (ops.ReduceMean, ops.ReduceSum)
        for axes in ((-1,), (-3, -1))
        for keep in (False, True)
    ),
    *(kind((-2, -1), False) for kind in (ops.ReduceMax, ops.ReduceMin, ops.ReduceProd, ops.ReduceL2)),
    *(ops.ReduceSumSquare((-2,)), ops.ReduceProd((-3, -1)), ops.LayerNorm(), ops.LayerNorm(-2, 1e-3), ops.RMSNorm()),
)
CASES: list[tuple[Op, tuple[Any, ...]]] = [
    *((op, (X,)) for op in UNARY),
    *((op, (positive(2, 3),)) for op in (ops.Sqrt(), ops.Reciprocal(), ops.Log())),
    *((op(), (X, normal(3, 1))) for op in (ops.Add, ops.Sub, ops.Mul, ops.Max, ops.Min)),
    (ops.Div(), (X, positive(3, 5))),
    (ops.Mod(True), (X, positive(3, 5))),
    (ops.Pow(), (positive(2, 3), normal(3))),
    (ops.Pow(), (X, np.float32(3.0))),
    (ops.Pow(), (X, np.array(2, np.int64))),
    (ops.Where(), (mask(2, 1, 5), X, normal(3, 1))),
    (ops.Cast(dtypes.f32), (np.array([3, 200], np.uint8),)),
    (ops.Linear(), (X, normal(5, 4))),
    (ops.Linear(), (X, normal(5, 4), normal(4))),
    (ops.MatMul(), (Q, normal(6, 3))),
    (ops.Binarize(), (Q,)),
    (ops.Binarize(-1), (normal(2, 3),)),
    (ops.AddMatMul(), (np.sign(Q), normal(6, 3))),
    (ops.MatMul(), (normal(5), normal(2, 5, 7))),
    (ops.Conv((2,), (1, 2), (2,)), (normal(2, 3, 11), normal(4, 3, 3), normal(4))),
    (ops.Conv((2, 1), (1, 0, 2, 1), (1, 2), 2), (normal(2, 4, 9, 8), normal(6, 2, 3, 2))),
    (ops.Conv((1, 2, 1), (0,) * 6, (1, 1, 1)), (normal(1, 2, 3, 5, 4), normal(3, 2, 2, 2, 2), normal(3))),
    (ops.Attention(0.4), (Q, normal(2, 4, 7, 6), normal(2, 4, 7, 3))),
    (ops.Attention(0.4, True), (Q, normal(2, 4, 7, 6), normal(2, 4, 7, 3))),
    (ops.Attention(0.4), (Q, K, normal(2, 2, 7, 3))),
    (ops.Attention(0.4), (Q, K, normal(2, 2, 7, 3), mask(5, 7))),
    (ops.Attention(0.4, True), (Q, K, normal(2, 2, 7, 3), normal(2, 1, 5, 7))),
    (ops.RotaryEmbedding(), (Q, normal(1, 5, 3), normal(1, 5, 3))),
    (ops.RotaryEmbedding(True), (Q, normal(2, 5, 3), normal(2, 5, 3))),
    (ops.LayerNorm(eps=1e-3), (X, normal(5), normal(5))),
    (ops.LayerNorm(-2), (X, normal(3, 5))),
    (ops.RMSNorm(-2, 1e-3), (X, normal(3, 5))),
    (ops.BatchNorm(1e-3), (X, normal(3), normal(3), normal(3), positive(3))),
    (ops.InstanceNorm(), (Q, normal(4), normal(4))),
    (ops.MaxPool((3, 2), (2, 1), (1, 0, 1, 1), (1, 2)), (normal(1, 2, 7, 6),)),
    (ops.MaxPool((2,), (2,), (0, 0), (1,)), (X,)),
    (ops.AveragePool((3, 2), (2, 1), (1, 0, 2, 1)), (normal(1, 2, 7, 6),)),
    (ops.AveragePool((3, 2), (2, 1), (1, 0, 2, 1), True), (normal(1, 2, 7, 6),)),
    (ops.AveragePool((2, 2, 2), (1, 1, 1), (0,) * 6), (normal(1, 2, 3, 3, 3),)),
    (ops.DynamicReshape(), (X, whole(0, -1))),
    (ops.DynamicReshape(True), (X, whole(6, 5))),
    (ops.Squeeze((0, 2)), (normal(1, 3, 1),)),
    (ops.Expand(), (normal(3, 1), whole(2, 1, 5))),
    (ops.Concat(1), (X, normal(2, 1, 5), X)),
    (ops.Gather(1), (X, np.array([[0, -1], [2, 1]], np.int32))),
    (ops.Gather(0), (X, np.array(-1))),
]


def test_every_op_of_the_table_is_tried():
    assert {type(op) for op, _ in CASES} == set(TORCH_OPS)


@pytest.mark.parametrize(("op", "arrays"), CASES, ids=lambda part: repr(part) if isinstance(part, Op) else "")
def test_torch_computes_what_the_law_says(op, arrays):
    arrays = [np.asarray(array) for array in arrays]
    graph = Graph()
    # A shape must follow from the contents of an int64 operand; of the others only the type counts.
    types = [of_array(array) if array.dtype == np.int64 else of_array(array).interface() for array in arrays]
    node = graph.add(op, *(graph.add_input(f"x{i}", type_) for i, type_ in enumerate(types)))
    graph.add(Return(tuple(f"y{i}" for i in range(len(node.results)))), *node.results)
    feed = {f"x{i}": torch.from_numpy(array.copy()) for i, array in enumerate(arrays)}
    for tensor in feed.values():
        if tensor.dtype == torch.float32:
            tensor.requires_grad_()
    found, _ = TorchGraph(graph)(feed)
    expected = op.evaluate(*arrays)
    for actual, true in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
        assert tuple(actual.shape) == true.shape
        np.testing.assert_allclose(actual.detach().numpy(), true, rtol=1e-5, atol=1e-5)
    if any(tensor.requires_grad for tensor in feed.values()):
        sum(tensor.sum() for tensor in found).backward()
        assert any(tensor.grad is not None for tensor in feed.values())


def test_half_precision_is_computed_in_float32():
    graph = Graph()
    x = graph.add_input("x", of_array(np.zeros((3, 4), np.float16)).interface())
    graph.add(Return(("y",)), graph.add(ops.Exp(), x).result)
    (y,), _ = TorchGraph(graph)({"x": torch.zeros(3, 4, dtype=torch.float16)})
    assert y.dtype == torch.float32


def test_rows_that_see_nothing_have_no_gradient_that_is_not_a_number():
    graph = Graph()
    q, k, v = (graph.add_input(name, of_array(Q).interface()) for name in "qkv")
    seen = np.ones((2, 1, 5, 5), np.bool_)
    seen[0, :, 2] = False
    mask_ = graph.add_input("mask", of_array(seen).interface())
    y = graph.add(ops.Attention(0.4), q, k, v, mask_).result
    there = graph.add(ops.Not(), graph.add(ops.IsNaN(), y).result).result
    zero = graph.add_input("zero", of_array(np.zeros((), np.float32)).interface())
    graph.add(Return(("y",)), graph.add(ops.Where(), there, y, zero).result)
    feed = {name: torch.from_numpy(Q.copy()).requires_grad_() for name in "qkv"}
    (result,), _ = TorchGraph(graph)({**feed, "mask": torch.from_numpy(seen), "zero": torch.zeros(())})
    result.sum().backward()
    assert all(torch.isfinite(tensor.grad).all() for tensor in feed.values())
