"""Norms of a graph replaced by linear maps: into the weights of linear readers, as a product and a sum elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from planish.ir import ops
from planish.ir.graph import Graph, Node, Value
from planish.passes.norms.readers import Reader, fold_into_readers, folded, readers, shared_weight
from planish.passes.raising.parameters import stored
from planish.passes.raising.weights import Affine


@dataclass(frozen=True)
class Conversion:
    """What stands for one norm. variant: "diagonal" or "full".

    linear: the map that linear readers take in. plain: the diagonal one for what can't (residual sums).
    """

    variant: str
    linear: Affine
    plain: Affine


def norms_of(graph: Graph) -> list[Node]:
    """The norms that a linear map could stand for: over the last axis, of known width, in order."""
    found = graph.nodes(ops.LayerNorm, ops.RMSNorm)
    return [node for node in found if node.op.axis == -1 and isinstance(node.result.tensor.dims[-1], int)]  # type: ignore[attr-defined]


def converted(graph: Graph, conversions: Mapping[int, Conversion], by: str) -> tuple[Graph, list[Node]]:
    """A copy of `graph` in which norms, by their number in `norms_of`, are replaced; and its norms, replaced or not."""
    copy, _ = graph.clone()
    nodes = norms_of(copy)
    for number, conversion in conversions.items():
        convert(copy, nodes[number], conversion, by)
    return copy, nodes


def vanishes(norm: Node) -> bool:
    """True if nothing would be left of the norm: all its readers take a map into their weights."""
    affine = _identity(norm)
    found = list(readers(norm.result, len(norm.result.tensor.dims) - 1))
    return bool(found) and not shared_weight(found) and not any(isinstance(folded(r, affine), str) for r in found)


def convert(graph: Graph, norm: Node, conversion: Conversion, by: str) -> None:
    """Replace one norm in place."""
    x, y = norm.inputs[0], norm.result
    axis = len(y.tensor.dims) - 1
    for affine in (conversion.linear, conversion.plain):
        if not fold_into_readers(graph, y, axis, affine, x, by):
            graph.erase_dead([norm])
            return
    for node, index in list(y.uses):
        reader = Reader(node, index, axis)
        new = folded(reader, conversion.linear)
        if isinstance(new, Value) and new.node is not None and not shared_weight([reader]):
            graph.attach(new, node, node.loc.made_by(by))
            graph.set_operand(new.node, 0, x)
            new.hint = node.result.hint
            graph.replace(node.result, new)
            graph.erase_dead([node])
    if y.uses:
        like = np.empty(0, x.tensor.dtype.storage)
        plain: Value = ops.Mul()(x, stored(conversion.plain.factor, like))
        plain = ops.Add()(plain, stored(conversion.plain.shift, like))
        graph.attach(plain, norm, norm.loc.made_by(by))
        plain.hint = y.hint
        graph.replace(y, plain)
    graph.erase_dead([norm])


def _identity(norm: Node) -> Affine:
    count = norm.result.tensor.dims[-1]
    assert isinstance(count, int)
    return Affine(np.ones(count), np.zeros(count))
