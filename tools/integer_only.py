"""Is a model integer-only? For any ONNX file: every tensor is looked at, and ops that compute in floats inside."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from planish.ir.errors import FrontendError

Verdict = Literal["fully integer", "integer between its boundaries", "not integer-only"]

_NAMES = {number: name for name, number in TensorProto.DataType.items()}
FLOATS = {n for n, name in _NAMES.items() if "FLOAT" in name or name in ("DOUBLE", "COMPLEX64", "COMPLEX128")}
_HIDDEN = {
    "Pow": "ONNX Runtime computes integer powers in double",
    "DynamicQuantizeLinear": "it finds a float scale",
    "QuantizeLinear": "it divides by a float scale",
    "DequantizeLinear": "it multiplies by a float scale",
    "QLinearConv": "it requantizes by float scales",
    "QLinearMatMul": "it requantizes by float scales",
}
_ENCODING = ("Div", "Mul", "Round", "Clip", "Add")  # what a quantization of an input may consist of


@dataclass(frozen=True)
class Offender:
    """A float tensor, or an op that computes in floats."""

    where: str
    op: str
    tensor: str
    reason: str


@dataclass(frozen=True)
class Inspection:
    """The verdict, what stands against it, and the float inputs and outputs whose codes are made at the border."""

    verdict: Verdict
    boundary: tuple[str, ...]
    offenders: tuple[Offender, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect_integers(path: Path) -> Inspection:
    """Look at every tensor and op of the file, subgraphs included. Raises FrontendError if it can't be read."""
    model = read_inferred(path)
    border = Border(model.graph)
    offenders = list(graph_offenders(model.graph, border.tensors, border.nodes, ""))
    names = tuple(border.names)
    if offenders:
        return Inspection("not integer-only", names, tuple(offenders))
    return Inspection("integer between its boundaries" if names else "fully integer", names, ())


def read_inferred(path: Path) -> onnx.ModelProto:
    """The model with the types that ONNX infers, without data kept beside it. Raises FrontendError if that fails."""
    try:
        with tempfile.TemporaryDirectory(prefix="planish-") as folder:
            inferred = Path(folder) / "inferred.onnx"
            onnx.shape_inference.infer_shapes_path(str(path), str(inferred))
            return onnx.load(inferred, load_external_data=False)
    except Exception as error:  # onnx raises several unrelated types
        raise FrontendError(f"can't read the model: {error}", where=str(path), remedy="give an ONNX file") from error


class Border:
    """Float inputs that are only quantized, float outputs that are only dequantized, and the tensors on the way."""

    def __init__(self, graph: GraphProto):
        self.names: list[str] = []
        self.tensors: set[str] = set()
        self.nodes: set[int] = set()
        self._constants = {t.name for t in graph.initializer}
        self._types = tensor_types(graph)
        self._readers: dict[str, list[NodeProto]] = defaultdict(list)
        self._makers = {name: node for node in graph.node for name in node.output}
        for node in graph.node:
            for name in node.input:
                self._readers[name].append(node)
        for value in graph.input:
            if value.type.tensor_type.elem_type in FLOATS and value.name not in self._constants:
                self._keep(value.name, self._encoding(value.name))
        for value in graph.output:
            if value.type.tensor_type.elem_type in FLOATS:
                self._keep(value.name, self._decoding(value.name))

    def _keep(self, name: str, found: tuple[set[str], set[int]] | None) -> None:
        if found is not None:
            self.names.append(name)
            self.tensors |= found[0]
            self.nodes |= found[1]

    def _encoding(self, name: str) -> tuple[set[str], set[int]] | None:
        """Tensors and nodes that make codes of a float input; None if anything else reads it."""
        tensors, nodes, work = {name}, set(), [name]
        while work:
            for node in self._readers[work.pop()]:
                if node.op_type in ("Shape", "Size"):
                    continue
                others = [n for n in node.input if n and n not in tensors]
                if any(n not in self._constants for n in others):
                    return None
                nodes.add(id(node))
                tensors |= {n for n in others if self._types.get(n) in FLOATS}
                if node.op_type == "QuantizeLinear" or self._types.get(node.output[0]) not in FLOATS:
                    continue
                if node.op_type not in _ENCODING:
                    return None
                tensors.add(node.output[0])
                work.append(node.output[0])
        return tensors, nodes

    def _decoding(self, name: str) -> tuple[set[str], set[int]] | None:
        """Tensors and nodes that make a float output of codes: DequantizeLinear, or Cast times a constant."""
        node = self._makers.get(name)
        if node is None or self._readers[name]:
            return None
        if node.op_type == "DequantizeLinear":
            return {name, node.input[1]}, {id(node)}
        if node.op_type != "Mul":
            return None
        for real, scale in (tuple(node.input), tuple(reversed(node.input))):
            cast = self._makers.get(real)
            whole = cast is not None and cast.op_type == "Cast" and self._types.get(cast.input[0]) not in FLOATS
            if cast is not None and whole and scale in self._constants and len(self._readers[real]) == 1:
                return {name, real, scale}, {id(node), id(cast)}
        return None


def tensor_types(graph: GraphProto) -> dict[str, int]:
    """Element types by name, as far as they are known."""
    found = {t.name: t.data_type for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        found[value.name] = value.type.tensor_type.elem_type
    return found


def graph_offenders(graph: GraphProto, allowed: set[str], nodes: set[int], prefix: str) -> Iterator[Offender]:
    """Float tensors other than `allowed`, and ops other than `nodes` (by id) that compute in floats or unknown ways."""
    types = tensor_types(graph)
    makers = {name: node for node in graph.node for name in node.output}
    for name, number in types.items():
        if number in FLOATS and name not in allowed:
            maker = makers.get(name)
            yield Offender(prefix + (maker.name or name if maker else name), maker.op_type if maker else "constant"
                           if any(t.name == name for t in graph.initializer) else "input", name,
                           f"the tensor is {_NAMES[number].lower()}")  # fmt: skip
    for node in graph.node:
        place = prefix + (node.name or (node.output[0] if node.output else node.op_type))
        for name in node.output:
            if name and not types.get(name):
                yield Offender(place, node.op_type, name, "the type of the tensor can't be inferred")
        if node.domain not in ("", "ai.onnx"):
            yield Offender(place, f"{node.domain}.{node.op_type}", "", "what it computes inside isn't known")
        elif node.op_type in _HIDDEN and id(node) not in nodes:
            yield Offender(place, node.op_type, "", _HIDDEN[node.op_type])
        for attribute in node.attribute:
            yield from _attribute_offenders(attribute, node, place)


def _attribute_offenders(attribute: AttributeProto, node: NodeProto, place: str) -> Iterator[Offender]:
    for tensor in (attribute.t, *attribute.tensors):
        if tensor.data_type in FLOATS:
            yield Offender(place, node.op_type, attribute.name, f"the attribute is {_NAMES[tensor.data_type].lower()}")
    for graph in (attribute.g, *attribute.graphs):
        yield from graph_offenders(graph, set(), set(), f"{place}/{attribute.name}/")
