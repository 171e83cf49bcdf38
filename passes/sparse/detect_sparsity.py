"""The pass that finds structures of zeros which weights have already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.ir import ops
from planish.ir.data import Data
from planish.ir.graph import Graph, Node
from planish.ir.op import Const, Op, constant
from planish.ir.sparsity import Layout, density, fault, name_of, pattern
from planish.ir.types import Sparsity
from planish.passes.base import Context, Pass
from planish.passes.exactness import EXACT, Exactness
from planish.passes.rewrite import Changes

BY = "detect-sparsity"
LAYOUTS: dict[type[Op], Layout] = {
    **dict.fromkeys((ops.Linear, ops.ShiftLinear, ops.IntLinear, ops.IntLinearDequantize), "linear"),
    **dict.fromkeys((ops.Conv, ops.ShiftConv, ops.IntConv), "conv"),
}
"""Ops whose second operand is a weight, and how it lies."""

_ORDER = ("2:4", "ob16", "ob4", "ib4", "unstructured")  # the first that costs no zeros is taken


@dataclass(frozen=True)
class DetectSparsity(Pass):
    """Zeros of weights in a structure, noted in the type of the constant: the same numbers, for kernels that skip them.

    least: share of zeros from which on a weight counts as sparse. A block structure is taken if at most `loss` of the
    zeros lie in blocks that aren't all zeros; 2:4 if the weight has it and at least half of it is zeros.
    """

    name: ClassVar[str] = BY
    exactness: ClassVar[Exactness] = EXACT
    least: float = 0.3
    loss: float = 0.05

    def run(self, graph: Graph, context: Context) -> Changes:
        """Rewrite `graph`."""
        changes = Changes()
        for node in graph.nodes(*LAYOUTS):
            data = constant(node.operands[1])
            if data is None or data.type.sparsity is not None:
                continue
            found = self.structure(data.numpy(), LAYOUTS[type(node.op)])
            if found is None:
                continue
            noted(graph, node, Data(data.numpy(), data.type.quant, found))
            changes.rewrites[name_of(found, LAYOUTS[type(node.op)])] += 1
        graph.erase_dead()
        return changes

    def structure(self, array: np.ndarray, layout: Layout) -> Sparsity | None:
        """The structure of the zeros of a weight; None if it has too few of them."""
        zeros = 1 - density(array, pattern("unstructured"))
        if zeros < self.least:
            return None
        for name in _ORDER:
            plain = pattern(name, layout)
            if name == "2:4":
                fits = zeros >= 0.5 and not fault(array, plain)
            else:
                fits = 1 - density(array, plain) >= zeros * (1 - self.loss)
            if fits:
                return pattern(name, layout, round(density(array, plain) + 5e-7, 6))
        return None


def noted(graph: Graph, node: Node, weight: Data) -> None:
    """Give a node another constant weight."""
    made = graph.add(Const(weight), loc=node.loc.made_by(BY), before=node).result
    operand = node.operands[1]
    made.hint = "" if operand is None else operand.hint
    graph.set_operand(node, 1, made)
