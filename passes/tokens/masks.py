"""Masks of attention as one number per key: what can follow its token when tokens go."""

from __future__ import annotations

import numpy as np

from planish.ir import dtypes, ops
from planish.ir.data import Data
from planish.ir.graph import Node, Value
from planish.ir.op import Const, constant
from planish.passes.tokens.refusal import Refusal

_HIDDEN = -1e3  # scores from which on a place takes no part
_COMPARISONS = (ops.Less, ops.LessOrEqual, ops.Greater, ops.GreaterOrEqual)
_DEPTH = 24  # ops that a mask is looked through


def mask_of(attention: Node) -> Value | None:
    """The mask that an attention reads, if there is one."""
    return attention.operands[3] if len(attention.operands) > 3 else None


def key_mask(mask: Value, reader: Node) -> Value | None:
    """The mask [B or 1, 1, 1, N] that does what `mask` does, None if it does nothing.

    Finds the part that depends on keys inside conjunctions and choices whose other parts are constants that say
    nothing. Raises Refusal where the mask depends on heads or queries: T14 if it is causal, T3 for a bias by relative
    position, T4 for windows, T5 for anything else.
    """
    try:
        return _by_key(mask)
    except _Deeper:
        raise _why(mask, reader) from None


class _Deeper(Exception):
    """A part of the mask depends on heads or queries."""


def _by_key(mask: Value) -> Value | None:
    if _says_nothing(mask):
        return None
    shape = (1,) * (4 - len(mask.tensor.dims)) + mask.tensor.dims
    if shape[1:3] == (1, 1):
        return mask if len(mask.tensor.dims) == 4 else _unsqueezed(mask)
    node = mask.node
    match None if node is None else node.op:
        case ops.And():
            left, right = (_by_key(v) for v in mask.node.inputs)  # type: ignore[union-attr]
            if left is None or right is None:
                return left if right is None else right
            both: Value = ops.And()(left, right)
            return both
        case ops.Where() if node is not None and all(
            _single(v) is not None or _says_nothing(v) for v in node.inputs[1:]
        ):
            condition = _by_key(node.inputs[0])
            if condition is None and _says_nothing(node.inputs[1]):
                return None
            numbers = [_number(v) for v in node.inputs[1:]]
            if condition is not None and None not in numbers:
                chosen: Value = ops.Where()(condition, *numbers)
                return chosen
        case ops.Add() if node is not None:
            for one, other in (node.inputs, node.inputs[::-1]):
                if _says_nothing(one):
                    return _by_key(other)
        case ops.Expand() if node is not None:
            return _by_key(node.inputs[0])
        case ops.Cast() if node is not None:
            inner = _by_key(node.inputs[0])
            if inner is not None:
                cast: Value = node.op(inner)
                return cast
    raise _Deeper


def _unexpanded(value: Value) -> Value:
    """What a value is before it is expanded."""
    while value.node is not None and isinstance(value.op, ops.Expand):
        value = value.node.inputs[0]
    return value


def _says_nothing(value: Value) -> bool:
    """True for a constant, perhaps expanded, that is True or 0 everywhere."""
    data = constant(_unexpanded(value))
    if data is None:
        return False
    array = data.numpy()
    return bool(array.all()) if array.dtype == np.bool_ else array.dtype.kind == "f" and not array.any()


def _why(mask: Value, reader: Node) -> Refusal:
    """What a mask that depends on queries is."""
    work, seen = [(mask, 0)], {mask}
    while work:
        value, depth = work.pop(0)
        data = constant(value)
        if data is not None:
            found = _judged(data.numpy(), reader)
            if found is not None:
                return found
            continue
        node = value.node
        if node is None or depth > _DEPTH:
            continue
        rows = (1, 1, *value.tensor.dims)[-2:]
        if isinstance(node.op, _COMPARISONS) and 1 not in rows:
            return Refusal("T14", "attention is causal: merged tokens would leak what comes later", reader)
        fresh = [v for v in node.inputs if v not in seen]
        seen.update(fresh)
        work += [(v, depth + 1) for v in fresh]
    return Refusal("T5", f"its mask {list(mask.tensor.dims)} differs from query to query or head to head", reader)


def _judged(array: np.ndarray, reader: Node) -> Refusal | None:
    """What a constant in a mask is, if it depends on queries."""
    rows, columns = array.shape[-2:] if array.ndim >= 2 else (1, 1)
    if rows < 2 or columns < 2 or array.dtype.kind not in "bf":
        return None
    kept = array if array.dtype == np.bool_ else array > _HIDDEN
    triangle = np.tri(rows, columns, dtype=np.bool_)
    if any(np.array_equal(np.broadcast_to(shown, kept.shape), kept) for shown in (triangle, ~triangle)):
        return Refusal("T14", "attention is causal: merged tokens would leak what comes later", reader)
    if not kept.all():
        return Refusal("T4", "its constant mask keeps tokens apart by their position, as windows do", reader)
    if array.dtype != np.bool_ and (array != array.flat[0]).any():
        return Refusal("T3", "it adds a bias by the relative position of tokens", reader)
    return None


def _unsqueezed(mask: Value) -> Value:
    shaped: Value = ops.Unsqueeze(tuple(range(4 - len(mask.tensor.dims))))(mask)
    return shaped


def _single(value: Value) -> Data | None:
    data = constant(value)
    return data if data is not None and data.size == 1 else None


def _number(value: Value) -> Value | None:
    """A constant whose elements are equal, as a scalar."""
    data = constant(_unexpanded(value))
    if data is None:
        return None
    array = data.numpy()
    if array.size == 0 or (array != array.flat[0]).any():
        return None
    return Const(Data(np.asarray(array.flat[0], array.dtype)))()


def added(mask: Value, bias: Value) -> Value:
    """An additive mask that does what `mask` does and adds `bias`, both [B or 1, 1, 1, N]."""
    dtype = bias.tensor.dtype
    if mask.tensor.dtype == dtypes.boolean:
        lowest = np.asarray(-3e38 if dtype.bits > 16 else -6e4, dtype.storage)
        chosen: Value = ops.Where()(mask, bias, lowest)
        return chosen
    total: Value = ops.Add()(mask, bias)
    return total
