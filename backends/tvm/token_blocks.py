"""Codes that sparse products share or hand on, in the order in which they read them: blocks of tokens by column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from planish.backends.tvm.scope import Expr, Scope, Scratch
from planish.backends.tvm.sparse_weights import Form
from planish.ir.graph import Node


@dataclass(frozen=True, eq=False)
class TokenBlocks:
    """Where the codes of a value lie as [blocks][depth][tokens of a block], flat, as `interleaving` has them.

    shape: of the three axes; depth is rounded up if rows are transposed. dtype: that products take. maker: the anchor
    of the kernel that fills it: of the value's own, which then isn't stored in rows, or of the first one that reads it.
    """

    shape: tuple[int, int, int]
    dtype: str
    maker: Node
    room: Scratch

    @property
    def depth(self) -> int:
        return self.shape[1]

    def array(self, scope: Scope) -> Expr:
        blocks, depth, wide = self.shape
        return scope.shared(self.room, (blocks * depth * wide,), self.dtype)


@dataclass(frozen=True)
class Layouts:
    """What products read and write in blocks of tokens, by anchor; all else is in rows.

    forms: of products that were looked at, None for dense ones, so that they aren't chosen again.
    """

    read: Mapping[Node, TokenBlocks] = field(default_factory=dict)
    written: Mapping[Node, TokenBlocks] = field(default_factory=dict)
    forms: Mapping[Node, Form | None] = field(default_factory=dict)
