"""One wide Linear that is taken apart again, as one Linear per part: each part can have codes of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.ir.graph import Graph, Node, Value
from planish.ir.loc import Loc
from planish.ir.op import constant
from planish.ir.ops import Linear, Reshape, Slice, Split, Transpose
from planish.passes.base import Context, Pass
from planish.passes.exactness import ROUNDING, Exactness
from planish.passes.rewrite import Changes

_MOVES = (Reshape, Transpose)


@dataclass(frozen=True)
class SplitProjections(Pass):
    """Slices of a moved Linear as Linears of their own columns, such as queries, keys and values.

    Linear -> any Reshape and Transpose -> slices [i] of one axis (and Squeeze): where the columns of the weight that a
    slice holds are a block of their own, the slice is computed from these alone.
    """

    name: ClassVar[str] = "split-projections"
    exactness: ClassVar[Exactness] = ROUNDING

    def run(self, graph: Graph, context: Context) -> Changes:
        changes = Changes()
        for node in graph.nodes(Linear):
            chain, end = _moves_after(node)
            parts = end.users
            if not parts or not all(isinstance(part.op, Slice | Split) for part in parts):
                continue
            if len(parts) == 1 and not isinstance(parts[0].op, Split):
                continue
            if constant(node.operands[1]) is None or any(constant(v) is None for v in node.inputs[1:]):
                continue
            if not context.fuelled:
                break
            done = sum(_split(graph, node, chain, part, context) for part in parts)
            if done:
                changes.rewrites[self.name] += done
                graph.erase_dead([node, *chain])
                context.burn()
        return changes


def _moves_after(node: Node) -> tuple[list[Node], Value]:
    """Reshapes and Transposes that read the Linear one after the other, and what the last gives."""
    chain: list[Node] = []
    value = node.result
    while len(value.users) == 1 and isinstance(value.users[0].op, _MOVES):
        chain.append(value.users[0])
        value = value.users[0].result
    return chain, value


def _split(graph: Graph, node: Node, chain: list[Node], part: Node, context: Context) -> int:
    """Compute the results of one slice or split from their own columns; the number that could be."""
    end = chain[-1].result if chain else node.result
    done = 0
    for index, (axis, start, stop) in enumerate(_ranges(part, end)):
        made = _narrow(node, chain, axis, start, stop)
        if made is None or made.type.interface() != part.results[index].type.interface():
            continue
        old = part.results[index]
        loc = Loc.fuse([node.loc, part.loc]).made_by(SplitProjections.name)
        graph.attach(made, part, loc)
        made.hint = old.hint
        context.on_rewrite(SplitProjections.name, old, made)
        graph.replace(old, made)
        done += 1
    graph.erase_dead([part])
    return done


def _ranges(part: Node, x: Value) -> list[tuple[int, int, int]]:
    """(axis, start, stop) of each result of a Split, or of a Slice along one axis in steps of 1."""
    op = part.op
    if isinstance(op, Split):
        stops = np.cumsum(op.sizes)
        return [(op.axis, int(stop - size), int(stop)) for size, stop in zip(op.sizes, stops, strict=True)]
    if isinstance(op, Slice) and len(op.axes) == 1 and op.steps == (1,):
        extent = x.tensor.dims[op.axes[0]]
        if isinstance(extent, int):
            start, stop, _ = slice(op.starts[0], op.ends[0]).indices(extent)
            return [(op.axes[0], start, stop)]
    return []


def _narrow(node: Node, chain: list[Node], axis: int, start: int, stop: int) -> Value | None:
    """The chain on the columns that end up in [start, stop) of `axis`; None unless they are a block of columns.

    The way back: `axis` is followed through the moves to the dimension of the Linear's columns that it is part of.
    Columns are [outer, extent, inner] there, with the axis in the middle; the block is one range of columns if outer
    is 1, and is gathered otherwise.
    """
    columns = _columns(node, chain)
    if columns is None:
        return None
    place = columns.get(axis)
    if place is None:
        return None
    stage, outer, extent, inner = place
    w, b = (None if v is None else constant(v) for v in (node.operands[1], _bias(node)))
    if w is None:
        return None
    chosen = np.arange(outer * extent * inner).reshape(outer, extent, inner)[:, start:stop].reshape(-1)
    value: Value = Linear()(
        node.operands[0], np.ascontiguousarray(w.numpy()[:, chosen]), None if b is None else b.numpy()[chosen]
    )
    return _replay(value, chain, stage, extent, stop - start)


def _bias(node: Node) -> Value | None:
    return node.operands[2] if len(node.operands) > 2 else None


def _columns(node: Node, chain: list[Node]) -> dict[int, tuple[int, int, int, int]] | None:
    """For each axis after the chain that is part of the columns: (axis after the Reshape, outer, extent, inner).

    Understands at most one Reshape, which cuts the last axis and keeps the ones before it, and Transposes after it.
    """
    rank = len(node.result.tensor.dims)
    reshapes = [move for move in chain if isinstance(move.op, Reshape)]
    if len(reshapes) > 1 or (reshapes and reshapes[0] is not chain[0]):
        return None
    shape = reshapes[0].result.tensor.dims if reshapes else node.result.tensor.dims
    if shape[: rank - 1] != node.result.tensor.dims[:-1] or not all(isinstance(d, int) for d in shape[rank - 1 :]):
        return None
    cut = [int(d) for d in shape[rank - 1 :]]
    where = list(range(len(shape)))
    for move in chain:
        if isinstance(move.op, Transpose):
            where = [where[i] for i in move.op.perm]
    found: dict[int, tuple[int, int, int, int]] = {}
    for axis, origin in enumerate(where):
        i = origin - (rank - 1)
        if i >= 0:
            outer, inner = int(np.prod(cut[:i], initial=1)), int(np.prod(cut[i + 1 :], initial=1))
            found[axis] = (origin, outer, cut[i], inner)
    return found


def _replay(value: Value, chain: list[Node], stage: int, extent: int, width: int) -> Value:
    """The moves of the chain on fewer columns: the axis `stage` of the Reshape has `width` instead of `extent`."""
    for move in chain:
        op = move.op
        if isinstance(op, Reshape):
            op = Reshape(tuple(width if i == stage else d for i, d in enumerate(op.shape)))
        value = op(value)
    return value
