"""Streams whose rows can be made to have mean zero, so that LayerNorm on them is RMSNorm.

LN(x) = RMS(x C) with C = I - 1 1'/D, exactly and with the same epsilon. C is linear, so it moves through sums and token
moves to the writers of the stream: W <- W C, b <- b C, and constants lose the mean of each row. What else reads the
stream would see other numbers, so all its readers must be LayerNorms. Source: SliceGPT (arXiv 2401.15024), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from planish.ir import ops
from planish.ir.graph import Graph, Node, Value
from planish.ir.op import Const, as_value, constant
from planish.passes.norms.readers import axis_after
from planish.passes.raising.parameters import stored, wide

_PLACES = (ops.Slice, ops.Gather, ops.Split, ops.Expand, ops.Tile, ops.Transpose, ops.Reshape, ops.Squeeze,
           ops.Unsqueeze, ops.Identity)  # fmt: skip


@dataclass
class Stream:
    """Values that are added to each other. obstacle: why their rows can't be centred, "" if they can.

    writers: nodes whose weights have to be centred. norms: the LayerNorms that read the stream. constants: operands
    (node, index, channel axis) that are constant.
    """

    obstacle: str = ""
    writers: dict[Node, None] = field(default_factory=dict)
    norms: dict[Node, None] = field(default_factory=dict)
    constants: dict[tuple[Node, int], int] = field(default_factory=dict)

    def rewrite(self, graph: Graph, by: str) -> None:
        """Centre what writes the stream, and make RMSNorms of its norms."""
        for node in self.writers:
            axis = 0 if isinstance(node.op, ops.Conv) else 1
            for index, parameter in enumerate(node.inputs[1:], 1):
                _replace(graph, node, index, parameter, axis if index == 1 else 0, by)
        for (node, index), axis in self.constants.items():
            _replace(graph, node, index, node.inputs[index], axis, by)
        for node in self.norms:
            assert isinstance(node.op, ops.LayerNorm)
            x, gamma, beta = (*node.operands, None, None)[:3]
            value: Value = ops.RMSNorm(node.op.axis, node.op.eps)(x, gamma)
            value = value if beta is None else ops.Add()(value, beta)
            graph.attach(value, node, node.loc.made_by(by))
            value.hint = node.result.hint
            graph.replace(node.result, value)
            graph.erase_dead([node])


def centred_streams(graph: Graph) -> list[Stream]:
    """The streams that LayerNorms over the last axis read; each with what speaks against centring it."""
    found: list[Stream] = []
    placed: set[Value] = set()
    for node in graph.nodes(ops.LayerNorm):
        assert isinstance(node.op, ops.LayerNorm)
        if node.op.axis == -1 and node.inputs[0] not in placed:
            found.append(_stream(node.inputs[0], placed))
    return found


def _stream(start: Value, placed: set[Value]) -> Stream:
    stream = Stream()
    axes = {start: len(start.tensor.dims) - 1}
    work = [start]
    while work and not stream.obstacle:
        value = work.pop()
        placed.add(value)
        around = _written(value, axes[value], stream) + _read(value, axes[value], stream)
        for other, axis in around:
            if axes.setdefault(other, axis) != axis:
                stream.obstacle = "its channels lie along two axes"
            elif other not in placed:
                placed.add(other)
                work.append(other)
    return stream


def _written(value: Value, axis: int, stream: Stream) -> list[tuple[Value, int]]:
    """Notes what writes `value`; returns the other values of the stream that it comes from."""
    node = value.node
    if node is None:
        stream.obstacle = "an input of the model is added to it"
        return []
    last = axis == len(value.tensor.dims) - 1
    if (isinstance(node.op, ops.Linear) and last) or (isinstance(node.op, ops.Conv) and axis == 1):
        if any(constant(parameter) is None or len(parameter.uses) > 1 for parameter in node.inputs[1:]):
            stream.obstacle = f"the weights of {node.loc} are computed or shared"
        stream.writers[node] = None
        return []
    if isinstance(node.op, ops.Add) or (isinstance(node.op, ops.Concat) and node.op.axis != axis):
        return _operands(node, axis, stream)
    if isinstance(node.op, _PLACES):
        x = node.inputs[0]
        before = next((i for i in range(len(x.tensor.dims)) if axis_after(node, i) == axis), None)
        if before is not None and not isinstance(x.op, Const):
            return [(x, before)]
        if before is not None:
            stream.constants[node, 0] = before
            return []
    stream.obstacle = f"{node.op.name} ({node.loc}) writes it, which can't be made to write rows of mean zero"
    return []


def _operands(node: Node, axis: int, stream: Stream) -> list[tuple[Value, int]]:
    """The operands of a sum or a join with the channel axis of each, given that of the result; constants are noted."""
    found = []
    result = node.result.tensor
    for index, operand in enumerate(node.inputs):
        place = axis + len(operand.tensor.dims) - len(result.dims)
        if isinstance(operand.op, Const):
            if place < 0 or operand.tensor.dims[place] != result.dims[axis]:
                stream.obstacle = "a constant that isn't one number per channel is added to it"
            stream.constants[node, index] = place
        else:
            found.append((operand, place))
    return found


def _read(value: Value, axis: int, stream: Stream) -> list[tuple[Value, int]]:
    """Notes the norms that read `value`; returns the values of the stream that are made of it."""
    found = []
    for node, index in value.uses:
        op = node.op
        if isinstance(op, ops.LayerNorm) and index == 0 and op.axis == -1 and axis == len(value.tensor.dims) - 1:
            stream.norms[node] = None
            continue
        result = node.results[0] if node.results else value
        if isinstance(op, ops.Add):
            found.append((result, axis + len(result.tensor.dims) - len(value.tensor.dims)))
        elif isinstance(op, ops.Concat) and op.axis != axis:
            found.append((result, axis))
        elif index == 0 and isinstance(op, _PLACES) and (after := axis_after(node, axis)) is not None:
            found += [(part, after) for part in node.results]
        else:
            stream.obstacle = f"{op.name} ({node.loc}) reads it, which would see other numbers"
    return found


def _replace(graph: Graph, node: Node, index: int, parameter: Value, axis: int, by: str) -> None:
    """Give operand `index` of `node` less its means along `axis`."""
    data = constant(parameter)
    assert data is not None
    array = data.numpy()
    mean = np.mean(wide(array), axis=axis, keepdims=True)
    value = as_value(stored(wide(array) - mean, array))
    assert value is not None
    graph.attach(value, node, node.loc.made_by(by))
    value.hint = parameter.hint
    graph.set_operand(node, index, value)
    graph.erase_dead([parameter.node] if parameter.node is not None else [])
