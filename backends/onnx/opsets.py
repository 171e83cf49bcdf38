"""Which operator set to write: as new as the modelled ops like it, without changing what carried-over nodes mean."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import onnx
import onnx_ir

from planish.backends.onnx.dialect import BASE_OPSET, Spellings, preferred_opset
from planish.backends.onnx.types import TYPE_TEXT
from planish.ir.errors import UnsupportedOp
from planish.ir.graph import Graph, Node
from planish.ir.op import Const
from planish.ir.ops import Opaque
from planish.ir.types import TensorType

NEWEST = onnx.defs.onnx_opset_version()
_FIRST_IR_VERSION = 10  # first with metadata on nodes, where provenance is kept


@dataclass(frozen=True, slots=True)
class OpsetChoice:
    """The operator set to write, and why that one."""

    opset: int
    reason: str


def choose(graph: Graph, spellings: Spellings, wanted: int | None = None) -> OpsetChoice:
    """Pick the operator set of the default domain for `graph`.

    Without `wanted`: the source's, raised to what the preferred spellings of the modelled ops need (at least
    BASE_OPSET), but never past the point where a carried-over node would get another meaning. Raises UnsupportedOp if
    `wanted` would change the meaning of a carried-over node.
    """
    carried = sorted(set(_carried(graph)))
    source = graph.opsets.get("", 1 if carried else BASE_OPSET)  # a model that doesn't say means the first
    if wanted is not None:
        for op_type, where in carried:
            if since_version(op_type, "", wanted) != since_version(op_type, "", source):
                raise UnsupportedOp(
                    f"{op_type} of operator set {source} means something else in operator set {wanted}",
                    where=where,
                    remedy=f"leave the operator set to the writer, or ask for {source}",
                )
        return OpsetChoice(wanted, "asked for")
    need, needed_by = source, "source"
    for node in graph:
        version = max(BASE_OPSET, _modelled_need(node, spellings))
        if version > need:
            need, needed_by = version, node.op.name if version > BASE_OPSET else "newer spellings of axes and bounds"
    limit, limited_by = NEWEST, ""
    for op_type, _ in carried:
        if (last := _last_same(op_type, source)) < limit:
            limit, limited_by = last, op_type
    if need <= max(limit, source):
        return OpsetChoice(need, "same as the source" if need == source else f"raised from {source} for {needed_by}")
    kept = max(limit, source)
    return OpsetChoice(kept, f"{needed_by} wants {need}, but {limited_by} changes its meaning after {kept}")


def ir_version(opsets: dict[str, int], source: int | None) -> int:
    """The IR version to declare: new enough for the operator sets, for node metadata, and for what the source used."""
    known = onnx.helper.OP_SET_ID_VERSION_MAP
    needs = [known.get(("ai.onnx" if domain == "" else domain, version), 0) for domain, version in opsets.items()]
    return max(_FIRST_IR_VERSION, source or 0, *needs)


def since_version(op_type: str, domain: str, opset: int) -> int | None:
    """The version of the schema in force at `opset`; None if there is none."""
    versions = _history().get((domain, op_type), ())
    index = bisect_right(versions, opset)
    return versions[index - 1] if index else None


def _last_same(op_type: str, source: int) -> int:
    """The newest operator set in which `op_type` means what it means at `source`."""
    versions = _history().get(("", op_type), ())
    index = bisect_right(versions, source)
    if index == 0:
        return source  # not a standard op: nobody knows what it would mean elsewhere
    return versions[index] - 1 if index < len(versions) else NEWEST


@cache
def _history() -> dict[tuple[str, str], tuple[int, ...]]:
    found: dict[tuple[str, str], set[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        found.setdefault((schema.domain, schema.name), set()).add(schema.since_version)
    return {key: tuple(sorted(versions)) for key, versions in found.items()}


def _modelled_need(node: Node, spellings: Spellings) -> int:
    if isinstance(node.op, Opaque | Const) or node.op.is_return:
        return 0
    inputs = tuple(v.type.dtype.name for v in node.inputs if isinstance(v.type, TensorType))
    return max(preferred_opset(node.op, spellings), _dtype_need(node.op.name, inputs[:1]))


@lru_cache(maxsize=4096)
def _dtype_need(op_type: str, dtypes: tuple[str, ...]) -> int:
    """The first operator set in which an op that BASE_OPSET has takes operands of these element types; 0 if none."""
    if since_version(op_type, "", BASE_OPSET) is None:
        return 0
    for version in _history()["", op_type]:
        schema = onnx.defs.get_schema(op_type, version, "")
        if all(TYPE_TEXT.get(d) in p.types for d, p in zip(dtypes, schema.inputs, strict=False)):
            return version
    return 0


def _carried(graph: Graph) -> Iterator[tuple[str, str]]:
    """(op type, where) of every default-domain node that is written as it was read."""
    for node in graph:
        if not isinstance(node.op, Opaque):
            continue
        if node.op.domain in ("", "ai.onnx"):
            yield node.op.op_type, str(node.loc)
        if isinstance(node.op.payload, onnx_ir.Node):
            yield from ((op_type, str(node.loc)) for op_type in _inside(node.op.payload))
    functions = graph.extras.get("functions", ())
    assert isinstance(functions, Iterable)
    for function in functions:
        for inner in function:
            if inner.domain in ("", "ai.onnx"):
                yield inner.op_type, f"function {function.name}"
            yield from ((op_type, f"function {function.name}") for op_type in _inside(inner))


def _inside(node: onnx_ir.Node) -> Iterator[str]:
    for graph in subgraphs(node):
        for inner in onnx_ir.traversal.RecursiveGraphIterator(graph):
            if inner.domain in ("", "ai.onnx"):
                yield inner.op_type


def subgraphs(node: onnx_ir.Node) -> Iterator[onnx_ir.Graph]:
    """The graphs that are attributes of a node."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == onnx_ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == onnx_ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()
