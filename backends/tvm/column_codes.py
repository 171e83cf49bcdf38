"""Sums of one column as codes of 8 bits, for a vector of bytes at a time: all of them have the same factor.

Packing keeps within 128-bit parts of vectors, and so leaves codes in block order (`interleaving.token_at`).
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.epilogue import even_lanes, odd_lanes, upper_halves
from planish.backends.tvm.expressions import dyadic, largest
from planish.backends.tvm.interleaving import kept_vector
from planish.backends.tvm.isa import Isa
from planish.backends.tvm.narrow import narrows, packed
from planish.backends.tvm.scope import Expr, Scope
from planish.ir import ops
from planish.ir.graph import Node
from planish.ir.ops.quantize import quant_of, rescaling


@dataclass(frozen=True)
class Sums:
    """int32 sums of a block of tokens: those of column c start at array[place + c * apart], a token after the other.

    start: array of what is still to be added to those of each column, from element `first` on; None if nothing is.
    """

    array: Expr
    place: Expr
    apart: int
    start: Expr | None
    first: Expr

    def at(self, column: Expr, token: Expr) -> Expr:
        found = self.array[self.place + column * self.apart + token]
        return found if self.start is None else found + self.start[self.first + column]

    def vector(self, column: Expr, token: int, lanes: int) -> Expr:
        """Those of neighbouring tokens."""
        found = self.array[T.Ramp(self.place + column * self.apart + token, 1, lanes)]
        return found if self.start is None else found + T.Broadcast(self.start[self.first + column], lanes)


def is_packed(node: Node, isa: Isa) -> bool:
    """True if `packed_column` makes the codes that an op gives for sums of a product."""
    if not isinstance(node.op, ops.Requantize) or node.op.to.bits != 8:
        return False
    type_, op = node.inputs[0].tensor, node.op
    shift = rescaling(type_, op.scale).shift
    fits = largest(node, 0) + abs(op.zero) < 2**31 and abs(op.zero) << shift < 2**62
    able = isa.multiplies and narrows(isa, op.to, 4 * isa.lanes)
    return able and fits and 32 < shift < 63 and quant_of("x", type_).zero == 0


def packed_column(node: Node, sums: Sums, column: Expr, of: Expr, count: int, scope: Scope, isa: Isa) -> Expr:
    """A vector of bytes, codes in block order, of `count` vectors of sums; others get those of the last one.

    column: of the block, whose number in the result is `of`.
    """
    op = node.op
    assert isinstance(op, ops.Requantize)
    lanes, quant = isa.lanes, quant_of("x", node.inputs[0].tensor)
    shift = rescaling(node.inputs[0].tensor, op.scale).shift - 32
    multiplier, _, _ = dyadic(node, 0, scope)
    factor = kept_vector(T.Broadcast(multiplier if quant.axis is None else multiplier[of], lanes), "int32", lanes)
    addend = scope.number((node, "addend of upper halves"), (1 << (shift - 1)) + (op.zero << shift))
    amount = T.Broadcast(T.cast(scope.number((node, "shift of upper halves"), shift), "int32"), lanes)
    halves = T.Broadcast(T.cast(addend, "int32"), lanes)
    vectors: list[Expr] = []
    for number in range(count):
        even = sums.vector(column, number * lanes, lanes)
        if sums.start is None:  # odd ones are read as even ones of what starts a sum further, instead of moved
            odd = even_lanes(sums.vector(column, number * lanes + 1, lanes), lanes)
        else:
            even = kept_vector(even, "int32", lanes)
            odd = odd_lanes(even, lanes)
        below = even_lanes(factor, lanes)
        high = upper_halves(even_lanes(even, lanes) * below, odd * below, lanes)
        vectors.append((high + halves) >> amount)
    return packed(isa, op.to, [*vectors, *vectors[-1:] * (4 - count)])
