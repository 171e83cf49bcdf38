"""Who computes with the channels of a tensor: its readers, seen through ops that keep channels whole and apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planish.ir import dims, ops
from planish.ir.graph import Graph, Node, Value
from planish.ir.op import constant
from planish.passes.raising.weights import Affine, conv_of, linear_of
from planish.passes.rewrite import Rejection

_KEEPING = (
    ops.Transpose, ops.Reshape, ops.DynamicReshape, ops.Squeeze, ops.Unsqueeze, ops.Slice, ops.Gather, ops.Split,
    ops.Expand, ops.Tile, ops.ReduceMean, ops.Identity,
)  # fmt: skip
"""Ops that commute with an affine map of channels, as long as the channel axis goes through them."""


@dataclass(frozen=True)
class Reader:
    """Operand `index` of `node` is the tensor, its channels along `axis`."""

    node: Node
    index: int
    axis: int


def readers(value: Value, axis: int) -> Iterator[Reader]:
    """The nodes that compute with `value`, whose channels lie along `axis` (not negative)."""
    work = [(value, axis)]
    while work:
        value, axis = work.pop()
        for node, index in value.uses:
            after = axis_after(node, axis) if index == 0 else None
            if after is None:
                yield Reader(node, index, axis)
            else:
                work += [(result, after) for result in node.results]


def axis_after(node: Node, axis: int) -> int | None:
    """Where the channels of its first operand are in the result of `node`; None if it doesn't keep them."""
    op = node.op
    if not isinstance(op, _KEEPING):
        return None
    x, y = node.inputs[0].tensor, node.results[0].tensor
    match op:
        case ops.Transpose():
            return op.perm.index(axis)
        case ops.Slice():
            return None if axis in op.axes else axis
        case ops.Split():
            return None if axis == op.axis else axis
        case ops.Gather():
            if axis == op.axis:
                return None
            return axis if axis < op.axis else axis - 1 + len(node.inputs[1].tensor.dims)
        case ops.Tile():
            return axis if op.repeats[axis] == 1 else None
        case ops.ReduceMean():
            places = [place + len(x.dims) for place in op.axes]
            if axis in places:
                return None
            return axis if op.keepdims else axis - sum(place < axis for place in places)
    for after, extent in enumerate(y.dims):  # reshapes: as many channels, and as much behind them
        if extent == x.dims[axis] and dims.product(y.dims[after + 1 :]) == dims.product(x.dims[axis + 1 :]):
            return after
    return None


def folded(reader: Reader, affine: Affine) -> Value | str:
    """The reader of affine(x) as an expression of x with other weights, or why there is none."""
    node = reader.node
    if isinstance(node.op, ops.Return):
        return "it is an output of the model"
    if reader.index != 0 or not isinstance(node.op, ops.Linear | ops.Conv):
        return f"{node.op.name} reads it, which has no weights to take it in"
    x, w, *rest = node.operands
    data = constant(w)
    if x is None or data is None:
        return f"{node.op.name} reads it with a weight that is computed"
    b = rest[0] if rest else None
    try:
        if isinstance(node.op, ops.Linear):
            if reader.axis != len(x.tensor.dims) - 1:
                return f"Linear mixes another axis than {reader.axis}, that of the channels"
            return linear_of(affine, x, data.numpy(), b)
        if reader.axis != 1:
            return f"Conv mixes axis 1, and the channels are along {reader.axis}"
        return conv_of(affine, node.op, x, data.numpy(), b)
    except Rejection as why:
        return str(why)


def shared_weight(found: list[Reader]) -> str:
    """Why the readers' weights can't be changed: somebody else has them too. "" if nobody has."""
    nodes = {reader.node for reader in found}
    for node in nodes:
        for parameter in node.inputs[1:]:
            others = [user for user in parameter.users if user not in nodes]
            if others:
                return f"the weight of {node.op.name} is shared with {others[0].loc}"
    return ""


def fold_into_readers(graph: Graph, value: Value, axis: int, affine: Affine, source: Value, by: str) -> str:
    """Let all readers of `value` = affine(source) read `source` instead, with the map in their weights.

    axis: of the channels, not negative. Returns "" or, if nothing was changed, the reason.
    """
    found = list(readers(value, axis))
    if not found:
        return "nothing reads it"
    if reason := shared_weight(found):
        return reason
    made = [folded(reader, affine) for reader in found]
    for new in made:
        if isinstance(new, str):
            return new
    for reader, new in zip(found, made, strict=True):
        assert isinstance(new, Value)
        graph.attach(new, reader.node, reader.node.loc.made_by(by))
        new.hint = reader.node.result.hint
        graph.replace(reader.node.result, new)
        graph.erase_dead([reader.node])
    graph.replace(value, source)
    return ""
