"""Checks that a graph keeps the invariants of the IR (listed in `planish.ir.graph`)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from planish.ir import dtypes, sparsity
from planish.ir.codebooks import CODEBOOKS
from planish.ir.dtypes import DType
from planish.ir.errors import VerifyError
from planish.ir.graph import Graph, Node, Value
from planish.ir.op import Const, Return
from planish.ir.text import print_around
from planish.ir.types import OtherType, TensorType

_LISTED = 20  # findings that an error lists; a broken graph may have one per node


@dataclass(frozen=True, slots=True)
class Finding:
    """One violation: the invariant ("G1"), what is wrong, and the node at fault if there is one."""

    invariant: str
    message: str
    node: Node | None = None

    def __str__(self) -> str:
        where = f" at {self.node.loc or self.node.op.name}" if self.node is not None else ""
        return f"{self.invariant}{where}: {self.message}"


def verify(graph: Graph) -> None:
    """Raises VerifyError with all findings, the first of them in detail, unless the graph keeps all invariants."""
    found = findings(graph)
    if not found:
        return
    first = found[0]
    context = print_around(graph, first.node) if first.node is not None else ""
    more = [f"also {finding}" for finding in found[1:_LISTED]]
    if len(found) > _LISTED:
        more.append(f"and {len(found) - _LISTED} more")
    raise VerifyError(
        f"{first.invariant} {first.message}",
        where=str(first.node.loc) if first.node is not None else f"graph {graph.name}",
        remedy="report this: a pass or frontend built a graph that breaks the rules of the IR",
        context="\n".join(filter(None, [context, *more])),
    )


def findings(graph: Graph) -> list[Finding]:
    """All violations, those of the node list first, since the others build on it. Loads no constants."""
    nodes, found = _listed(graph)
    found += _ends(graph, nodes)
    found += _definitions(graph, nodes)
    found += _uses(graph, nodes)
    found += _interface(graph)
    for value in graph.inputs:
        found += _typed(value, None)
    for node in nodes:
        for value in node.results:
            found += _typed(value, node)
        found += _inferred(node)
        found += _constant(node)
        if not isinstance(node.op, Const | Return) and not node.loc.sources and not node.loc.via:
            found.append(Finding("L1", f"{node.op.name} has neither a source nor a pass that made it", node))
    return found


def _listed(graph: Graph) -> tuple[list[Node], list[Finding]]:
    """The nodes along the links, and faults of the links (G3)."""
    nodes: dict[Node, None] = {}
    found: list[Finding] = []
    previous, node = None, graph.head
    while node is not None:
        if node in nodes:
            return list(nodes), [*found, Finding("G3", "the list of nodes runs in a circle", node)]
        nodes[node] = None
        if node.graph is not graph:
            found.append(Finding("G3", f"{node.op.name} hangs in this graph, but says it is in another or none", node))
        if node.prev is not previous:
            found.append(Finding("G3", f"{node.op.name} doesn't link back to the node before it", node))
        previous, node = node, node.next
    if graph.tail is not previous:
        found.append(Finding("G3", "the tail isn't the last node of the list", previous))
    return list(nodes), found


def _ends(graph: Graph, nodes: list[Node]) -> Iterator[Finding]:
    if not nodes or not nodes[-1].op.is_return:
        yield Finding("G4", "the last node isn't a Return", nodes[-1] if nodes else None)
    for node in nodes[:-1]:
        if node.op.is_return:
            yield Finding("G4", "a Return stands before the end", node)
    for node in nodes[-1:]:
        if node.op.is_return and any(operand is None for operand in node.operands):
            yield Finding("G4", "an output has no value", node)


def _definitions(graph: Graph, nodes: list[Node]) -> Iterator[Finding]:
    defined = set(graph.inputs)
    for value in graph.inputs:
        if value.node is not None:
            yield Finding("G1", f"input {value.hint} is the result of a node", value.node)
    for node in nodes:
        for i, operand in enumerate(node.operands):
            if operand is not None and operand not in defined:
                yield Finding("G1", f"operand {i} of {node.op.name}, {operand!r}, isn't defined above", node)
        for i, result in enumerate(node.results):
            if result.node is not node or result.index != i:
                yield Finding("G1", f"result {i} of {node.op.name} says that another node makes it", node)
        defined.update(node.results)


def _uses(graph: Graph, nodes: list[Node]) -> Iterator[Finding]:
    """G2, both directions: each operand is among the uses of its value, and there are no other uses."""
    counted: dict[Value, int] = dict.fromkeys(graph.inputs, 0)
    for node in nodes:
        for value in node.results:
            counted.setdefault(value, 0)
        for i, operand in enumerate(node.operands):
            if operand is None:
                continue
            counted[operand] = counted.get(operand, 0) + 1
            if (node, i) not in operand.uses:
                yield Finding("G2", f"operand {i} of {node.op.name}, {operand!r}, doesn't know of this use", node)
    for value, count in counted.items():
        if len(value.uses) > count:
            stray = next((n for n, i in value.uses if i >= len(n.operands) or n.operands[i] is not value), None)
            other = "" if stray is None else f", such as one by {stray.op.name}"
            yield Finding("G2", f"{value!r} lists {len(value.uses)} uses, but has {count}{other}", value.node)


def _interface(graph: Graph) -> Iterator[Finding]:
    inputs: dict[str, Value] = {}
    for value in graph.inputs:
        if value.hint in inputs or not value.hint:
            yield Finding("G5", f"input name {value.hint!r} is empty or used twice")
        inputs[value.hint] = value
    if graph.tail is None or not isinstance(graph.tail.op, Return):
        return
    names = graph.tail.op.names
    if len(names) != len(graph.tail.operands):
        yield Finding("G5", f"{len(names)} output names for {len(graph.tail.operands)} outputs", graph.tail)
    seen: set[str] = set()
    for name, operand in zip(names, graph.tail.operands, strict=False):
        if name in seen or not name:
            yield Finding("G5", f"output name {name!r} is empty or used twice", graph.tail)
        elif inputs.get(name, operand) is not operand:
            yield Finding("G5", f"output name {name!r} is that of an input", graph.tail)
        seen.add(name)


def _inferred(node: Node) -> Iterator[Finding]:
    try:
        types = node.op.infer_types(node.operands)
    except VerifyError as error:
        yield Finding("T1", error.what, node)
        return
    if len(types) != len(node.results):
        yield Finding("T1", f"{node.op.name} has {len(node.results)} results, but infers {len(types)}", node)
    for value, type_ in zip(node.results, types, strict=False):
        if value.type != type_:
            contents = getattr(value.type, "known", None), getattr(type_, "known", None)
            detail = f" (contents {contents[0]}, inferred {contents[1]})" if contents[0] != contents[1] else ""
            yield Finding("T1", f"{value.hint or 'result'} has type {value.type}, inferred is {type_}{detail}", node)


def _typed(value: Value, node: Node | None) -> Iterator[Finding]:
    """T2 and T4 of one value."""
    name, type_ = value.hint or "a value", value.type
    if isinstance(type_, OtherType):
        return
    if not isinstance(type_, TensorType) or not isinstance(type_.dtype, DType):
        yield Finding("T2", f"{name} has no type, but {type_!r}", node)
        return
    for dim in type_.shape or ():
        if not (isinstance(dim, str) and dim) and (not isinstance(dim, int) or dim < 0):
            yield Finding("T2", f"{name} has {dim!r} for a dimension in {type_}", node)
    if type_.quant is not None:
        yield from _quantized(name, type_, node)


def _quantized(name: str, type_: TensorType, node: Node | None) -> Iterator[Finding]:
    quant, dtype = type_.quant, type_.dtype
    if quant is None:
        return
    if not dtype.is_integer or not dtype.min <= quant.zero <= dtype.max:
        yield Finding("T4", f"{name}: {dtype} can't hold zero point {quant.zero}", node)
    if not all(math.isfinite(scale) and scale > 0 for scale in quant.scale):
        yield Finding("T4", f"{name}: scales {quant.scale[:4]} aren't positive and finite", node)
    if quant.axis is None:
        if len(quant.scale) != 1:
            yield Finding("T4", f"{name}: {len(quant.scale)} scales without an axis", node)
    elif type_.shape is None or not 0 <= quant.axis < len(type_.shape):
        yield Finding("T4", f"{name}: {type_} has no axis {quant.axis}", node)
    elif type_.shape[quant.axis] != len(quant.scale):
        yield Finding("T4", f"{name}: {len(quant.scale)} scales on axis {quant.axis} of {type_}", node)
    if quant.codebook and (quant.codebook not in CODEBOOKS or dtype != dtypes.i8 or quant.zero):
        yield Finding("T5", f"{name}: codes of {type_} can't be in codebook {quant.codebook!r}", node)


def _constant(node: Node) -> Iterator[Finding]:
    """T3 and T5, for arrays in memory: what a file holds is checked when it is loaded."""
    if not isinstance(node.op, Const) or (array := node.op.data.loaded) is None:
        return
    type_ = node.op.data.type
    if array.shape != type_.shape or not type_.dtype.holds(array):
        yield Finding("T3", f"an array of {array.dtype}{list(array.shape)} doesn't fit {type_}", node)
    elif type_.quant is not None and (book := CODEBOOKS.get(type_.quant.codebook)) is not None:
        fault = book.fault(array, type_.quant.axis)
        if fault:
            yield Finding("T5", fault, node)
    if type_.sparsity is not None and (fault := sparsity.fault(array, type_.sparsity)):
        yield Finding("T6", fault, node)
