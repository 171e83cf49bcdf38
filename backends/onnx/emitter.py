"""Makes onnx_ir nodes: what lowering functions write to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as onnx

from planish.backends.onnx.dialect import Dialect
from planish.backends.onnx.names import Names
from planish.backends.onnx.opsets import since_version
from planish.backends.onnx.types import onnx_dtype
from planish.ir.data import Data
from planish.ir.errors import UnsupportedOp
from planish.ir.graph import Node, Value
from planish.ir.loc import Loc
from planish.ir.op import Const

Lowered = onnx.Value | Sequence[onnx.Value]
Lowering = Callable[["Emitter", Node, list["onnx.Value | None"]], Lowered]
"""A lowering function: from a node and its lowered operands to its lowered results."""

ConstantLowering = Callable[["Emitter", Data, str], "onnx.Value | None"]
"""From a constant and a name for it to the value that it is made of; None for a plain initializer."""

Scalar: TypeAlias = int | float | str | bytes | Data
Attribute: TypeAlias = Scalar | Sequence[Scalar] | Sequence[int]


def expanded(e: Emitter, node: Node, x: list[onnx.Value | None]) -> Lowered:
    """The lowering of ops that are written as what they decompose into."""
    return e.expand(node)


class Emitter:
    """Collects the nodes and initializers of one graph. Emitted values get their names when a node is finished.

    forms: another form in which a lowered value is there too, by agreement between lowering functions; `sweep` takes
    out what nobody reads then.
    """

    def __init__(
        self, dialect: Dialect, names: Names, lowerings: dict[type, Lowering], constants: ConstantLowering | None = None
    ):
        self.dialect, self.names = dialect, names
        self.nodes: list[onnx.Node] = []
        self.initializers: list[onnx.Value] = []
        self.domains: dict[str, int] = {}
        self.values: dict[Value, onnx.Value] = {}
        self.forms: dict[onnx.Value, onnx.Value] = {}
        self._lowerings, self._constant_lowering = lowerings, constants
        self._constants: dict[Data, onnx.Value] = {}
        self._node_names = Names()
        self._unnamed: list[onnx.Value] = []
        self._sweepable: set[int] = set()
        self._spared: set[int] = set()
        self._loc = Loc()

    @property
    def opset(self) -> int:
        return self.dialect.opset

    # for lowering functions

    def op(self, op_type: str, *operands: onnx.Value | None, **attributes: Attribute) -> onnx.Value:
        """A node of the default domain with one result. Raises UnsupportedOp if the operator set lacks the op."""
        if since_version(op_type, "", self.opset) is None:
            self.unsupported(op_type)
        return self.call("", op_type, operands, attributes)[0]

    def contrib(self, op_type: str, *operands: onnx.Value | None, **attributes: Attribute) -> onnx.Value:
        """A node of ONNX Runtime's own domain with one result."""
        self.domains["com.microsoft"] = 1
        return self.call("com.microsoft", op_type, operands, attributes)[0]

    def call(
        self,
        domain: str,
        op_type: str,
        operands: Iterable[onnx.Value | None],
        attributes: dict[str, Attribute],
        results: int = 1,
    ) -> Sequence[onnx.Value]:
        """A node of any domain."""
        return self.add(
            onnx.Node(domain, op_type, _trimmed(operands), [attribute(*item) for item in attributes.items()],
                      num_outputs=results)
        )  # fmt: skip

    def add(self, node: onnx.Node) -> Sequence[onnx.Value]:
        """Take in a finished onnx_ir node."""
        node.name = self._node_names.unique(self._loc.sources[0] if self._loc.sources else node.op_type)
        node.metadata_props.update(_provenance(self._loc))
        self.nodes.append(node)
        self._unnamed.extend(node.outputs)
        return node.outputs

    def constant(self, array: np.ndarray, name: str = "constant") -> onnx.Value:
        """An initializer; equal ones are shared."""
        return self._initializer(Data(array), name)

    def scalar(self, number: float | bool, like: Value) -> onnx.Value:
        """A rank-0 initializer of the element type of `like`."""
        with np.errstate(over="ignore"):  # a bound beyond the range of a small float type is infinite
            return self.constant(np.asarray(number).astype(like.tensor.dtype.storage), "scalar")

    def ints(self, numbers: Iterable[int]) -> onnx.Value:
        """A rank-1 int64 initializer: axes, shapes, pads."""
        return self.constant(np.asarray(tuple(numbers), np.int64), "ints")

    def expand(self, node: Node) -> Lowered:
        """Lower the decomposition of the node's op. Raises UnsupportedOp if it has none."""
        made = node.op.decompose(*node.operands)
        if made is None:
            self.unsupported(node.op.name)
        results = made if isinstance(made, tuple) else (made,)
        present = [result for result in results if result is not None]
        for result in present:
            self._lower_detached(result)
        lowered = [self.values[result] for result in present]
        return lowered[0] if len(lowered) == 1 else lowered

    def spare(self, x: onnx.Value | None) -> None:
        """A constant operand that a lowering has in another form: `sweep` takes it out unless something reads it."""
        self._spared.add(id(x))

    def unsupported(self, what: str) -> None:
        """Raise UnsupportedOp: `what` can't be said in this operator set."""
        raise UnsupportedOp(
            f"{what} can't be expressed in ONNX operator set {self.opset}",
            where=str(self._loc),
            remedy="write the model with a newer operator set",
        )

    def refuse(self, what: str) -> None:
        """Raise UnsupportedOp: `what` has no form without multiplications."""
        raise UnsupportedOp(
            f"{what} has no form without multiplications",
            where=str(self._loc),
            remedy="leave out --no-multiply, or keep this op out of the graph: --recipe integer has such forms",
        )

    # for the writer

    def sweep(self, outputs: Iterable[onnx.Value]) -> None:
        """Take out nodes of lowerings that offered several forms, and spared constants, where nobody reads them."""
        kept = {id(value) for value in outputs}
        alive, freed = [], set(self._spared)
        for node in reversed(self.nodes):
            if id(node) not in self._sweepable or any(id(v) in kept or v.uses() for v in node.outputs):
                alive.append(node)
                continue
            for index, value in enumerate(node.inputs):
                freed.add(id(value))
                node.replace_input_with(index, None)
        self.nodes = alive[::-1]
        self.initializers = [v for v in self.initializers if id(v) not in freed or v.uses() or id(v) in kept]

    def at(self, loc: Loc) -> None:
        """Nodes emitted from here on stem from `loc`."""
        self._loc = loc

    def lower(self, node: Node, wishes: Sequence[str]) -> None:
        """Lower a node of the graph; its results are named after `wishes`, uniquely unless reserved by the caller."""
        self._loc = node.loc
        first, forms = len(self.nodes), len(self.forms)
        if isinstance(node.op, Const):
            self.values[node.result] = self._constant(node.op.data, wishes[0])
            return
        for result, value, wish in zip(node.results, self._lower(node), wishes, strict=True):
            self.values[result] = value
            if value.name is None:
                value.name = wish
        self._finish(first, {id(self.values[result].producer()) for result in node.results})
        if len(self.forms) > forms:
            self._sweepable.update(map(id, self.nodes[first:]))

    def _finish(self, first: int, results: Collection[int]) -> None:
        """Name what was emitted from node number `first` on; name and provenance stand where results are made."""
        for inner in self.nodes[first:]:
            if id(inner) not in results:
                inner.metadata_props.clear()
                inner.name = ""
        for value in self._unnamed:
            if value.name is None:
                value.name = self.names.unique("t")  # an integer op is up to 50 nodes: long names would add up
        self._unnamed.clear()

    def _lower(self, node: Node) -> Sequence[onnx.Value]:
        if (lowering := self._lowerings.get(type(node.op))) is None:
            name = getattr(node.op, "op_type", node.op.name)  # of a node that is carried through
            (self.unsupported if self.dialect.spellings.multiply else self.refuse)(name)
            raise AssertionError  # unreachable; keeps type checkers content
        made = lowering(self, node, [None if v is None else self.values[v] for v in node.operands])
        return [made] if isinstance(made, onnx.Value) else made

    def _lower_detached(self, value: Value) -> None:
        stack: list[Value] = [value]
        while stack:
            current = stack[-1]
            if current in self.values:
                stack.pop()
                continue
            node = current.node
            if node is None or node.graph is not None:
                raise UnsupportedOp("a decomposition reads a value that is not lowered yet", where=str(self._loc))
            missing = [v for v in node.inputs if v not in self.values]
            if missing:
                stack.extend(reversed(missing))
            elif isinstance(node.op, Const):
                self.values[current] = self._constant(node.op.data, "constant")
            else:
                self.values.update(zip(node.results, self._lower(node), strict=True))

    def _constant(self, data: Data, wish: str) -> onnx.Value:
        """A constant of the graph; what it is made of goes again where its readers have another form of it."""
        first = len(self.nodes)
        made = None if self._constant_lowering is None else self._constant_lowering(self, data, wish)
        if made is None:
            return self._initializer(data, wish)
        made.name = self.names.unique(wish)
        self._finish(first, ())
        self._sweepable.update(map(id, self.nodes[first:]))
        return made

    def _initializer(self, data: Data, wish: str) -> onnx.Value:
        if (value := self._constants.get(data)) is None:
            name = self.names.unique(wish)
            value = onnx.Value(name=name, const_value=tensor(data, name))
            self._constants[data] = value
            self.initializers.append(value)
        return value


