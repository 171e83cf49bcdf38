"""Proof that sums stay in 32 bits, by interval analysis, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping

from planish.ir import ranges as intervals
from planish.ir.dims import Dim
from planish.ir.graph import Graph, Node, Value
from planish.ir.int_bounds import INT_BOUNDS, SUMS
from planish.ir.interval import Interval
from planish.ir.ops import IntWeightedMean

INT32 = Interval(float(-(2**31)), float(2**31 - 1))


def overflows(
    graph: Graph, ranges: Mapping[Value, Interval] | None = None, binding: Mapping[str, Dim] | None = None
) -> list[str]:
    """Nodes whose exact sums may leave 32 bits for some input, each with the bound; an empty list is a proof.

    ranges: bounds of all values, as `planish.ir.ranges.ranges` finds them, which is done where they aren't given.
    binding: extents of symbolic dimensions; sums along others count as unbounded.
    """
    found = intervals.ranges(graph) if ranges is None else ranges
    return [
        f"{node.op.name} at {node.loc}: {what} may reach {_shown(bound)}, beyond 32 bits"
        for node in graph
        if type(node.op) in SUMS
        for what, bound in _sums(node, found, binding or {})
        if bound.lo < INT32.lo or bound.hi > INT32.hi
    ]


def _sums(node: Node, found: Mapping[Value, Interval], binding: Mapping[str, Dim]) -> list[tuple[str, Interval]]:
    """What a node keeps in 32 bits, by name, with bounds."""
    operands = tuple(Interval() if v is None else found[v] for v in node.operands)
    sums = [("a sum", SUMS[type(node.op)](node, operands, binding))]
    if isinstance(node.op, IntWeightedMean):
        sums.append(("the mean", INT_BOUNDS[IntWeightedMean](node, operands)))
    return sums


def _shown(bound: Interval) -> str:
    """The end that lies further out."""
    end = bound.lo if -bound.lo > bound.hi else bound.hi
    return str(end) if math.isinf(end) else f"{int(end):,}"
