"""Slices move up to the inputs of what they pick from, so that only what is read is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from planish.ir import dims, ops
from planish.ir.graph import Graph, Node, Value
from planish.ir.loc import Loc
from planish.ir.op import Const, Op, constant
from planish.passes.base import Context, Pass
from planish.passes.exactness import ROUNDING, Exactness
from planish.passes.rewrite import Changes

_UNARY: tuple[type[Op], ...] = (
    ops.Gelu, ops.Relu, ops.Tanh, ops.Sigmoid, ops.Swish, ops.HardSwish, ops.HardSigmoid, ops.LeakyRelu, ops.Elu,
    ops.Clip, ops.Erf, ops.Exp, ops.Sqrt, ops.Neg, ops.Abs, ops.Softplus, ops.Cast,
)  # fmt: skip
_BINARY: tuple[type[Op], ...] = (ops.Add, ops.Sub, ops.Mul, ops.Div)


@dataclass(frozen=True)
class HoistSlices(Pass):
    """f(x)[i:j] = f(x[i:j]), where f treats rows one by one and nobody reads the rest of it.

    The classifier of a vision transformer reads the class token only: then its last block needs one query, one row of
    the MLP and one row of the last norm. f: Linear, norms, activations, sums and products, the queries of Attention,
    and moves of other axes. Products of fewer rows may be summed in another order.
    """

    name: ClassVar[str] = "hoist-slices"
    exactness: ClassVar[Exactness] = ROUNDING

    def run(self, graph: Graph, context: Context) -> Changes:
        changes = Changes()
        for node in graph.nodes(ops.Gather):
            _as_slice(graph, node, self.name)
        work = graph.nodes(ops.Slice)
        while work and context.fuelled:
            node = work.pop()
            if node.graph is not graph or not _narrows(node):
                continue
            made = _hoisted(node, context)
            if made is None:
                continue
            loc = node.loc.made_by(self.name)
            old, producer = node.result, node.inputs[0].node
            assert producer is not None
            graph.attach(made, node, Loc.fuse([producer.loc, loc]).made_by(self.name))
            made.hint = producer.results[0].hint
            context.on_rewrite(self.name, old, made)
            graph.replace(old, made)
            graph.erase_dead([node])
            changes.rewrites[self.name] += 1
            context.burn()
            work += [slice_ for v in made.node.inputs for slice_ in _shared(graph, v)] if made.node is not None else []
        return changes


def _narrows(node: Node) -> bool:
    """True if the Slice cuts one axis of known extent in steps of 1, and leaves less than there was."""
    op, x = node.op, node.inputs[0].tensor
    assert isinstance(op, ops.Slice)
    if len(op.axes) != 1 or op.steps != (1,):
        return False
    before, after = x.dims[op.axes[0]], node.result.tensor.dims[op.axes[0]]
    return isinstance(before, int) and isinstance(after, int) and after < before


def _hoisted(node: Node, context: Context) -> Value | None:
    """The expression with slices of the operands in place of a slice of the result; None if there is none."""
    op, y = node.op, node.inputs[0]
    assert isinstance(op, ops.Slice)
    producer, axis = y.node, op.axes[0]
    if producer is None or len(producer.results) != 1 or len(y.uses) != 1:
        return None
    places = _operand_axes(producer, axis)
    if not places:
        return None
    operands = [
        v if v is None or i not in places else ops.Slice(op.starts, op.ends, (places[i],), op.steps)(v)
        for i, v in enumerate(producer.operands)
    ]
    made: Value = _resized(producer, axis, node)(*operands)
    return made if made.type.interface() == node.result.type.interface() else None


def _operand_axes(node: Node, axis: int) -> Mapping[int, int]:
    """Which operands have to be sliced along which of their axes, for a slice of the result along `axis`."""
    op, rank = node.op, len(node.result.tensor.dims)
    match op:
        case ops.Linear() if axis < rank - 1:
            return {0: axis}
        case ops.LayerNorm() | ops.RMSNorm() if axis < rank + op.axis:
            return {0: axis}
        case ops.Softmax() if axis != rank + op.axis:
            return {0: axis}
        case ops.Attention() if axis == 2 and not op.causal and _mask_rows(node) in (None, 1):
            return {0: 2}
        case ops.Transpose():
            return {0: op.perm[axis]}
        case ops.Reshape():
            return _through_reshape(node, axis)
        case _ if isinstance(op, _UNARY):
            return {0: axis}
        case _ if isinstance(op, _BINARY):
            return _broadcast_axes(node, axis)
    return {}


def _mask_rows(node: Node) -> object:
    """Rows of the mask of an Attention: one for all queries, or one for each; None without a mask."""
    mask = node.operands[3] if len(node.operands) > 3 else None
    return None if mask is None else (1, *mask.tensor.dims)[-2]


def _broadcast_axes(node: Node, axis: int) -> Mapping[int, int]:
    """The axis of each operand of an elementwise op that isn't broadcast along it."""
    found = {}
    rank = len(node.result.tensor.dims)
    for index, operand in enumerate(node.inputs):
        place = axis - rank + len(operand.tensor.dims)
        if place >= 0 and operand.tensor.dims[place] != 1:
            found[index] = place
    return found


