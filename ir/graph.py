"""Values, nodes and graphs: one list of nodes in SSA form, with uses kept in step.

`Graph` is the only mutable thing of the IR, and its methods are the only mutations. Invariants (checked by
`planish.ir.verify`):

G1 every operand is defined earlier in the same graph.   G2 uses mirror operands exactly.
G3 a node's graph is the list it hangs in.               G4 the last node is the only Return; outputs are its operands.
G5 interface names are unique.
T1 result types equal `infer` of the operand types.      T2 every value has a type.
T3 constants fit their dtype.                            T4 quantization axis and scales fit the shape.
T5 constants are in the codebook of their type.          T6 the zeros of constants have the structure of their type.
L1 every node has a source, and a node made by a pass says which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from planish.ir.dims import Dim
from planish.ir.errors import RewriteError
from planish.ir.loc import Loc
from planish.ir.types import TensorType, Type, substitute

if TYPE_CHECKING:
    from planish.ir.op import Op


class Value:
    """A graph input or one result of a node. `hint` is its name in text and in written models."""

    __slots__ = ("hint", "index", "node", "type", "uses")

    def __init__(self, type_: Type, node: Node | None = None, index: int = 0, hint: str = ""):
        self.type, self.node, self.index, self.hint = type_, node, index, hint
        self.uses: dict[tuple[Node, int], None] = {}

    @property
    def op(self) -> Op | None:
        """The op that produces the value; None for a graph input."""
        return None if self.node is None else self.node.op

    @property
    def tensor(self) -> TensorType:
        """The type, which must be a tensor's. Raises RewriteError otherwise."""
        if not isinstance(self.type, TensorType):
            raise RewriteError(f"value {self.hint or '?'} of type {self.type} is used as a tensor")
        return self.type

    @property
    def users(self) -> list[Node]:
        """Nodes that read the value, without repeats, in order of first use."""
        return list(dict.fromkeys(node for node, _ in self.uses))

    def __repr__(self) -> str:
        return f"<{self.hint or 'value'}: {self.type}>"


class Node:
    """An op applied to operands. Detached (graph is None) until a graph takes it in."""

    __slots__ = ("graph", "loc", "next", "op", "operands", "prev", "results")

    def __init__(self, op: Op, operands: Iterable[Value | None], loc: Loc = Loc()):
        self.op, self.loc = op, loc
        self.operands: tuple[Value | None, ...] = tuple(operands)
        self.graph: Graph | None = None
        self.prev: Node | None = None
        self.next: Node | None = None
        self.results = tuple(Value(type_, self, i) for i, type_ in enumerate(op.infer_types(self.operands)))

    @property
    def result(self) -> Value:
        """The only result. Raises RewriteError if there are several."""
        if len(self.results) != 1:
            raise RewriteError(f"{self.op.name} has {len(self.results)} results, not one", where=str(self.loc))
        return self.results[0]

    @property
    def inputs(self) -> list[Value]:
        """The operands that are present."""
        return [operand for operand in self.operands if operand is not None]

    @property
    def label(self) -> str:
        """What people know it by: the name of its first source, or else of its result."""
        return self.loc.sources[0] if self.loc.sources else self.result.hint

    def __repr__(self) -> str:
        names = ", ".join("None" if v is None else v.hint or "?" for v in self.operands)
        return f"<{self.op!r}({names})>"


