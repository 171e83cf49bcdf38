"""Einsum of two tensors as transposes, reshapes and one matrix product."""

from __future__ import annotations

from collections.abc import Sequence

from planish.frontend.call import Call, Converted, Converter, Refusal, apply
from planish.ir import dims, ops
from planish.ir.dims import Dim
from planish.ir.graph import Value


def _einsum(call: Call) -> Converted:
    """Letters of both operands and the result are batch axes, of both operands only summed, of one rows or columns."""
    left, right, result = _letters(call)
    a, b = call.arg(0), call.arg(1)
    if not a.tensor.dtype.is_float:
        raise Refusal("Einsum of integers")
    extents: dict[str, Dim] = dict(zip(left, a.tensor.dims, strict=True))
    for letter, extent in zip(right, b.tensor.dims, strict=True):
        if extents.setdefault(letter, extent) != extent:
            raise Refusal(f"axis {letter} has extents {extents[letter]} and {extent}")
    batch = [c for c in result if c in left and c in right]
    rows = [c for c in result if c in left and c not in right]
    columns = [c for c in result if c in right and c not in left]
    summed = [c for c in left if c in right and c not in result]
    if len(batch) + len(rows) + len(summed) != len(left) or len(batch) + len(columns) + len(summed) != len(right):
        raise Refusal("Einsum that sums within one operand")
    split_rows = [[c] for c in rows] if not batch and rows else [rows]
    first = _arranged(a, left, [*([c] for c in batch), *split_rows, summed], extents)
    second = _arranged(b, right, [*([c] for c in batch), summed, columns], extents)
    product = apply(ops.MatMul(), first, second)
    letters = [*batch, *rows, *columns]
    spread = _reshaped(product, [extents[c] for c in letters])
    return _transposed(spread, [letters.index(c) for c in result])


def _letters(call: Call) -> tuple[str, str, str]:
    equation = call.text_attr("equation", "").replace(" ", "")
    operands, arrow, result = equation.partition("->")
    left, comma, right = operands.partition(",")
    if not arrow or not comma or "," in right or "." in equation:
        raise Refusal(f"Einsum {equation!r}, which isn't of two operands with a stated result")
    if any(len(set(part)) != len(part) for part in (left, right, result)):
        raise Refusal(f"Einsum {equation!r}, which takes a diagonal")
    if (len(left), len(right)) != (len(call.dims(0)), len(call.dims(1))) or not set(result) <= set(left + right):
        raise Refusal(f"Einsum {equation!r}, which doesn't fit its operands")
    return left, right, result


def _arranged(x: Value, letters: str, groups: Sequence[Sequence[str]], extents: dict[str, Dim]) -> Value:
    """x with one axis per group of letters."""
    moved = _transposed(x, [letters.index(c) for group in groups for c in group])
    return _reshaped(moved, [dims.product(extents[c] for c in group) for group in groups])


def _transposed(x: Value, order: Sequence[int]) -> Value:
    return x if list(order) == list(range(len(order))) else apply(ops.Transpose(tuple(order)), x)


def _reshaped(x: Value, target: Sequence[Dim]) -> Value:
    if tuple(target) == x.tensor.dims:
        return x
    op = ops.Reshape.to(x.tensor, target)
    if op is None:
        raise Refusal("Einsum that merges symbolic axes")
    return apply(op, x)


CONVERTERS: dict[tuple[str, str], Converter] = {("", "Einsum"): _einsum}
