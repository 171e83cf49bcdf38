"""Concat, Split and Slice that undo each other, or can be said in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from planish.ir import dims
from planish.ir.dims import Dim
from planish.ir.graph import Graph, Node, Value
from planish.ir.ops import Concat, Slice, Split
from planish.ir.types import TensorType
from planish.passes.base import Context, Pass
from planish.passes.cleanup.replacing import Replacer
from planish.passes.rewrite import Changes

_FAR = 2**31 - 1  # a slice bound from here on means "to the end": no axis is that long


@dataclass(frozen=True)
class SimplifyJoins(Pass):
    """Drop joins of what was cut apart, and cuts of what was joined at the same places; flatten nested joins.

    Concat of one part; Concat whose part is a Concat that only it reads; Concat of adjacent parts of one value; Split
    into one part; Split and Slice of a Concat, at the seams or inside one part.
    """

    name: ClassVar[str] = "simplify-joins"

    def run(self, graph: Graph, context: Context) -> Changes:
        replacer = Replacer(self.name, graph, context)
        for node in graph:
            if isinstance(node.op, Split):
                _simplify_split(replacer, node, node.op)
                continue
            current: Node | None = node
            while current is not None and (new := _simpler(current)) is not None:
                again = new.node if new.node is not None and new.node.graph is None else None
                if not replacer.replace(current.results[0], new, [current]):
                    break
                current = again
        return replacer.changes


def _simpler(node: Node) -> Value | None:
    """What can stand in the place of a Concat or Slice; None if nothing."""
    if len(node.results) != 1 or not node.results[0].uses:
        return None
    new = None
    if isinstance(node.op, Concat):
        new = _joined(node.inputs, node.op.axis) or _flattened(node, node.op.axis)
    elif isinstance(node.op, Slice):
        new = _slice_of_join(node)
    return new if new is not None and new.type.interface() == node.results[0].type.interface() else None


def _joined(parts: Sequence[Value], axis: int) -> Value | None:
    """The value, or the slice of one, that `parts` are in order."""
    if len(parts) == 1:
        return parts[0]
    pieces = [_piece(part, axis) for part in parts]
    first = pieces[0]
    if first is None:
        return None
    source, begin, end = first
    for piece in pieces[1:]:
        if piece is None or piece[0] is not source or piece[1] != end:
            return None
        end = piece[2]
    return _cut(source, axis, begin, end)


def _flattened(node: Node, axis: int) -> Value | None:
    """The Concat with the parts of inner ones along the same axis, and without empty parts."""
    parts: list[Value] = []
    for part in node.inputs:
        if part.tensor.dims[axis] == 0:
            continue
        inner = part.node
        if inner is not None and inner.op == Concat(axis=axis) and len(part.uses) == 1:
            parts.extend(inner.inputs)
        else:
            parts.append(part)
    if not parts or parts == node.inputs:
        return None
    return Concat(axis=axis)(*parts)


def _simplify_split(replacer: Replacer, node: Node, op: Split) -> None:
    source = node.inputs[0]
    bounds = [0]
    for size in op.sizes:
        bounds.append(bounds[-1] + size)
    found = [_part_of_join(source, op.axis, a, b, whole=True) for a, b in pairwise(bounds)]
    if len(op.sizes) == 1:
        found = [source]
    pairs = [(old, new) for old, new in zip(node.results, found, strict=True) if old.uses]
    if all(new is not None and new.type.interface() == old.type.interface() for old, new in pairs):
        for old, new in pairs:
            if new is not None:
                replacer.replace(old, new, [node])


def _slice_of_join(node: Node) -> Value | None:
    cut = _piece(node.results[0], _only_axis(node.op))
    if cut is None:
        return None
    source, begin, end = cut
    return _part_of_join(source, _only_axis(node.op), begin, end, whole=False)


def _part_of_join(joined: Value, axis: int, begin: Dim, end: Dim, whole: bool) -> Value | None:
    """Elements begin..end along the axis of a Concat, from its parts; None if they can't be said so.

    They start and end at seams, or (unless `whole`) lie inside one part.
    """
    node = joined.node
    if node is None or node.op != Concat(axis=axis) or begin == end:
        return None
    seams: list[Dim] = [0]
    for part in node.inputs:
        seams.append(dims.add(seams[-1], part.tensor.dims[axis]))
    if begin in seams and end in seams:
        parts = node.inputs[seams.index(begin) : len(seams) - 1 - seams[::-1].index(end)]
        if parts:
            return parts[0] if len(parts) == 1 else Concat(axis=axis)(*parts)
    if whole or not isinstance(begin, int) or not isinstance(end, int):
        return None
    for part, start, stop in zip(node.inputs, seams[:-1], seams[1:], strict=True):
        if isinstance(start, int) and isinstance(stop, int) and start <= begin and end <= stop:
            return _cut(part, axis, begin - start, end - start)
    return None


def _piece(value: Value, axis: int) -> tuple[Value, Dim, Dim] | None:
    """The value that `value` is a contiguous part of along `axis`, and from where to where; None if it is none."""
    node = value.node
    if node is None or not isinstance(value.type, TensorType):
        return None
    if isinstance(node.op, Split) and node.op.axis == axis:
        start = sum(node.op.sizes[: value.index])
        return node.inputs[0], start, start + node.op.sizes[value.index]
    if isinstance(node.op, Slice) and node.op.axes == (axis,) and node.op.steps == (1,):
        extent = node.inputs[0].tensor.dims[axis]
        begin, end = _bound(node.op.starts[0], extent), _bound(node.op.ends[0], extent)
        return (node.inputs[0], begin, end) if dims.sub(end, begin) == value.tensor.dims[axis] else None
    return None


def _bound(bound: int, extent: Dim) -> Dim:
    """A slice bound as a position between 0 and the extent."""
    if isinstance(extent, int):
        return min(max(bound + extent if bound < 0 else bound, 0), extent)
    if abs(bound) >= _FAR:
        return extent if bound > 0 else 0
    return bound if bound >= 0 else dims.add(extent, bound)


def _cut(value: Value, axis: int, begin: Dim, end: Dim) -> Value | None:
    """Elements begin..end of `value` along the axis; None if a Slice can't say it."""
    extent = value.tensor.dims[axis]
    if begin == 0 and end == extent:
        return value
    last = _FAR if end == extent and not isinstance(end, int) else end
    if not isinstance(begin, int) or not isinstance(last, int):
        return None
    return Slice(starts=(begin,), ends=(last,), axes=(axis,), steps=(1,))(value)


def _only_axis(op: object) -> int:
    return op.axes[0] if isinstance(op, Slice) and len(op.axes) == 1 else -1
