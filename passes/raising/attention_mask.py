"""Masks of an attention that is spelled out: summands and selections as one operand, triangles as `causal`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planish.ir import dtypes
from planish.ir.data import Data
from planish.ir.dims import Dim
from planish.ir.graph import Value
from planish.ir.op import constant
from planish.ir.ops import Add, Const, Expand, Log, Not, Where
from planish.passes.rewrite import array_like, reject

LOW = -1e4  # scores this far below the others have weight 0 in float32


@dataclass(frozen=True)
class Mask:
    """Mask operand of an Attention (or None), and whether it is causal besides."""

    value: Value | None = None
    causal: bool = False


def mask_of(
    scores: tuple[Dim, ...],
    mask: Value | None,
    second: Value | None,
    keep: Value | None,
    drop: Value | None,
    low: float | None,
    q: Value,
) -> Mask:
    """The mask of scores of shape `scores`: `mask` and `second` are added; `low` stands where not `keep`, or `drop`.

    Rejects the match if a mask doesn't broadcast to the scores, or if `low` can't stand for minus infinity.
    """
    if low is not None:
        condition = keep if keep is not None else drop
        mask = _selected(_unexpanded(condition, scores), keep is not None, low, q) if condition is not None else None
    for part in (mask, second):
        if part is not None:
            need_broadcast(part, scores)
    if mask is None:
        return Mask()
    total: Value = mask if second is None else Add()(mask, second)
    return simplified(total, scores)


def simplified(mask: Value, scores: tuple[Dim, ...]) -> Mask:
    """The mask, as `causal` if it is a constant triangle."""
    data = constant(mask)
    if data is None:
        return Mask(mask)
    array = data.numpy()
    if array.ndim < 2 or array.shape[-1] != array.shape[-2] or array.shape[-2:] != scores[-2:]:
        return Mask(mask)
    if any(extent != 1 for extent in array.shape[:-2]):
        return Mask(mask)
    square = array.reshape(array.shape[-2:])
    allowed = square if square.dtype == np.bool_ else square == 0
    blocked = ~square if square.dtype == np.bool_ else square <= LOW
    triangle = np.tri(len(square), dtype=np.bool_)
    return Mask(causal=True) if np.array_equal(allowed, triangle) and np.array_equal(blocked, ~triangle) else Mask(mask)


def need_broadcast(mask: Value, scores: tuple[Dim, ...]) -> None:
    """Reject the match unless the mask provably broadcasts to the shape of the scores."""
    shape = mask.tensor.dims
    fits = len(shape) <= len(scores) and all(a in (1, b) for a, b in zip(shape[::-1], scores[::-1], strict=False))
    if not fits:
        reject(f"the mask is {mask.type}, which doesn't provably broadcast to scores of shape {list(scores)}")


def may_hide_a_row(mask: Mask) -> bool:
    """True unless each row of the mask provably lets some position take part."""
    if mask.value is None:
        return False
    data = constant(mask.value)
    if data is None:
        return mask.value.tensor.dtype == dtypes.boolean or not _stays_finite(mask.value)
    array = data.numpy()
    return not bool((array if array.dtype == np.bool_ else np.isfinite(array)).any(axis=-1).all())


def _selected(condition: Value, keeps: bool, low: float, q: Value) -> Value:
    """The selection as a mask: bool for minus infinity, else added, so that a row masked as a whole stays finite."""
    if low > LOW:
        reject(f"masked scores are set to {low:g}, which is not below {LOW:g}")
    if np.isneginf(low):
        inverted: Value = condition if keeps else Not()(condition)
        return inverted
    zero, bottom = array_like(0.0, q), array_like(low, q)
    data = constant(condition)
    if data is not None:
        kept = data.numpy() if keeps else ~data.numpy()
        fixed: Value = Const(Data(np.where(kept, zero, bottom)))()
        return fixed
    result: Value = Where()(condition, zero, bottom) if keeps else Where()(condition, bottom, zero)
    return result


def _unexpanded(condition: Value, scores: tuple[Dim, ...]) -> Value:
    """The condition before it was broadcast to the scores."""
    node = condition.node
    if node is not None and isinstance(node.op, Expand) and condition.tensor.dims == scores and node.operands[0]:
        return node.operands[0]
    return condition


def _stays_finite(value: Value) -> bool:
    """True if no constant that `value` is computed from is infinite; inputs count as finite."""
    seen: set[Value] = set()
    work = [value]
    while work:
        current = work.pop()
        if current in seen:
            continue
        seen.add(current)
        data = constant(current)
        if data is not None and data.type.dtype.is_float and not np.isfinite(data.numpy()).all():
            return False
        if isinstance(current.op, Log):
            return False
        work.extend(current.node.inputs if current.node is not None else ())
    return True
