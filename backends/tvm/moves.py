"""Ops that only say where elements of their operands lie, or give numbers that no operand holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.float_expressions import number
from planish.backends.tvm.scope import Expr, Index, extents
from planish.ir import ops
from planish.ir.graph import Node, Value
from planish.ir.op import Op

if TYPE_CHECKING:
    from planish.backends.tvm.expressions import Expression, Reader


def sliced(node: Node, reader: Reader, index: Index) -> Expr:
    op, x = node.op, node.inputs[0]
    assert isinstance(op, ops.Slice)
    shape, place = extents(x.tensor), list(index)
    for start, end, axis, step in zip(op.starts, op.ends, op.axes, op.steps, strict=True):
        first = int(np.arange(shape[axis])[_picked(shape[axis], start, end, step)][0])
        place[axis] = first + index[axis] * step
    return reader.at(x, tuple(place))


def _picked(extent: int, start: int, end: int, step: int) -> slice:
    """The slice of numpy: below zero an end of ONNX that lies before the first element means all of it."""
    start, end = (bound + extent if bound < 0 else bound for bound in (start, end))
    if step > 0:
        return slice(max(start, 0), max(end, 0), step)
    return slice(min(max(start, 0), extent - 1), None if end < 0 else end, step)


def part(value: Value, index: Index) -> Index:
    """Where an element of a result of Split lies in what is split."""
    node = value.node
    assert node is not None
    assert isinstance(node.op, ops.Split)
    start = sum(node.op.sizes[: node.results.index(value)])
    return tuple(i + start if axis == node.op.axis else i for axis, i in enumerate(index))


def tiled(node: Node, reader: Reader, index: Index) -> Expr:
    assert isinstance(node.op, ops.Tile)
    shape, repeats = extents(node.inputs[0].tensor), node.op.repeats
    place = (
        0 if extent == 1 else i if count == 1 else T.floormod(i, extent)
        for i, extent, count in zip(index, shape, repeats, strict=True)
    )
    return reader.at(node.inputs[0], tuple(place))


def padded(node: Node, reader: Reader, index: Index) -> Expr:
    """Elements outside take the filler, or those of the nearest place inside that the mode names."""
    op, x = node.op, node.inputs[0]
    assert isinstance(op, ops.Pad)
    shape, inside = extents(x.tensor), None
    place: list[Expr] = []
    for i, extent, before, after in zip(index, shape, op.pads[: len(shape)], op.pads[len(shape) :], strict=True):
        if before == after == 0:
            place.append(i)
            continue
        low, high = max(0, -before), extent - 1 - max(0, -after)  # first and last element that isn't cut off
        at = i - before
        here = T.And(at >= low, at <= high)
        inside = here if inside is None else T.And(inside, here)
        if op.mode == "reflect":
            period = max(2 * (high - low), 1)
            turned = T.floormod(at - low, period)
            place.append(low + T.min(turned, period - turned))
        elif op.mode == "wrap":
            place.append(low + T.floormod(at - low, high - low + 1))
        else:
            place.append(T.min(T.max(at, low), high))
    element = reader.at(x, tuple(place))
    if op.mode != "constant" or inside is None:
        return element
    return T.Select(inside, element, number(op.value, x.tensor.dtype))


def filled(node: Node, reader: Reader, index: Index) -> Expr:
    assert isinstance(node.op, ops.ConstantOfShape)
    return number(node.op.value.numpy().reshape(()).item(), node.result.tensor.dtype)


def counted(node: Node, reader: Reader, index: Index) -> Expr:
    start, _, delta = node.inputs
    i = T.cast(index[0], str(node.result.tensor.dtype.storage))
    return reader.at(start, ()) + i * reader.at(delta, ())


def shape_of_operand(node: Node, reader: Reader, index: Index) -> Expr:
    """Shape and Size: extents are fixed, so their contents are known."""
    known = node.result.tensor.known
    assert known is not None
    contents = reader.scope.constant((node, "known"), np.array([int(i) for i in known] or [0], np.int64))
    return contents[index or (0,)]


MOVES: Mapping[type[Op], Expression] = {
    ops.Slice: sliced,
    ops.Tile: tiled,
    ops.Pad: padded,
    ops.ConstantOfShape: filled,
    ops.Range: counted,
    ops.Shape: shape_of_operand,
    ops.Size: shape_of_operand,
}
