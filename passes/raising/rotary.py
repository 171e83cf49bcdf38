"""Rotary embedding, spelled x * cos + concat(-x2, x1) * sin, or as the two parts of a rotation joined again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.ir.data import Data
from planish.ir.dims import Dim
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
    Reshape,
    RotaryEmbedding,
    Sin,
    Slice,
    Split,
    Squeeze,
    Transpose,
    Unsqueeze,
)
from planish.passes.base import RulePass
from planish.passes.exactness import ROUNDING
from planish.passes.pattern import Pattern, attr, either
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


def turned(a: Pattern, b: Pattern, cos: Pattern, sin: Pattern) -> tuple[Pattern, Pattern]:
    return a * cos - b * sin, a * sin + b * cos


def turned_halves(a: Pattern, b: Pattern, cos: Pattern, sin: Pattern, rest: Pattern) -> Pattern:
    halves = turned(a, b, cos, sin)
    return either(Concat(axis=3)(*halves), Concat(axis=3)(*halves, rest))


@rule(turned_halves, exactness=ROUNDING)
def rotary_embedding_of_halves(
    a: Value, b: Value, cos: Value, sin: Value, root: Value, rest: Value | None = None
) -> Value:
    """concat(x1 * cos - x2 * sin, x1 * sin + x2 * cos) = RotaryEmbedding(x, cos, sin), where x1, x2 are halves of x.

    A part that isn't rotated stays joined to it.
    """
    x, width = _whole(a, b)
    if (_places(a), _places(b)) != (range(width // 2), range(width // 2, width)):
        reject(f"the parts are not the halves of {x.type}")
    result = _turned(RotaryEmbedding(), x, cos, sin)
    return keeping(result if rest is None else Concat(3)(result, rest), root)


def turned_neighbours(a: Pattern, b: Pattern, cos: Pattern, sin: Pattern) -> Pattern:
    pairs = [Unsqueeze(axes=(4,))(part) for part in turned(a, b, cos, sin)]
    return Reshape(shape=attr("shape"))(Concat(axis=4)(*pairs))


@rule(turned_neighbours, exactness=ROUNDING)
def rotary_embedding_of_neighbours(
    a: Value, b: Value, cos: Value, sin: Value, shape: tuple[int, ...], root: Value
) -> Value:
    """The same with x1 and x2 the even and the odd elements of x, which alternate again in the end."""
    x, width = _whole(a, b)
    if (_places(a), _places(b)) != (range(0, width, 2), range(1, width, 2)):
        reject(f"the parts are not every second element of {x.type}")
    return keeping(_turned(RotaryEmbedding(interleaved=True), x, cos, sin), root)


def _whole(a: Value, b: Value) -> tuple[Value, int]:
    """x of rank 4 that `a` and `b` are cut from, and its static width."""
    if a.node is None or b.node is None or a.node.inputs[:1] != b.node.inputs[:1] or not a.node.inputs:
        reject("the parts are not cut from one tensor")
    x = a.node.inputs[0]
    width = x.tensor.dims[-1] if x.tensor.dims else None
    if x.tensor.rank != 4 or not isinstance(width, int):
        reject(f"the parts are cut from {x.type}, not from a tensor of rank 4 and known width")
    return x, width


def _places(part: Value) -> range | None:
    """Which elements along axis 3 a part is, if it is cut along that axis alone."""
    node = part.node
    if node is not None and isinstance(node.op, Split) and node.op.axis == 3:
        start = sum(node.op.sizes[: part.index])
        return range(start, start + node.op.sizes[part.index])
    if node is not None and isinstance(node.op, Slice) and node.op.axes == (3,):
        (start,), (end,), (step,) = node.op.starts, node.op.ends, node.op.steps
        width = node.inputs[0].tensor.dims[3]
        return range(width)[start:end:step] if isinstance(width, int) else None
    return None


def _turned(op: RotaryEmbedding, x: Value, cos: Value, sin: Value) -> Value:
    """`op` on x[B, H, N, D] with tables [B or 1, 1, N, D / 2], or on x[B, N, H, D] with [B or 1, N, 1, D / 2]."""
    swap, shape = Transpose((0, 2, 1, 3)), x.tensor.dims
    tables = [_without_heads(table) for table in (cos, sin)]
    if _fit(tables, shape[0], shape[2]):
        result: Value = op(x, *tables)
        return result
    behind = [_without_axis(t, 2) if t.tensor.rank == 4 and t.tensor.dims[2] == 1 else None for t in (cos, sin)]
    if _fit(behind, shape[0], shape[1]):
        swapped: Value = swap(op(swap(x), *behind))
        return swapped
    reject(f"cos is {cos.type} and sin {sin.type}, which differ between heads or don't fit {x.type}")


def _fit(tables: list[Value | None], batch: Dim, length: Dim) -> bool:
    """True if all tables are [B or 1, N, D / 2]."""
    return all(table is not None and table.tensor.dims[:2] in ((1, length), (batch, length)) for table in tables)


def _without_axis(table: Value, axis: int) -> Value:
    node = table.node
    if node is not None and node.op == Unsqueeze((axis,)):
        return node.inputs[0]
    squeezed: Value = Squeeze((axis,))(table)
    return squeezed


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
    if rank == 4 and half.tensor.dims[1] == 1:
        return _without_axis(half, 1)
    if rank == 3 and half.tensor.dims[0] == 1:
        return half
    if rank == 2:
        filled: Value = Unsqueeze((0,))(half)
        return filled
    return None


@dataclass(frozen=True)
class RaiseRotary(RulePass):
    """Rotary embeddings of halves or of neighbours, as RotaryEmbedding."""

    name: ClassVar[str] = "raise-rotary"
    rule_set: ClassVar[tuple[Rule, ...]] = (
        rotary_embedding,
        rotary_embedding_of_halves,
        rotary_embedding_of_neighbours,
    )