def tensor(data: Data, name: str = "") -> onnx.TensorProtocol:
    """The onnx_ir tensor of a constant: the one it was read from, or a new one."""
    if isinstance(data.origin, onnx.TensorProtocol):
        return data.origin
    array, dtype = data.numpy(), onnx_dtype(data.type.dtype)
    if dtype == onnx.DataType.STRING:
        encoded = [text if isinstance(text, bytes) else str(text).encode() for text in array.reshape(-1).tolist()]
        return onnx.StringTensor(
            np.array(encoded, object).reshape(array.shape), shape=onnx.Shape(array.shape), name=name
        )
    return onnx.Tensor(array, dtype=dtype, name=name)


def attribute(name: str, value: Attribute) -> onnx.Attr:
    """An onnx_ir attribute from a plain Python value; an empty sequence becomes a list of integers."""
    match value:
        case Data():
            return onnx.AttrTensor(name, tensor(value))
        case bool() | int():
            return onnx.AttrInt64(name, int(value))
        case float():
            return onnx.AttrFloat32(name, value)
        case str() | bytes():
            return onnx.Attr(name, onnx.AttributeType.STRING, value)
    items = list(value)
    if items and isinstance(items[0], Data):
        return onnx.Attr(name, onnx.AttributeType.TENSORS, [tensor(item) for item in items if isinstance(item, Data)])
    kind = type(items[0]) if items else int
    kinds = {int: onnx.AttributeType.INTS, bool: onnx.AttributeType.INTS, float: onnx.AttributeType.FLOATS,
             str: onnx.AttributeType.STRINGS, bytes: onnx.AttributeType.STRINGS}  # fmt: skip
    return onnx.Attr(name, kinds[kind], items)


def _trimmed(operands: Iterable[onnx.Value | None]) -> list[onnx.Value | None]:
    found = list(operands)
    while found and found[-1] is None:
        found.pop()
    return found


def _provenance(loc: Loc) -> dict[str, str]:
    shown = {"planish.sources": ",".join(loc.sources), "planish.scope": loc.scope, "planish.via": ",".join(loc.via)}
    return {key: text for key, text in shown.items() if text}
