"""Small ONNX models from text, and what the reader makes of them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import onnx.parser

from planish.frontend.reader import from_proto
from planish.ir.graph import Graph
from planish.ir.ops import Opaque
from planish.ir.text import print_graph


def model(signature: str, body: str, opset: int = 18, ir_version: int = 8, imports: str = "") -> onnx.ModelProto:
    """A model with the given parameter list and results ("(float[2] x) => (float[2] y)") and nodes, in ONNX's text."""
    head = f'<ir_version: {ir_version}, opset_import: ["": {opset}{imports}]>'
    return onnx.parser.parse_model(f"{head} g {signature} {{ {body} }}")


def read(signature: str, body: str, opset: int = 18, **options: Any) -> Graph:
    """The graph of a model in ONNX's text."""
    return from_proto(model(signature, body, opset), **options)


def live(graph: Graph) -> str:
    """Text of the graph without the lines that depend on the spelling: operator sets, unused constants."""
    graph.erase_dead()
    return re.sub(r"    opsets = .*\n", "", print_graph(graph))


def ops(graph: Graph) -> list[str]:
    """Names of the ops in order, Return and constants left out; carried ones by their ONNX name in brackets."""
    graph.erase_dead()
    named = [f"[{node.op.op_type}]" if isinstance(node.op, Opaque) else node.op.name for node in graph]
    return [name for name in named if name not in ("Return", "Const")]


def types(graph: Graph) -> list[str]:
    """Types of the outputs."""
    return [str(value.type) for value in graph.outputs]


def only(graph: Graph) -> Any:
    """The only op that isn't a constant."""
    graph.erase_dead()
    (op,) = [node.op for node in graph if node.op.name not in ("Return", "Const")]
    return op


def weight(name: str, array: np.ndarray) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(array, name)
