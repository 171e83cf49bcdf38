"""What a graph takes over from a copy of it that was trained."""

from __future__ import annotations

from planish.ir.graph import Graph
from planish.ir.op import Const, constant
from planish.ir.ops import Linear


def take_weights(graph: Graph, trained: Graph) -> None:
    """Give the linear layers of `graph` the constants of their twins."""
    for mine, other in zip(graph.nodes(Linear), trained.nodes(Linear), strict=True):
        for index, operand in enumerate(other.operands[1:], 1):
            data = constant(operand)
            if data is not None and data is not constant(mine.operands[index]):
                made = graph.add(Const(data), loc=mine.loc, before=mine).result
                graph.set_operand(mine, index, made)
    graph.erase_dead()
