"""Training of pruned weights, whose zeros stay, against the graph that they were taken out of."""

from __future__ import annotations

from planish.ir.graph import Graph
from planish.ir.ops import Conv, Linear
from planish.passes.base import Context
from planish.passes.judging import ThreeSets
from planish.passes.norms.converting import norms_of
from planish.passes.trained import trainable, trained


def recovered(student: Graph, teacher: Graph, sets: ThreeSets, context: Context) -> object | None:
    """Train all linear layers and convolutions of a pruned copy of `teacher`, in place; None without `context.recover`.

    Outputs are compared, and after each block the residual stream, where norms read it: squared errors over the
    original's variance. Weights keep the zeros of the structure in their type. Source: SquareHead (arXiv 2310.06927).
    """
    if context.recover is None:
        return None
    streams = zip(norms_of(student), norms_of(teacher), strict=True)
    pairs = list({mine.inputs[0]: (mine.inputs[0], other.inputs[0]) for mine, other in streams}.values())
    return trained(student, teacher, trainable(student, Linear, Conv), pairs, sets, context)
