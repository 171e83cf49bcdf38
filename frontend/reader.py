"""ONNX models as graphs: every node in the IR's one spelling, or carried through whole where the IR has none."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir

from planish.frontend import carried
from planish.frontend.call import Call, Refusal
from planish.frontend.converters import CONVERTERS
from planish.frontend.declared import Symbols
from planish.frontend.files import OLDEST_OPSET, check_model, deserialized, parsed
from planish.frontend.functions import inlined
from planish.frontend.interface import Interface, interface_of
from planish.frontend.scopes import scope_of
from planish.frontend.tensors import check_external, data_of, external_tensors, names_external
from planish.ir.errors import FrontendError, VerifyError
from planish.ir.graph import Graph, Node, Value
from planish.ir.loc import Loc
from planish.ir.op import Const, Return
from planish.ir.ops import Opaque

Shapes = Mapping[str, Sequence[int | str]]


def load_onnx(path: Path | str, *, shapes: Shapes | None = None) -> Graph:
    """Read an ONNX file. Weights in external files stay there until they are needed.

    shapes: extents or new names for the dimensions of inputs; a symbol that is bound is bound everywhere.
    Raises FrontendError if the file can't be read or is no valid model, UsageError if `shapes` doesn't fit.
    """
    path = Path(path)
    with _collector_paused():
        return from_proto(parsed(path), shapes=shapes, base=path.parent, where=str(path))


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Reading makes many objects and no garbage: looking for some in between takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def from_proto(
    proto: onnx.ModelProto, *, shapes: Shapes | None = None, base: Path | str = ".", where: str = "model"
) -> Graph:
    """Read a model that is already parsed. base: folder of external data. where: its name in messages."""
    model = deserialized(proto, where)
    external = list(external_tensors(model.graph)) if names_external(proto.graph) else []
    for tensor in external:
        tensor.base_dir = os.fspath(base)
    return _read(model, external, shapes, where)


def from_onnx_ir(model: onnx_ir.Model, *, shapes: Shapes | None = None, where: str = "model") -> Graph:
    """Read an onnx_ir model, which stays as it is."""
    external = list(external_tensors(model.graph))
    return _read(model.clone() if model.functions else model, external, shapes, where)


def _read(model: onnx_ir.Model, external: Sequence[onnx_ir.ExternalTensor], shapes: Shapes | None, where: str) -> Graph:
    check_model(model, where)
    check_external(external, where)
    model = inlined(model, where)
    if not _is_sorted(model.graph):
        try:
            model.graph.sort()
        except ValueError as error:
            raise FrontendError("the nodes of the model depend on each other in a circle", where=where) from error
    symbols = Symbols()
    interface = interface_of(model, symbols, shapes, where)
    graph = _Reader(model, interface, symbols, where).read()
    graph.extras["external_files"] = tuple(sorted({Path(tensor.path) for tensor in external}))
    return graph


def _is_sorted(graph: onnx_ir.Graph) -> bool:
    seen: set[onnx_ir.Node] = set()
    for node in graph:
        for value in node.inputs:
            if value is not None and (producer := value.producer()) is not None and producer not in seen:
                return False
        seen.add(node)
    return True


class _Reader:
    def __init__(self, model: onnx_ir.Model, interface: Interface, symbols: Symbols, where: str):
        self.model, self.interface, self.symbols, self.where = model, interface, symbols, where
        self.graph = Graph(model.graph.name or "main")
        self.graph.opsets = {"" if d == "ai.onnx" else d: v for d, v in model.opset_imports.items()}
        self.values: dict[onnx_ir.Value, Value] = {}
        self.inference = carried.TypeInference(self.graph.opsets, model.ir_version, symbols)
        self.reasons: dict[str, str] = {}

    def read(self) -> Graph:
        for source, type_ in self.interface.inputs:
            value = self.graph.add_input(source.name or "", type_)
            self.inference.remember(value, source)
            self.values[source] = value
        for node in self.model.graph:
            self._convert(node)
        outputs = self.model.graph.outputs
        names = tuple(value.name or "" for value in outputs)
        self.graph.add(Return(names), *(self._value(value, "the graph") for value in outputs), loc=Loc(("Return",)))
        self._extras()
        return self.graph

    def _extras(self) -> None:
        model = self.model
        defaults = {
            source.name or "": data_of(source.const_value)
            for source, _ in self.interface.inputs
            if source.const_value is not None
        }
        self.graph.extras = {
            "functions": list(model.functions.values()),
            "metadata": dict(model.metadata_props),
            "producer": " ".join(filter(None, (model.producer_name, model.producer_version))),
            "ir_version": model.ir_version,
            "dim_params": dict(self.symbols.originals),
            "defaults": defaults,
            "declared": self.interface.declared,
            "carried": self.reasons,
            "source_ops": Counter(node.op_type for node in model.graph if node.op_type != "Constant"),
        }

    def _value(self, source: onnx_ir.Value, reader: str) -> Value:
        """The converted value. An initializer becomes a constant where it is first read."""
        if (value := self.values.get(source)) is None:
            if source.const_value is None or source.producer() is not None:
                raise FrontendError(
                    f"{reader} reads {source.name!r}, which nothing in the model produces",
                    where=self.where,
                    remedy="export the model again: it is not a valid ONNX model",
                )
            node = Node(Const(data_of(source.const_value)), (), Loc((source.name or "constant",)))
            self.graph.insert(node)
            value = self.values[source] = node.results[0]
            value.hint = source.name or ""
        return value

    def _convert(self, node: onnx_ir.Node) -> None:
        name = node.name or f"{node.op_type}_{node.outputs[0].name if node.outputs else ''}"
        loc = Loc((name,), scope_of(node.name or "", node.metadata_props))
        operands = tuple(None if v is None else self._value(v, name) for v in node.inputs)
        attributes, whole = carried.attributes(node)
        version = self.graph.opsets.get(node.domain, 1)
        converter = None if node.overload else CONVERTERS.get((node.domain, node.op_type))
        if converter is None or node.op_identifier() in self.model.functions:
            reason = "the IR has no such op"
        elif node.domain == "" and version < OLDEST_OPSET:
            reason = f"operator sets before {OLDEST_OPSET} aren't modelled"
        elif not whole and node.op_type != "Constant":
            reason = "an attribute is no plain value"
        else:
            try:
                self._take(node, converter(Call(node.op_type, version, operands, attributes, node)), loc)
                return
            except Refusal as refusal:
                reason = str(refusal)
            except VerifyError as error:
                reason = error.what
        self.reasons[name] = reason
        self._carry(node, version, operands, attributes, whole, loc)

    def _take(self, node: onnx_ir.Node, converted: Value | Sequence[Value], loc: Loc) -> None:
        results = (converted,) if isinstance(converted, Value) else tuple(converted)
        for result in results:
            maker = result.node
            if maker is not None and maker.graph is None:
                self.graph.attach(result, None, loc)
        for output, result in zip(node.outputs, results, strict=False):
            if not result.hint:
                result.hint = output.name or ""
            self.values[output] = result

    def _carry(
        self,
        node: onnx_ir.Node,
        version: int,
        operands: tuple[Value | None, ...],
        attributes: Mapping[str, carried.AttrValue],
        whole: bool,
        loc: Loc,
    ) -> None:
        sources = carried.captured(node)
        captures = [self._value(source, loc.sources[0]) for source in sources]
        named = {s.name or "": v for s, v in zip(node.inputs, operands, strict=True) if s is not None and v is not None}
        named |= {source.name or "": value for source, value in zip(sources, captures, strict=True)}
        types, protos = self.inference.results(node, named)
        op = Opaque(
            *(node.op_type, node.domain, version, tuple(attributes.items()), types),
            captures=tuple(source.name or "" for source in sources),
            payload=None if whole and not node.overload else node,
        )
        made = Node(op, (*operands, *captures), loc)
        self.graph.insert(made)
        self.inference.keep(made.results, protos, node)
        for output, result in zip(node.outputs, made.results, strict=True):
            result.hint = output.name or ""
            self.values[output] = result