class Graph:
    """A function from inputs to outputs, as a list of nodes that ends in Return.

    opsets: operator-set version of each domain in the source model, for ops carried as Opaque.
    extras: what the frontend wants a writer to have back (functions, metadata); the IR doesn't look inside.
    """

    def __init__(self, name: str = "main"):
        self.name = name
        self.inputs: list[Value] = []
        self.head: Node | None = None
        self.tail: Node | None = None
        self.version = 0
        self.opsets: dict[str, int] = {}
        self.extras: dict[str, object] = {}

    # reading

    def __iter__(self) -> Iterator[Node]:
        """Nodes in order, Return last. The graph may be changed meanwhile: erased nodes are skipped."""
        node = self.head
        while node is not None:
            if node.graph is self:
                yield node
            node = node.next

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def outputs(self) -> tuple[Value, ...]:
        """Values that the graph returns."""
        return tuple(self.tail.inputs) if self.tail is not None else ()

    def nodes(self, *kinds: type[Op]) -> list[Node]:
        """All nodes whose op is of one of the given classes."""
        return [node for node in self if isinstance(node.op, kinds)]

    # building

    def add_input(self, name: str, type_: Type) -> Value:
        value = Value(type_, hint=name, index=len(self.inputs))
        self.inputs.append(value)
        self.version += 1
        return value

    def add(
        self, op: Op, *operands: Value | None, loc: Loc = Loc(), hint: str = "", before: Node | None = None
    ) -> Node:
        """Create a node at the end (before Return), or before a given node, and return it."""
        node = Node(op, operands, loc)
        if hint:
            for result in node.results:
                result.hint = hint if len(node.results) == 1 else f"{hint}_{result.index}"
        self.insert(node, before)
        return node

    def insert(self, node: Node, before: Node | None = None) -> None:
        """Take in a detached node. Its operands must be in the graph already."""
        if node.graph is not None:
            raise RewriteError("a node can be inserted only once", where=str(node.loc))
        anchor = before
        if anchor is None and self.tail is not None and not node.op.is_return:
            anchor = self.tail if self.tail.op.is_return else None
        previous = anchor.prev if anchor is not None else self.tail
        node.graph, node.prev, node.next = self, previous, anchor
        if previous is None:
            self.head = node
        else:
            previous.next = node
        if anchor is None:
            self.tail = node
        else:
            anchor.prev = node
        for i, operand in enumerate(node.operands):
            if operand is not None:
                operand.uses[node, i] = None
        self.version += 1

    def attach(self, value: Value, before: Node | None, loc: Loc) -> list[Node]:
        """Insert the detached nodes that `value` depends on, operands first, before a node or at the end; return them.

        They get `loc`.
        """
        added: list[Node] = []
        stack: list[tuple[Node, bool]] = [(value.node, False)] if value.node is not None else []
        while stack:
            node, ready = stack.pop()
            if node.graph is not None:
                continue
            if ready:
                node.loc = loc
                self.insert(node, before)
                added.append(node)
                continue
            stack.append((node, True))
            stack.extend((v.node, False) for v in reversed(node.inputs) if v.node is not None and v.node.graph is None)
        return added

    # changing

    def set_operand(self, node: Node, index: int, value: Value | None) -> None:
        """Make `value` operand number `index` of `node`. Types are not inferred again; see `refresh`."""
        old = node.operands[index]
        if old is not None:
            del old.uses[node, index]
        node.operands = (*node.operands[:index], value, *node.operands[index + 1 :])
        if value is not None:
            value.uses[node, index] = None
        self.version += 1

    def replace(self, old: Value, new: Value) -> None:
        """Make every user of `old` read `new`, and infer their types again where the types differ."""
        if old is new:
            return
        if not new.hint:
            new.hint = old.hint
        users = old.users
        for node, index in list(old.uses):
            self.set_operand(node, index, new)
        if old.type != new.type:
            self.refresh(users)

    def refresh(self, nodes: Sequence[Node]) -> None:
        """Infer the result types of `nodes` again, and of all that depend on what changed."""
        work = list(nodes)
        while work:
            node = work.pop()
            for result, type_ in zip(node.results, node.op.infer_types(node.operands), strict=True):
                if result.type != type_:
                    result.type = type_
                    work.extend(result.users)
        self.version += 1

    def erase(self, node: Node) -> None:
        """Take out a node whose results have no uses. Raises RewriteError otherwise."""
        if any(result.uses for result in node.results):
            raise RewriteError(f"{node.op.name} is still used and can't be erased", where=str(node.loc))
        for i, operand in enumerate(node.operands):
            if operand is not None:
                del operand.uses[node, i]
        if node.prev is None:
            self.head = node.next
        else:
            node.prev.next = node.next
        if node.next is None:
            self.tail = node.prev
        else:
            node.next.prev = node.prev
        node.graph = None  # prev and next stay, so that an iteration standing here finds its way on
        self.version += 1

    def erase_dead(self, nodes: Iterable[Node] | None = None) -> list[Node]:
        """Erase nodes without uses, among `nodes` or all, and what only they used; return the erased."""
        work = list(nodes) if nodes is not None else list(self)
        erased: list[Node] = []
        while work:
            node = work.pop()
            if node.graph is not self or node.op.is_return or any(result.uses for result in node.results):
                continue
            producers = [v.node for v in node.inputs if v.node is not None]
            self.erase(node)
            erased.append(node)
            work.extend(producers)
        return erased

    # copying

    def clone(
        self, replace_op: Callable[[Node], Op] | None = None, binding: Mapping[str, Dim] | None = None
    ) -> tuple[Graph, Mapping[Value, Value]]:
        """A deep copy (constants are shared), and the map from old values to new ones.

        binding: what symbols of shapes become.
        """
        copy = Graph(self.name)
        copy.opsets, copy.extras = dict(self.opsets), dict(self.extras)
        values: dict[Value, Value] = {}
        for value in self.inputs:
            values[value] = copy.add_input(value.hint, substitute(value.type, binding or {}))
        for node in self:
            op = node.op if replace_op is None else replace_op(node)
            twin = Node(op, (None if v is None else values[v] for v in node.operands), node.loc)
            copy.insert(twin)
            for old, new in zip(node.results, twin.results, strict=True):
                new.hint = old.hint
                values[old] = new
        return copy, values
