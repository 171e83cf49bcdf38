"""Nodes that the IR doesn't model: carried as Opaque, with result types from the model or from ONNX's own inference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx
import onnx_ir
from onnx import numpy_helper, shape_inference

from planish.frontend.call import shortest
from planish.frontend.carried_shapes import first_type
from planish.frontend.contents import static_array
from planish.frontend.declared import ONNX_NUMBERS, Symbols, declared_type, inferred_type, merged
from planish.frontend.tensors import data_of
from planish.ir.graph import Value
from planish.ir.ops import AttrValue
from planish.ir.types import OtherType, TensorType, Type

_A = onnx_ir.AttributeType


def attributes(node: onnx_ir.Node) -> tuple[dict[str, AttrValue], bool]:
    """Attributes as plain values, and whether these say it all (no subgraphs, types or other odd ones)."""
    found: dict[str, AttrValue] = {}
    whole = True
    for name, attribute in node.attributes.items():
        value = None if attribute.is_ref() else _plain(attribute)
        if value is None:
            whole = False
        else:
            found[name] = value
    return found, whole


def _plain(attribute: onnx_ir.Attr) -> AttrValue | None:
    value = attribute.value
    match attribute.type:
        case _A.INT | _A.STRING:
            return value  # type: ignore[no-any-return]
        case _A.FLOAT:
            return shortest(value)
        case _A.INTS | _A.STRINGS:
            return tuple(value)
        case _A.FLOATS:
            return tuple(shortest(number) for number in value)
        case _A.TENSOR:
            return data_of(value)
        case _A.TENSORS:
            return tuple(data_of(tensor) for tensor in value)
    return None


def captured(node: onnx_ir.Node) -> list[onnx_ir.Value]:
    """Values from outside that the subgraphs of a node read, in order of first use."""
    found: dict[onnx_ir.Value, None] = {}
    for graph in subgraphs(node):
        _collect(graph, set(), found)
    return list(found)


def subgraphs(node: onnx_ir.Node) -> Iterator[onnx_ir.Graph]:
    """The graphs that are attributes of a node."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == _A.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == _A.GRAPHS:
            yield from attribute.as_graphs()


def _collect(graph: onnx_ir.Graph, inside: set[onnx_ir.Value], found: dict[onnx_ir.Value, None]) -> None:
    inside = inside | set(graph.inputs) | set(graph.initializers.values())
    for node in graph:
        inside.update(node.outputs)
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in inside:
                found[value] = None
        for nested in subgraphs(node):
            _collect(nested, inside, found)
    for value in graph.outputs:
        if value not in inside:
            found[value] = None


class TypeInference:
    """Result types of carried nodes. Keeps the ONNX types of values that aren't tensors."""

    def __init__(self, opsets: Mapping[str, int], ir_version: int, symbols: Symbols):
        self._opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
        self._versions = opsets
        self._ir_version = max(ir_version, 3)
        self._symbols = symbols
        self._other: dict[Value, onnx.TypeProto] = {}

    def remember(self, value: Value, source: onnx_ir.Value) -> None:
        """Keep the declared type of a value that isn't a tensor."""
        if isinstance(value.type, OtherType) and source.type is not None:
            self._other[value] = _proto_of(source)

    def results(
        self, node: onnx_ir.Node, operands: Mapping[str, Value]
    ) -> tuple[tuple[Type, ...], list[onnx.TypeProto | None]]:
        """Types of all results, and their ONNX types where inference found them. `operands` by ONNX name."""
        inferred = self._infer(node, operands)
        protos = [inferred.get(output.name or "") for output in node.outputs]
        types = []
        for output, proto in zip(node.outputs, protos, strict=True):
            found = None if proto is None else self._type(proto)
            if isinstance(found, OtherType) and proto is not None and not proto.WhichOneof("value"):
                found = None
            types.append(merged(found, declared_type(output.type, output.shape, self._symbols), self._symbols))
        values = [None if value is None else operands.get(value.name or "") for value in node.inputs]
        if types:
            types[0] = first_type(node, values, types[0], self._symbols)
        return tuple(types), protos

    def keep(self, values: Sequence[Value], protos: Sequence[onnx.TypeProto | None], node: onnx_ir.Node) -> None:
        """Remember the ONNX types of results that aren't tensors."""
        for value, proto, output in zip(values, protos, node.outputs, strict=True):
            if isinstance(value.type, OtherType):
                if proto is not None and proto.WhichOneof("value"):
                    self._other[value] = proto
                else:
                    self.remember(value, output)

    def _type(self, proto: onnx.TypeProto) -> Type | None:
        try:
            type_ = onnx_ir.serde.deserialize_type_proto_for_type(proto)
            shape = onnx_ir.serde.deserialize_type_proto_for_shape(proto)
        except (onnx_ir.serde.SerdeError, NotImplementedError, ValueError):
            return OtherType(str(proto.WhichOneof("value")))
        return inferred_type(type_, shape, self._symbols)

    def _infer(self, node: onnx_ir.Node, operands: Mapping[str, Value]) -> dict[str, onnx.TypeProto]:
        version = self._versions.get(node.domain)
        if version is None or not onnx.defs.has(node.op_type, version, node.domain):
            return {}
        types: dict[str, onnx.TypeProto] = {}
        contents: dict[str, onnx.TensorProto] = {}
        for name, value in operands.items():
            types[name] = self._proto(value)
            if (array := static_array(value)) is not None:
                contents[name] = numpy_helper.from_array(array, name)
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
        try:
            return shape_inference.infer_node_outputs(
                schema,
                onnx_ir.serde.serialize_node(node),
                types,
                contents,
                opset_imports=self._opsets,
                ir_version=self._ir_version,
            )
        except (shape_inference.InferenceError, onnx_ir.serde.SerdeError, RuntimeError, ValueError, KeyError):
            return {}

    def _proto(self, value: Value) -> onnx.TypeProto:
        if isinstance(value.type, OtherType):
            return self._other.get(value, onnx.TypeProto())
        return tensor_proto(value.type)


def tensor_proto(type_: TensorType) -> onnx.TypeProto:
    """The ONNX type; symbolic dimensions by their text in the IR."""
    return onnx.helper.make_tensor_type_proto(ONNX_NUMBERS[type_.dtype], type_.shape)


def _proto_of(value: onnx_ir.Value) -> onnx.TypeProto:
    return onnx_ir.serde.serialize_value(value).type
