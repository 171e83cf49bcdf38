"""Compute one carried-over node with ONNX Runtime, so that constants fold to what the runtime itself would compute."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir
import onnxruntime as ort

from planish.backends.onnx.writer import build
from planish.ir.errors import UnsupportedOp
from planish.ir.graph import Graph, Node, Value
from planish.ir.op import Return
from planish.ir.types import of_array


def evaluate_opaque(node: Node, arrays: Sequence[np.ndarray | None]) -> list[object]:
    """Results of an Opaque node on concrete operands. Raises UnsupportedOp if ONNX Runtime can't run it."""
    graph = Graph("single")
    if node.graph is not None:
        graph.opsets = dict(node.graph.opsets)
    operands: list[Value | None] = [
        None if array is None else graph.add_input(f"operand_{i}", of_array(array)) for i, array in enumerate(arrays)
    ]
    twin = graph.add(node.op, *operands, loc=node.loc)
    names = tuple(f"result_{i}" for i in range(len(twin.results)))
    graph.add(Return(names), *twin.results)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    feeds = {f"operand_{i}": array for i, array in enumerate(arrays) if array is not None}
    try:
        model = onnx_ir.to_proto(build(graph)).SerializeToString()
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return list(session.run(list(names), feeds))
    except Exception as error:  # onnxruntime raises its own unrelated exception types
        raise UnsupportedOp(f"ONNX Runtime can't compute this node: {error}", where=str(node.loc)) from error
