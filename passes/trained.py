"""Training of a changed copy of a graph against the graph, and what the graph takes over from the copy."""

from __future__ import annotations

from collections.abc import Sequence

from planish.ir.graph import Graph, Node, Value
from planish.ir.op import Const, Op, constant
from planish.ir.ops import Conv, Linear
from planish.passes.base import Context
from planish.passes.judging import ThreeSets

_HELD_OUT_EVERY = 4  # feeds of the set to choose on, that training doesn't see
_HELD_OUT_FEEDS = 32  # at most: time is better spent on training


def trainable(graph: Graph, *kinds: type[Op]) -> list[Node]:
    """Nodes of these kinds whose weights and biases are constants."""
    return [node for node in graph.nodes(*kinds) if all(constant(operand) is not None for operand in node.inputs[1:])]


def trained(
    student: Graph,
    teacher: Graph,
    layers: Sequence[Node],
    pairs: Sequence[tuple[Value, Value]],
    sets: ThreeSets,
    context: Context,
) -> object:
    """Train layers of the student by `context.recover`, which must be there, on the sets to fit and to choose on.

    pairs: values of the student and of the teacher that are to become equal, besides the outputs. The set to report on
    stays unseen. Returns what training found.
    """
    assert context.recover is not None
    rank = sets.rank.feeds
    held_out = rank[::_HELD_OUT_EVERY][:_HELD_OUT_FEEDS]
    training = [*sets.fit.feeds, *(feed for feed in rank if not any(feed is other for other in held_out))]
    return context.recover(student, teacher, layers, pairs, training, held_out)


def take_weights(graph: Graph, trained: Graph) -> None:
    """Give the linear layers and convolutions of `graph` the constants of their twins."""
    for mine, other in zip(graph.nodes(Linear, Conv), trained.nodes(Linear, Conv), strict=True):
        for index, operand in enumerate(other.operands[1:], 1):
            data = constant(operand)
            if data is not None and data is not constant(mine.operands[index]):
                made = graph.add(Const(data), loc=mine.loc, before=mine).result
                graph.set_operand(mine, index, made)
    graph.erase_dead()
