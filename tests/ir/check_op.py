"""Checks for op classes. Import as `from check_op import check_op`."""

from __future__ import annotations

import ast
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

from planish.ir import dims, dtypes
from planish.ir.data import Data
from planish.ir.graph import Graph, Node, Value
from planish.ir.op import Const, Op
from planish.ir.types import Quant, TensorType, of_array


def check_op(
    op: Op,
    *arrays: np.ndarray | None,
    quants: Sequence[Quant | None] = (),
    fixed: Collection[int] = (),
) -> tuple[np.ndarray, ...]:
    """Evaluate `op`, check that infer agrees with the results, and return them.

    Agreement is checked for the concrete types; for each operand extent alone as a symbol; and for the contents of
    operands taken away. Also checks that the repr of the op is a Python expression.
    quants: quantization of operands, where they are codes. fixed: extents that the op must know, and that stay.
    """
    types = operand_types(*arrays, quants=quants)
    results = op.compute(arrays, types)
    results = results if isinstance(results, tuple) else (results,)
    for result, type_ in zip(results, _infer(op, types), strict=True):
        assert isinstance(result, np.ndarray), f"{op!r} evaluates to a {type(result).__name__}"
        assert (type_.dtype, type_.shape) == (dtypes.of(result), result.shape)
        if type_.known is not None:
            assert type_.known == tuple(int(v) for v in result.reshape(-1))
    for extent in {dim for type_ in types if type_ is not None for dim in type_.dims if dim > 1} - set(fixed):
        _check_symbol(op, types, extent, results)
    call = ast.parse(repr(op), mode="eval").body
    assert isinstance(call, ast.Call)
    assert isinstance(call.func, ast.Name)
    assert call.func.id == op.name
    return results


def operand_types(*arrays: np.ndarray | None, quants: Sequence[Quant | None] = ()) -> list[TensorType | None]:
    """Types of operands; those with a quantization are codes."""
    padded = [*quants, *[None] * (len(arrays) - len(quants))]
    return [None if array is None else Data(array, quant).type for array, quant in zip(arrays, padded, strict=True)]


def check_decompose(op: Op, *arrays: np.ndarray | None, atol: float = 1e-6) -> None:
    """Check that the decomposition has the type of the op and computes the same."""
    graph = Graph()
    values = [None if a is None else graph.add_input(f"x{i}", of_array(a).interface()) for i, a in enumerate(arrays)]
    parts = op.decompose(*values)
    assert isinstance(parts, Value)
    assert parts.type == Node(op, values).result.type
    environment = {value: array for value, array in zip(values, arrays, strict=True) if value is not None}
    actual, expected = evaluate_value(parts, environment), op.evaluate(*arrays)
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual.astype(np.float64), expected.astype(np.float64), rtol=atol, atol=atol)


def evaluate_value(value: Value, environment: dict[Value, np.ndarray]) -> np.ndarray:
    """The array that a value has when the given ones are known."""
    if value not in environment:
        assert value.node is not None
        node = value.node
        if isinstance(node.op, Const):
            return node.op.data.numpy()
        operands = [None if v is None else evaluate_value(v, environment) for v in node.operands]
        results = node.op.evaluate(*operands)
        results = results if isinstance(results, tuple) else (results,)
        environment.update(zip(node.results, results, strict=True))
    return environment[value]


def run_onnx(op_type: str, *arrays: np.ndarray | None, opset: int = 22, reference: bool = False, **attrs: Any) -> Any:
    """The first result of one ONNX node, by ONNX Runtime or by the reference evaluator of onnx."""
    names = [f"x{i}" if array is not None else "" for i, array in enumerate(arrays)]
    feeds = {name: array for name, array in zip(names, arrays, strict=True) if array is not None}
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    node = onnx.helper.make_node(op_type, names, ["y"], **attrs)
    graph = onnx.helper.make_graph([node], "g", inputs, [onnx.helper.make_empty_tensor_value_info("y")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    if reference:
        return ReferenceEvaluator(model).run(None, feeds)[0]
    model = onnx.shape_inference.infer_shapes(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def _infer(op: Op, types: list[TensorType | None]) -> tuple[TensorType, ...]:
    result = op.infer(*types)
    return result if isinstance(result, tuple) else (result,)


def _check_symbol(op: Op, types: list[TensorType | None], extent: int, results: tuple[np.ndarray, ...]) -> None:
    """Every occurrence of an extent becomes a symbol; the inferred shape must come true when it is put back."""
    symbolic = [
        None if t is None else replace(t, shape=tuple("s" if d == extent else d for d in t.dims), known=None)
        for t in types
    ]
    for result, type_ in zip(results, _infer(op, symbolic), strict=True):
        assert type_.dtype == dtypes.of(result)
        assert tuple(dims.substitute(d, {"s": extent}) for d in type_.dims) == result.shape
