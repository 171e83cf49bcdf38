"""Numbers for carried nodes: ONNX's own reference evaluator on a model of one node."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from planish.frontend.carried import tensor_proto
from planish.frontend.declared import ONNX_NUMBERS
from planish.ir import dtypes
from planish.ir.data import Data
from planish.ir.errors import UnsupportedOp
from planish.ir.graph import Node
from planish.ir.ops import AttrValue, Opaque
from planish.ir.types import TensorType, Type


def evaluate_opaque(node: Node, arrays: Sequence[Any]) -> list[Any]:
    """Results of a carried node for the given operands, None where an operand is left out.

    Arrays for tensors, lists for sequences. Raises UnsupportedOp if ONNX's reference evaluator doesn't know the op or
    fails on it.
    """
    op = node.op
    if not isinstance(op, Opaque):
        raise UnsupportedOp(f"{op.name} is no carried op", where=str(node.loc))
    names = [None if array is None else f"x{i}" for i, array in enumerate(arrays)]
    plain = len(names) - len(op.captures)
    feeds = {name: array for name, array in zip(names[:plain], arrays, strict=False) if name is not None}
    feeds |= dict(zip(op.captures, arrays[plain:], strict=True))
    outputs = [f"y{i}" if result.hint or result.uses else "" for i, result in enumerate(node.results)]
    proto = onnx.helper.make_node(
        op.op_type, [name or "" for name in names[:plain]], outputs, domain=op.domain, name=str(node.loc)
    )
    proto.attribute.extend(_attributes(op))
    wanted = [name for name in outputs if name]
    try:
        found = ReferenceEvaluator(_model(node, op, proto, feeds, wanted)).run(None, feeds)
    except Exception as error:
        # the evaluator raises whatever numpy or the op's own code raises: all of it means that there is no value
        raise UnsupportedOp(
            f"{op.op_type} can't be evaluated: {type(error).__name__}: {error}",
            where=str(node.loc),
            remedy="evaluate the model with a runtime that has this op",
        ) from error
    by_name = dict(zip(wanted, found, strict=True))
    return [_stored(by_name.get(name), type_) for name, type_ in zip(outputs, op.types, strict=True)]


def _model(
    node: Node, op: Opaque, proto: onnx.NodeProto, feeds: Iterable[str], wanted: Sequence[str]
) -> onnx.ModelProto:
    extras = node.graph.extras if node.graph is not None else {}
    opsets = dict(node.graph.opsets) if node.graph is not None else {}
    opsets.setdefault("", onnx.defs.onnx_opset_version())
    opsets[op.domain] = op.version
    types = dict(zip(wanted, (t for t, r in zip(op.types, node.results, strict=True) if r.hint or r.uses), strict=True))
    functions: Any = extras.get("functions", ())
    graph = onnx.helper.make_graph(
        [proto],
        "node",
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in feeds],
        [onnx.helper.make_value_info(name, _output(types[name])) for name in wanted],
    )
    return onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()],
        functions=[onnx_ir.serde.serialize_function(function) for function in functions],
    )


def _output(type_: Type) -> onnx.TypeProto:
    if isinstance(type_, TensorType):
        return tensor_proto(type_.with_shape(None))
    return onnx.TypeProto()


def _attributes(op: Opaque) -> list[onnx.AttributeProto]:
    if isinstance(op.payload, onnx_ir.Node):
        return [onnx_ir.serde.serialize_attribute(attribute) for attribute in op.payload.attributes.values()]
    return [_attribute(op, name, value) for name, value in op.attrs]


def _attribute(op: Opaque, name: str, value: AttrValue) -> onnx.AttributeProto:
    if isinstance(value, Data):
        return onnx.helper.make_attribute(name, _tensor(value))
    if isinstance(value, tuple) and value and isinstance(value[0], Data):
        return onnx.helper.make_attribute(name, [_tensor(data) for data in value if isinstance(data, Data)])
    if value == () and onnx.defs.has(op.op_type, op.version, op.domain):
        declared = onnx.defs.get_schema(op.op_type, op.version, op.domain).attributes.get(name)
        if declared is not None:
            return onnx.helper.make_attribute(
                name, [], attr_type=onnx_ir.AttributeType[str(declared.type).rpartition(".")[2]]
            )
    if value == ():
        return onnx.helper.make_attribute(name, [], attr_type=onnx.AttributeProto.INTS)
    return onnx.helper.make_attribute(name, value)


def _tensor(data: Data) -> onnx.TensorProto:
    if isinstance(data.origin, onnx_ir.TensorProtoTensor):
        return data.origin.raw
    if data.type.dtype == dtypes.string:
        items: Any = [text.encode() if isinstance(text, str) else text for text in data.numpy().reshape(-1).tolist()]
        return onnx.helper.make_tensor("", ONNX_NUMBERS[dtypes.string], data.numpy().shape, items)
    return numpy_helper.from_array(data.numpy())


def _stored(result: Any, type_: Type) -> Any:
    """Results in the storage dtype of the IR: the evaluator returns strings and scalars in dtypes of its own."""
    if result is None or not isinstance(type_, TensorType) or isinstance(result, list):
        return result
    array = np.asarray(result)
    return array if array.dtype == type_.dtype.storage else array.astype(type_.dtype.storage)
