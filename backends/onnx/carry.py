"""Nodes that are carried through: written back as they were read, with the new names of the values that they read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as onnx
from onnx.defs import get_schema
from onnx_ir._cloner import Cloner

from planish.backends.onnx.emitter import Emitter, Lowered, attribute
from planish.backends.onnx.opsets import since_version, subgraphs
from planish.ir.errors import LoweringError
from planish.ir.graph import Graph, Node
from planish.ir.ops import AttrValue, Opaque

Operands = list["onnx.Value | None"]


def carry(e: Emitter, node: Node, x: Operands) -> Lowered:
    """Write an Opaque node. The values that its subgraphs capture are its last operands."""
    op = node.op
    assert isinstance(op, Opaque)
    count = len(op.captures)
    operands, captured = (x[:-count], x[-count:]) if count else (x, [])
    source = op.payload
    if not isinstance(source, onnx.Node):
        attributes = [_typed(op, name, value) for name, value in op.attrs]
        return _leave_out(
            node, e.add(onnx.Node(op.domain, op.op_type, operands, attributes, num_outputs=len(op.types)))
        )
    copied = _attributes(source, dict(zip(op.captures, captured, strict=True)))
    made = onnx.Node(
        *(source.domain, source.op_type, operands, copied),
        overload=source.overload,
        num_outputs=len(op.types),
        doc_string=source.doc_string,
        metadata_props=source.metadata_props,
    )
    return _leave_out(node, e.add(made))


def _leave_out(node: Node, results: Sequence[onnx.Value]) -> Sequence[onnx.Value]:
    """Leave out optional results that the source left out: they have neither name nor use."""
    for result, made in zip(node.results, results, strict=True):
        if not result.hint and not result.uses:
            made.name = ""
    return results


def _typed(op: Opaque, name: str, value: AttrValue) -> onnx.Attr:
    """An attribute; the type of an empty list is that of the op's schema."""
    if value != () or (version := since_version(op.op_type, op.domain, op.version)) is None:
        return attribute(name, value)
    declared = get_schema(op.op_type, version, op.domain).attributes.get(name)
    kind = onnx.AttributeType.INTS if declared is None else onnx.AttributeType[str(declared.type).rpartition(".")[2]]
    return onnx.Attr(name, kind, ())


def inner_names(graph: Graph) -> Iterator[str]:
    """Names that are defined inside subgraphs of carried nodes; values outside must not have the same."""
    for node in graph:
        if isinstance(node.op, Opaque) and isinstance(node.op.payload, onnx.Node):
            for subgraph in subgraphs(node.op.payload):
                yield from (value.name for value in _defined(subgraph) if value.name)


def _attributes(source: onnx.Node, captures: Mapping[str, onnx.Value | None]) -> list[onnx.Attr]:
    """Copies of the attributes of a node, in which subgraphs read the new values."""
    mapping: dict[onnx.Value, onnx.Value | None] = {}
    for graph in subgraphs(source):
        inside = set(_defined(graph))
        for value in _read(graph):
            if value in inside:
                continue
            if (new := captures.get(value.name or "")) is None:
                raise LoweringError(
                    f"a subgraph of {source.op_type} reads {value.name!r}, which is not among its captured values",
                    where=source.name or source.op_type,
                )
            mapping[value] = new
    cloner = Cloner(attr_map={}, value_map=mapping, metadata_props={})
    copies = (cloner.clone_attr(name, found) for name, found in source.attributes.items())
    return [copy for copy in copies if copy is not None]


def _graphs(graph: onnx.Graph) -> Iterator[onnx.Graph]:
    """The graph and all graphs nested in it."""
    yield graph
    for node in graph:
        for nested in subgraphs(node):
            yield from _graphs(nested)


def _defined(graph: onnx.Graph) -> Iterator[onnx.Value]:
    for level in _graphs(graph):
        yield from level.inputs
        yield from level.initializers.values()
        for node in level:
            yield from node.outputs


def _read(graph: onnx.Graph) -> Iterator[onnx.Value]:
    for level in _graphs(graph):
        for node in level:
            yield from (value for value in node.inputs if value is not None)
        yield from level.outputs
