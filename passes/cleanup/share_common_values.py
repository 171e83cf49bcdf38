"""Common subexpression elimination, for constants too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from planish.ir.graph import Graph, Node, Value
from planish.ir.op import Const
from planish.ir.ops import Opaque
from planish.ir.types import TensorType
from planish.passes.base import Context, Pass
from planish.passes.cleanup.replacing import Replacer
from planish.passes.rewrite import Changes

_Key = tuple[object, ...]


@dataclass(frozen=True)
class ShareCommonValues(Pass):
    """Compute equal ops of equal operands once, and keep equal constants once; the first stays.

    The first two operands of a commutative op count in either order. Impure ops are never shared. Contents of
    constants are read only where another one has the same type.
    """

    name: ClassVar[str] = "share-common-values"

    def run(self, graph: Graph, context: Context) -> Changes:
        replacer = Replacer(self.name, graph, context)
        kept: dict[_Key, Node] = {}
        lone: dict[TensorType, Node] = {}  # the only constant of its type so far
        for node in graph:
            op = node.op
            if op.is_return or (isinstance(op, Opaque) and not op.pure):
                continue
            if isinstance(op, Const):
                other = lone.setdefault(op.data.type, node)
                if other is node:
                    continue
                kept.setdefault((other.op,), other)
            first = kept.setdefault(_key(node), node)
            if first is not node:
                _merge(replacer, first, node)
        return replacer.changes


def _key(node: Node) -> _Key:
    """Equal for nodes that compute the same."""
    if node.op.commutative and len(node.operands) >= 2:
        return (node.op, frozenset(node.operands[:2]), node.operands[2:])
    return (node.op, *node.operands)


def _merge(replacer: Replacer, kept: Node, node: Node) -> None:
    pairs: list[tuple[Value, Value]] = [
        (old, new) for old, new in zip(node.results, kept.results, strict=True) if old.uses
    ]
    for old, new in pairs:
        if old.type != new.type:  # one of them is known more closely, from a pass that ran in between
            return
    for old, new in pairs:
        replacer.replace(old, new, [node])
