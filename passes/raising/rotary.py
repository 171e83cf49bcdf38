"""Rotary embedding in the form that rotates halves: x * cos + concat(-x2, x1) * sin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.ir.data import Data
from planish.ir.graph import Value
from planish.ir.op import constant
from planish.ir.ops import (
    Add,
    Cast,
    Concat,
    Const,
    Cos,
    Div,
    Gather,
    Mul,
    Neg,
    RotaryEmbedding,
    Sin,
    Slice,
    Squeeze,
    Unsqueeze,
)
from planish.passes.base import RulePass
from planish.passes.exactness import ROUNDING
from planish.passes.pattern import Pattern, attr
from planish.passes.raising.parameters import keeping
from planish.passes.rewrite import Rule, reject, rule


def rotated_halves(x: Pattern, cos: Pattern, sin: Pattern) -> Pattern:
    first = Slice(starts=(0,), ends=attr("middle"), axes=attr("axis"), steps=(1,))(x)
    second = Slice(starts=attr("middle"), ends=attr("end"), axes=attr("axis"), steps=(1,))(x)
    turned = Concat(axis=attr("joined"))(Neg()(second), first)
    return Add()(Mul()(x, cos), Mul()(turned, sin))


@rule(rotated_halves, exactness=ROUNDING)
def rotary_embedding(
    x: Value,
    cos: Value,
    sin: Value,
    middle: tuple[int, ...],
    end: tuple[int, ...],
    axis: tuple[int, ...],
    joined: int,
    root: Value,
) -> Value:
    """x * cos + concat(-x2, x1) * sin = RotaryEmbedding(x, cos1, sin1), where cos and sin hold their halves twice."""
    if x.tensor.rank != 4:
        reject(f"x is {x.type}, of rank {x.tensor.rank}, not 4")
    width = x.tensor.dims[3]
    if not isinstance(width, int) or axis != (3,) or joined != 3 or 2 * middle[0] != width or end[0] < width:
        reject(f"x of width {width} is not cut into halves along its last axis")
    return keeping(RotaryEmbedding()(x, _table(cos, "cos", x), _table(sin, "sin", x)), root)


def first_half(value: Value) -> Value | None:
    """The first half of `value` along its last axis, if the second half provably equals it; else None."""
    data, last = constant(value), len(value.tensor.dims) - 1
    if data is not None:
        return _half_of_constant(data)
    node = value.node
    if node is None or not node.inputs:
        return None
    op, x = node.op, node.inputs[0]
    if isinstance(op, Concat) and op.axis == last:
        return x if len(node.inputs) == 2 and x is node.inputs[1] else None
    rank = len(x.tensor.dims)
    keeps_last = (
        isinstance(op, Cos | Sin | Cast | Neg)
        or (isinstance(op, Unsqueeze) and last not in op.axes)
        or (isinstance(op, Squeeze) and rank - 1 not in op.axes)
        or (isinstance(op, Gather) and op.axis < rank - 1)
        or (isinstance(op, Slice) and rank - 1 not in op.axes)
    )
    if isinstance(op, Mul | Div | Add):
        return _half_of_scaled(op, node.inputs)
    half = first_half(x) if keeps_last else None
    if half is None:
        return None
    result: Value = op(half, *node.operands[1:])
    return result


def _half_of_constant(data: Data) -> Value | None:
    array = data.numpy()
    width = array.shape[-1] if array.ndim else 1
    first, second = array[..., : width // 2], array[..., width // 2 :]
    if width % 2 or not np.array_equal(first, second):
        return None
    result: Value = Const(Data(np.ascontiguousarray(first)))()
    return result


def _half_of_scaled(op: Mul | Div | Add, operands: list[Value]) -> Value | None:
    """Half of a value combined with one number."""
    for place in (1, 0):
        number = constant(operands[place])
        if number is not None and number.size == 1:
            half = first_half(operands[1 - place])
            if half is None:
                return None
            result: Value = op(half, operands[1]) if place else op(operands[0], half)
            return result
    return None


def _table(value: Value, name: str, x: Value) -> Value:
    """The first half of `value`, which broadcasts to x[B, H, N, D], as [B or 1, N, D / 2]."""
    half = first_half(value)
    if half is None:
        reject(f"{name} is not provably the same in both halves")
    table = _without_heads(half)
    batch, _, length, _ = x.tensor.dims
    if table is None or table.tensor.dims[0] not in (1, batch) or table.tensor.dims[1] != length:
        reject(f"{name} is {value.type}, which differs between heads or doesn't fit {x.type}")
    return table


def _without_heads(half: Value) -> Value | None:
    """[B, 1, N, D] as [B, N, D]; lower ranks are filled up."""
    rank = len(half.tensor.dims)
    node = half.node
    if rank == 4 and node is not None and node.op == Unsqueeze((1,)):
        return node.inputs[0]
    if rank == 4 and half.tensor.dims[1] == 1:
        squeezed: Value = Squeeze((1,))(half)
        return squeezed
    if rank == 3 and half.tensor.dims[0] == 1:
        return half
    if rank == 2:
        filled: Value = Unsqueeze((0,))(half)
        return filled
    return None


@dataclass(frozen=True)
class RaiseRotary(RulePass):
    """Rotary embeddings that rotate halves, as RotaryEmbedding."""

    name: ClassVar[str] = "raise-rotary"
    rule_set: ClassVar[tuple[Rule, ...]] = (rotary_embedding,)
