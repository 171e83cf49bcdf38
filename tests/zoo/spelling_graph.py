"""Builds one-output ONNX models node by node, for hand-written operator spellings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

IR_VERSION = 10
SHAPE = (2, 5, 8)
"""Shape of x and of the result in nearly every spelling."""


class SpellingGraph:
    """A model under construction: ``op`` adds a node and names its result, ``model`` closes the graph.

    Mutable by its own methods only. Names are counters, so the same calls give the same bytes.
    """

    def __init__(self, opset: int = 17) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def input(self, name: str, shape: Sequence[int], dtype: type[np.generic] = np.float32) -> str:
        """A graph input."""
        element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.inputs.append(helper.make_tensor_value_info(name, element, list(shape)))
        return name

    def const(self, value: object, dtype: type[np.generic] = np.float32) -> str:
        """An initializer."""
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def op(self, op_type: str, *operands: str, domain: str = "", results: int = 1, **attributes: object) -> str:
        """A node; returns its first result, the others are ``<first>_1`` and so on."""
        name = f"v{len(self.nodes)}"
        names = [name, *(f"{name}_{index}" for index in range(1, results))]
        self.nodes.append(helper.make_node(op_type, list(operands), names, domain=domain, **attributes))
        return name

    def reduce_mean(self, x: str, axes: Sequence[int] = (-1,)) -> str:
        """ReduceMean with kept dims; axes are an attribute before opset 18 and an operand from there on."""
        if self.opset < 18:
            return self.op("ReduceMean", x, axes=list(axes), keepdims=1)
        return self.op("ReduceMean", x, self.const(axes, np.int64), keepdims=1)

    def model(
        self,
        *results: str,
        dtype: type[np.generic] = np.float32,
        shapes: Sequence[Sequence[int]] = (SHAPE,),
        functions: Sequence[onnx.FunctionProto] = (),
    ) -> onnx.ModelProto:
        """The model whose outputs are ``results``; the last of ``shapes`` serves all further results."""
        element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        padded = [*shapes, *[shapes[-1]] * (len(results) - len(shapes))]
        outputs = [
            helper.make_tensor_value_info(name, element, list(shape))
            for name, shape in zip(results, padded, strict=True)
        ]
        graph = helper.make_graph(self.nodes, "spelling", self.inputs, outputs, self.initializers)
        domains = sorted({node.domain for node in self.nodes} - {""})
        imports = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=IR_VERSION)
