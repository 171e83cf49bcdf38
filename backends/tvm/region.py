"""What is computed by one kernel."""

from __future__ import annotations

from dataclasses import dataclass

from planish.ir.graph import Node, Value


@dataclass(frozen=True)
class Attention:
    """Products, softmax and mean of one attention, computed row by row without storing the matrix of logits.

    product: rows of the queries by the keys.  exponential: of its logits.  mean: of the values.
    """

    product: Node
    exponential: Node
    mean: Node


@dataclass(frozen=True)
class Region:
    """A stored value.

    anchor: the reduction that its expression rests on; None for a pointwise one.
    value: what the expression gives; the stored result is it, moved by the ops `moves`.
    run: so many elements that are computed together lie next to each other in the result; 0 for all of them.
    norms: regions that normalise rows of the same kernel, each as soon as it is there, in order of computation.
    others: further results of the anchor that its kernel stores; nobody reads those that are neither here nor `result`.
    """

    value: Value
    result: Value
    moves: tuple[Node, ...]
    anchor: Node | None
    attention: Attention | None = None
    run: int = 0
    norms: tuple[Region, ...] = ()
    others: tuple[Value, ...] = ()

    @property
    def results(self) -> tuple[Value, ...]:
        """All that is stored, but for what `norms` store."""
        return self.result, *self.others
