"""Where tokens are: which axis of a tensor they lie along, and what each op does to that axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from planish.ir import dims, ops
from planish.ir.dims import Dim
from planish.ir.graph import Node, Value
from planish.ir.op import Op, constant
from planish.passes.tokens.refusal import Refusal


@dataclass(frozen=True)
class Place:
    """Tokens lie along `axis`; `lead` and `tail` are extents (the batch) merged into it before and behind them."""

    axis: int
    lead: Dim = 1
    tail: Dim = 1

    def at(self, axis: int) -> Place:
        """The same along another axis."""
        return replace(self, axis=axis)


class Reads(Exception):
    """The node reads protected tokens only: single ones, by their index."""


class Needs(Exception):
    """The node needs all tokens in their places. condition, reason: why it may not be given fewer."""

    def __init__(self, condition: str, reason: str):
        super().__init__(reason)
        self.condition, self.reason = condition, reason


_BEFORE_AXIS = (ops.LayerNorm, ops.RMSNorm, ops.Softmax, ops.LogSoftmax)
_REDUCTIONS = (ops.ReduceMean, ops.ReduceSum, ops.ReduceMax, ops.ReduceMin, ops.ReduceProd, ops.ReduceL2)
_RENAMING = (ops.Reshape, ops.DynamicReshape, ops.Squeeze, ops.Unsqueeze)


def place_after(node: Node, found: Mapping[int, Place], tokens: int, protected: int) -> Place:
    """Where tokens are in the results of a node, from where they are in its operands.

    Raises Reads or Needs where the results have no token axis of their own, Refusal for causal attention.
    """
    op = node.op
    if op.pointwise:
        return _aligned(node, found)
    if isinstance(op, ops.Attention):
        return _attended(node, found)
    index, place = next(iter(found.items()))
    x = node.operands[index]
    assert x is not None
    rank, axis = len(x.tensor.dims), place.axis
    match op:
        case ops.Linear() | ops.MatMul() if index == 0 and len(found) == 1 and axis < rank - 1:
            if constant(node.operands[1]) is not None:
                return place
        case _ if isinstance(op, _BEFORE_AXIS) and index == 0:
            if axis < rank + op.axis:
                return place
        case ops.BatchNorm() if index == 0 and axis != 1:
            return place
        case ops.Transpose():
            return place.at(op.perm.index(axis))
        case _ if isinstance(op, _RENAMING) and index == 0:
            return _renamed(node, place, tokens)
        case ops.Slice():
            if axis not in op.axes:
                return place
            _read_by_slice(op, axis, protected)
        case ops.Split() if axis != op.axis:
            return place
        case ops.Gather() if index == 0:
            if axis != op.axis:
                return place.at(axis if axis < op.axis else axis - 1 + len(node.inputs[1].tensor.dims))
            _read_by_gather(node, protected)
        case ops.Concat() if axis != op.axis and len(found) == len(node.operands) and len(set(found.values())) == 1:
            return place
        case ops.RotaryEmbedding() if index == 0 and axis == 2:
            return place
        case _ if isinstance(op, _REDUCTIONS):
            axes = [a + rank for a in op.axes]
            if axis not in axes:
                keeps = op.keepdims
                return place if keeps else place.at(axis - sum(a < axis for a in axes))
    raise Needs("T4", f"{op.name} mixes or picks tokens by their position")


def _aligned(node: Node, found: Mapping[int, Place]) -> Place:
    """Of an op that computes element by element, operands broadcast."""
    rank = len(node.results[0].tensor.dims)
    places = set()
    for index, place in found.items():
        operand = node.operands[index]
        assert operand is not None
        places.add(place.at(place.axis + rank - len(operand.tensor.dims)))
    if len(places) > 1:
        raise Refusal("T1", f"operands of {node.op.name} have their tokens along different axes", node)
    return places.pop()


def _attended(node: Node, found: Mapping[int, Place]) -> Place:
    """Of attention: queries keep their tokens; keys and values are summed over theirs."""
    op = node.op
    assert isinstance(op, ops.Attention)
    if op.causal:
        raise Refusal("T14", "attention is causal: merged tokens would leak what comes later", node)
    if any(found.get(i, Place(2)) != Place(2) for i in range(3)) or (1 in found) != (2 in found):
        raise Refusal("T1", "queries, keys and values have their tokens along different axes", node)
    if 0 not in found:
        raise Needs("T6", "queries of other tokens look at these")
    return Place(2)


def _renamed(node: Node, place: Place, tokens: int) -> Place:
    """Through a reshape: as much before and behind the tokens as there was."""
    x, y = node.inputs[0].tensor, node.results[0].tensor
    before = dims.mul(dims.product(x.dims[: place.axis]), place.lead)
    behind = dims.mul(dims.product(x.dims[place.axis + 1 :]), place.tail)
    for axis, extent in enumerate(y.dims):
        lead = _quotient(before, dims.product(y.dims[:axis]))
        tail = _quotient(behind, dims.product(y.dims[axis + 1 :]))
        if lead is not None and tail is not None and dims.mul(dims.mul(lead, tokens), tail) == extent:
            return Place(axis, lead, tail)
    raise Needs("T4", f"{node.op.name} takes tokens apart by their position, to {list(y.dims)}")


def _quotient(a: Dim, b: Dim) -> Dim | None:
    """a / b if that is exact."""
    if b == 0:
        return None
    result = dims.floordiv(a, b)
    return result if dims.mul(result, b) == a else None


def _read_by_slice(op: ops.Slice, axis: int, protected: int) -> None:
    """Raises Reads for a slice of protected tokens."""
    i = op.axes.index(axis)
    if op.steps[i] == 1 and 0 <= op.starts[i] < op.ends[i] <= protected:
        raise Reads


def _read_by_gather(node: Node, protected: int) -> None:
    """Raises Reads for constant indices of protected tokens."""
    data = constant(node.operands[1])
    if data is not None and data.size and all(0 <= i < protected for i in data.numpy().reshape(-1).tolist()):
        raise Reads


def resized(node: Node, before: Place, after: Place, old: int, new: int) -> Op:
    """The op of a node for `new` tokens instead of `old`. Raises Refusal (T7) where it can't be said."""
    op = node.op
    if not isinstance(op, ops.Reshape | ops.DynamicReshape):
        return op
    x, y = node.inputs[0].tensor, node.results[0].tensor
    target = list(op.shape) if isinstance(op, ops.Reshape) else [None] * len(y.dims)
    shape: list[int] = []
    for axis, extent in enumerate(y.dims):
        if axis == after.axis:
            extent = dims.mul(dims.mul(after.lead, new), after.tail)
        copied = axis < len(x.dims) and axis != after.axis and axis != before.axis and x.dims[axis] == y.dims[axis]
        if target[axis] == 0 and (axis == before.axis) == (axis == after.axis):
            shape.append(0)
        elif isinstance(extent, int):
            shape.append(extent)
        else:
            shape.append(0 if copied else -1)
    if shape.count(-1) > 1:
        raise Refusal("T7", f"the shape {list(y.dims)} can't be written for {new} tokens instead of {old}", node)
    return ops.Reshape(tuple(shape))


def token_axis_of(value: Value, tokens: int) -> int | None:
    """The axis of a [batch, tokens, channels] tensor that tokens lie along."""
    type_ = value.tensor
    return 1 if len(type_.dims) == 3 and type_.dims[1] == tokens and isinstance(type_.dims[2], int) else None
