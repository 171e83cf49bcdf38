"""Several Linears of the same tensor as one, split: one wide matrix product in place of narrow ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.ir.graph import Graph, Node, Value
from planish.ir.loc import Loc
from planish.ir.op import constant
from planish.ir.ops import Linear, Split
from planish.passes.base import Context, Pass
from planish.passes.exactness import ROUNDING, Exactness
from planish.passes.rewrite import Changes


@dataclass(frozen=True)
class MergeProjections(Pass):
    """Linears of one x as Split(Linear(x, [W1 .. Wn], [b1 .. bn])), such as queries, keys and values."""

    name: ClassVar[str] = "merge-projections"
    exactness: ClassVar[Exactness] = ROUNDING

    def run(self, graph: Graph, context: Context) -> Changes:
        changes = Changes()
        groups: dict[Value, list[Node]] = {}
        for node in graph.nodes(Linear):
            x = node.operands[0]
            if x is not None:
                groups.setdefault(x, []).append(node)
        for x, nodes in groups.items():
            if len(nodes) < 2 or not context.fuelled:
                continue
            fault = _fault(nodes)
            if fault:
                changes.skipped.append((str(nodes[0].loc), fault))
                continue
            _merge(graph, x, nodes, context)
            changes.rewrites[self.name] += 1
            context.burn()
        return changes


def _fault(nodes: list[Node]) -> str:
    """What speaks against merging the Linears, "" if nothing."""
    if any(constant(operand) is None for node in nodes for operand in node.inputs[1:]):
        return "a weight or bias is computed"
    return ""


def _merge(graph: Graph, x: Value, nodes: list[Node], context: Context) -> None:
    weights = [_array(node.operands[1]) for node in nodes]
    biases = [_array(node.operands[2]) if len(node.inputs) == 3 else None for node in nodes]
    b = None
    if any(bias is not None for bias in biases):
        parts = [np.zeros(w.shape[1], w.dtype) if a is None else a for w, a in zip(weights, biases, strict=True)]
        b = np.concatenate(parts)
    packed: Value = Linear()(x, np.concatenate(weights, axis=1), b)
    loc = Loc.fuse(node.loc for node in nodes).made_by(MergeProjections.name)
    graph.attach(packed, nodes[0], loc)
    sizes = tuple(w.shape[1] for w in weights)
    split = graph.add(Split(len(packed.tensor.dims) - 1, sizes), packed, loc=loc, before=nodes[0])
    for node, part in zip(nodes, split.results, strict=True):
        context.on_rewrite(MergeProjections.name, node.result, part)
        graph.replace(node.result, part)
    graph.erase_dead(nodes)


def _array(value: Value | None) -> np.ndarray:
    data = constant(value)
    if data is None:
        raise TypeError("only constants are merged")
    return data.numpy()
