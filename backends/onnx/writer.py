"""A graph as an ONNX model, and a model as files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx_ir as onnx

from planish.backends.onnx import (
    lower_attention,
    lower_elementwise,
    lower_int_norm,
    lower_int_products,
    lower_int_softmax,
    lower_integer,
    lower_linalg,
    lower_norm,
    lower_pool,
    lower_reduce,
    lower_shape,
    lower_shift_add,
    lower_tokens,
    packed_codes,
    sparse_constants,
    stream,
    without_multiply,
)
from planish.backends.onnx.carry import carry, inner_names
from planish.backends.onnx.dialect import ORT_CPU, Dialect, Spellings
from planish.backends.onnx.emitter import Emitter, Lowering, tensor
from planish.backends.onnx.names import Names
from planish.backends.onnx.opsets import OpsetChoice, choose, ir_version
from planish.backends.onnx.types import onnx_dtype, onnx_shape
from planish.ir.data import Data
from planish.ir.errors import LoweringError, UsageError
from planish.ir.graph import Graph, Node, Value
from planish.ir.op import Const
from planish.ir.ops import Opaque
from planish.ir.types import TensorType

EXTERNAL_AT = 3 << 29  # 1.5 GiB of weights: protobuf ends at 2 GiB, and building one message needs a copy of it all
_SMALL = 1024  # bytes; smaller tensors stay in the model file even when the weights are kept beside it

LOWERINGS: dict[type, Lowering] = {
    **lower_elementwise.LOWERINGS,
    **lower_reduce.LOWERINGS,
    **lower_norm.LOWERINGS,
    **lower_linalg.LOWERINGS,
    **lower_shift_add.LOWERINGS,
    **lower_pool.LOWERINGS,
    **lower_attention.LOWERINGS,
    **lower_shape.LOWERINGS,
    **lower_tokens.LOWERINGS,
    **lower_integer.LOWERINGS,
    **lower_int_products.LOWERINGS,
    **lower_int_norm.LOWERINGS,
    **lower_int_softmax.LOWERINGS,
    Opaque: carry,
}
"""How each op class is written."""


@dataclass(frozen=True, slots=True)
class WrittenModel:
    """What `write` wrote: the model file first, then its data file if there is one."""

    files: tuple[Path, ...]
    opset: int
    opset_reason: str
    ops: Mapping[str, int]


def build(graph: Graph, *, opset: int | None = None, spellings: Spellings = ORT_CPU) -> onnx.Model:
    """The graph as onnx_ir model; weights that were read from a file are passed on unread.

    Names, element types and declared shapes of inputs and outputs are those of the source. Raises UnsupportedOp if an
    op can't be expressed in the operator set.
    """
    return _build(graph, choose(graph, spellings, opset), spellings)


def write(
    graph: Graph,
    path: Path,
    *,
    opset: int | None = None,
    external_data: Literal["auto", "always", "never"] = "auto",
    spellings: Spellings = ORT_CPU,
) -> WrittenModel:
    """Write the graph to `path`; large weights go to `<path>.data` beside it, streamed.

    "auto" keeps up to 1.5 GiB of weights in the model file, "always" only tensors of at most 1 KiB.
    The caller provides a fresh folder: nothing is renamed here. Raises UnsupportedOp as `build`,
    UsageError if the data file is one that the source model reads from.
    """
    choice = choose(graph, spellings, opset)
    model = _build(graph, choice, spellings)
    ops = Counter(node.op_type for node in model.graph)
    data = path.with_name(path.name + ".data")
    files: tuple[Path, ...]
    if _goes_beside(graph, external_data):
        _refuse_overwriting(model, data)
        onnx.save(model, path, external_data=data.name, size_threshold_bytes=_SMALL)
        files = (path, data)
    else:
        _take_in(model)
        stream.save(model, path)
        files = (path,)
    return WrittenModel(files, choice.opset, choice.reason, ops)


def _build(graph: Graph, choice: OpsetChoice, spellings: Spellings) -> onnx.Model:
    interface = Interface(graph)
    names = Names(interface.names | set(inner_names(graph)))
    dialect = Dialect(choice.opset, spellings)
    if spellings.multiply:
        e = Emitter(dialect, names, LOWERINGS, _compact if spellings.compact else packed_codes.unpacked)
    else:
        e = Emitter(dialect, names, without_multiply.LOWERINGS)
    inputs = [interface.value(value.hint, value) for value in graph.inputs]
    e.values.update(zip(graph.inputs, inputs, strict=True))
    wishes = interface.output_wishes
    terminal: Node | None = None
    for node in graph:
        if node.op.is_return:
            terminal = node
            continue
        e.lower(node, [wishes.get(result) or names.unique(_wish(node, result)) if not isinstance(node.op, Const)
                       else _wish(node, result) for result in node.results])  # fmt: skip
    if terminal is None:
        raise LoweringError(f"graph {graph.name!r} has no Return")
    e.at(terminal.loc)
    outputs = [interface.output(e, name, v) for name, v in zip(interface.outputs, terminal.inputs, strict=True)]
    e.sweep(outputs)
    return _model(graph, choice.opset, e, inputs, outputs, interface.initializers(inputs))


def _compact(e: Emitter, data: Data, name: str) -> onnx.Value | None:
    return packed_codes.unpacked(e, data, name) or sparse_constants.spread(e, data, name)


def _model(
    graph: Graph,
    opset: int,
    e: Emitter,
    inputs: Sequence[onnx.Value],
    outputs: Sequence[onnx.Value],
    defaults: Sequence[onnx.Value],
) -> onnx.Model:
    opsets = {domain: version for domain, version in graph.opsets.items() if domain not in ("", "ai.onnx")}
    opsets = {"": opset, **opsets, **{d: v for d, v in e.domains.items() if d not in opsets}}
    made = onnx.Graph(
        *(inputs, outputs),
        nodes=e.nodes,
        initializers=[*defaults, *e.initializers],
        opset_imports=opsets,
        name=graph.name,
    )
    extras: Mapping[str, Any] = graph.extras
    return onnx.Model(
        made,
        ir_version=ir_version(opsets, extras.get("ir_version")),
        producer_name="planish",
        functions=extras.get("functions") or (),
        metadata_props=dict(extras.get("metadata") or {}),
    )


class Interface:
    """Inputs and outputs of a graph as the source declared them."""

    def __init__(self, graph: Graph):
        extras: Mapping[str, Any] = graph.extras
        self._declared: Mapping[str, Any] = extras.get("declared") or {}
        self._defaults: Mapping[str, Data] = extras.get("defaults") or {}
        self._dim_params: dict[str, str] = extras.get("dim_params") or {}
        terminal = graph.tail
        self.outputs: tuple[str, ...] = getattr(terminal.op, "names", ()) if terminal is not None else ()
        self.names = {value.hint for value in graph.inputs} | set(self.outputs)
        self.output_wishes: dict[Value, str] = {}
        results = terminal.inputs if terminal is not None else []
        for name, value in zip(self.outputs, results, strict=True):
            if value.node is not None and not isinstance(value.op, Const):
                self.output_wishes.setdefault(value, name)

    def value(self, name: str, value: Value) -> onnx.Value:
        """A graph input."""
        type_, shape = self._type(name, value)
        return onnx.Value(name=name, type=type_, shape=shape)

    def output(self, e: Emitter, name: str, value: Value) -> onnx.Value:
        """The graph output `name`: the value itself if it has that name, else a copy."""
        lowered = e.values[value]
        if value.node is None and lowered.name == name:
            return lowered  # one value that is both input and output
        if lowered.name != name or lowered.is_initializer() or lowered.producer() is None:
            (lowered,) = e.call("", "Identity", (lowered,), {})
            lowered.name = name
        lowered.type, lowered.shape = self._type(name, value)
        return lowered

    def initializers(self, inputs: Sequence[onnx.Value]) -> list[onnx.Value]:
        """The inputs that have a default, with it."""
        found = [value for value in inputs if value.name in self._defaults]
        for value in found:
            value.const_value = tensor(self._defaults[value.name or ""], value.name or "")
        return found

    def _type(self, name: str, value: Value) -> tuple[onnx.TypeProtocol | None, onnx.Shape | None]:
        declared = self._declared.get(name)
        if declared is not None:
            return declared.type, declared.shape
        if not isinstance(value.type, TensorType):
            raise LoweringError(f"{name!r} of type {value.type} has no declared ONNX type")
        return onnx.TensorType(onnx_dtype(value.type.dtype)), onnx_shape(value.type, self._dim_params)


def _wish(node: Node, result: Value) -> str:
    if result.hint:
        return result.hint
    if isinstance(node.op, Const):
        return "constant"
    return f"{node.op.name}_{result.index}" if len(node.results) > 1 else node.op.name


def _goes_beside(graph: Graph, mode: str) -> bool:
    sizes = [node.op.data.nbytes for node in graph if isinstance(node.op, Const)]
    if mode == "auto":
        return sum(sizes) > EXTERNAL_AT
    return mode == "always" and max(sizes, default=0) > _SMALL


def _take_in(model: onnx.Model) -> None:
    """Replace tensors of subgraphs and attributes that live in other files by their contents."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, onnx.ExternalTensor):
                value.const_value = onnx.Tensor(value.const_value, dtype=value.const_value.dtype, name=value.name)
    for node in model.graph.all_nodes():
        for name, found in node.attributes.items():
            if found.type == onnx.AttributeType.TENSOR and isinstance(found.value, onnx.ExternalTensor):
                node.attributes[name] = onnx.AttrTensor(name, onnx.Tensor(found.value.numpy(), dtype=found.value.dtype))


def _refuse_overwriting(model: onnx.Model, data: Path) -> None:
    if not data.exists():
        return
    for graph in model.graphs():
        for value in graph.initializers.values():
            found = value.const_value
            if isinstance(found, onnx.ExternalTensor) and data.samefile(found.path):
                raise UsageError(
                    f"{data} holds the weights of the source model and would be overwritten",
                    remedy="choose another output path",
                )