def _through_reshape(node: Node, axis: int) -> Mapping[int, int]:
    """The axis before a Reshape that is `axis` after it: as long, with as much behind it."""
    x, y = node.inputs[0].tensor, node.result.tensor
    for before, extent in enumerate(x.dims):
        if extent == y.dims[axis] and dims.product(x.dims[before + 1 :]) == dims.product(y.dims[axis + 1 :]):
            return {0: before}
    return {}


def _resized(node: Node, axis: int, reader: Node) -> Op:
    """The op of `node` for fewer rows along `axis` of its result."""
    if isinstance(node.op, ops.Reshape):
        shape = list(node.op.shape)
        extent = reader.result.tensor.dims[axis]
        assert isinstance(extent, int)
        shape[axis] = extent
        return ops.Reshape(tuple(shape))
    return node.op


def _as_slice(graph: Graph, node: Node, by: str) -> None:
    """Gather of one index as Slice and, if the index is a scalar, Squeeze: the spelling that can move."""
    assert isinstance(node.op, ops.Gather)
    x, index = node.inputs
    data = constant(index)
    extent = x.tensor.dims[node.op.axis]
    if data is None or data.size != 1 or not isinstance(extent, int) or len(data.type.dims) > 1 or extent == 1:
        return
    producer = x.node
    if producer is None or len(producer.results) != 1 or len(x.uses) != 1 or isinstance(producer.op, Const):
        return
    if not _operand_axes(producer, node.op.axis):
        return
    place = int(data.numpy().reshape(())) % extent
    value: Value = ops.Slice((place,), (place + 1,), (node.op.axis,), (1,))(x)
    value = value if data.type.dims else ops.Squeeze((node.op.axis,))(value)
    graph.attach(value, node, node.loc.made_by(by))
    graph.replace(node.result, value)
    graph.erase_dead([node])


def _shared(graph: Graph, value: Value) -> list[Node]:
    """The Slices to look at again once `value` is there: itself, made one with an equal one on the same tensor."""
    node = value.node
    if node is None or not isinstance(node.op, ops.Slice):
        return []
    x = node.inputs[0]
    twins = [user for user in x.users if user is not node and user.op == node.op and user.inputs[0] is x]
    for twin in twins:
        _merge(graph, node, twin)
    return [user for user in x.users if isinstance(user.op, ops.Slice)]


def _merge(graph: Graph, node: Node, twin: Node) -> None:
    """Let readers of `twin` read `node`, which is moved to right behind its operand so that it is there in time."""
    x = node.inputs[0]
    made: Value = node.op(x)
    first = graph.head if x.node is None else x.node.next
    graph.attach(made, first, node.loc)
    made.hint = node.result.hint
    for old in (node, twin):
        graph.replace(old.result, made)
        graph.erase_dead([old])
