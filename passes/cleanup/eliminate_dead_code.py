"""Dead code elimination."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from planish.ir.graph import Graph
from planish.passes.base import Context, Pass
from planish.passes.rewrite import Changes


@dataclass(frozen=True)
class EliminateDeadCode(Pass):
    """Erase nodes that no output depends on.

    Impure ops, too: they may give other numbers each time, but nothing in a graph acts on the outside.
    """

    name: ClassVar[str] = "eliminate-dead-code"

    def run(self, graph: Graph, context: Context) -> Changes:
        erased = graph.erase_dead()
        return Changes(Counter({self.name: len(erased)} if erased else {}))
