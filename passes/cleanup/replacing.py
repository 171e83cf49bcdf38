"""Replacement of values by passes that aren't sets of rules, with the same bookkeeping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from planish.ir.graph import Graph, Node, Value
from planish.passes.base import Context
from planish.passes.rewrite import Changes, substitute


@dataclass
class Replacer:
    """Replaces values on behalf of the pass `name`: spends fuel, tells observers, counts."""

    name: str
    graph: Graph
    context: Context
    changes: Changes = field(default_factory=Changes)

    def replace(self, old: Value, new: Value, matched: Sequence[Node]) -> bool:
        """Put `new` (detached or not) in the place of `old`, which `matched` made. False if fuel has run out."""
        if not self.context.fuelled:
            return False
        substitute(self.graph, old, new, self.name, matched)
        self.changes.rewrites[self.name] += 1
        self.context.burn()
        self.context.on_rewrite(self.name, old, new)
        return True

    def skip(self, node: Node, reason: str) -> None:
        """Report that `node` is left alone, and why."""
        self.changes.skipped.append((str(node.loc), reason))
