"""Masks of attention as one number per key: what can follow its token when tokens go."""

from __future__ import annotations

import numpy as np

from planish.ir import dtypes, ops
from planish.ir.data import Data
from planish.ir.graph import Node, Value
from planish.ir.op import Const, constant
from planish.passes.tokens.refusal import Refusal


def key_mask(mask: Value, reader: Node) -> Value:
    """The mask [B or 1, 1, 1, N] that does what `mask` does. Raises Refusal where it depends on heads or queries.

    Finds the part that depends on keys inside a conjunction or choice with constants that say nothing.
    """
    shape = (1,) * (4 - len(mask.tensor.dims)) + mask.tensor.dims
    if shape[1:3] == (1, 1):
        return mask if len(mask.tensor.dims) == 4 else _unsqueezed(mask)
    data = constant(mask)
    if data is not None:
        _judge_constant(data.numpy(), reader)
    node = mask.node
    if node is not None and isinstance(node.op, ops.And):
        left, right = node.inputs
        for one, other in ((left, right), (right, left)):
            fixed = constant(one)
            if fixed is not None and bool(fixed.numpy().all()):
                return key_mask(other, reader)
            if fixed is not None:
                _judge_constant(fixed.numpy(), reader)
    if node is not None and isinstance(node.op, ops.Where):
        condition, yes, no = node.inputs
        if all((value := constant(v)) is not None and value.size == 1 for v in (yes, no)):
            shaped: Value = ops.Where()(key_mask(condition, reader), _scalar(yes), _scalar(no))
            return shaped
    if node is not None and isinstance(node.op, ops.Add):
        for one, other in (node.inputs, node.inputs[::-1]):
            fixed = constant(one)
            if fixed is not None and not fixed.numpy().any():
                return key_mask(other, reader)
            if fixed is not None:
                _judge_constant(fixed.numpy(), reader)
    if node is not None and isinstance(node.op, ops.Expand):
        return key_mask(node.inputs[0], reader)
    if node is not None and isinstance(node.op, ops.Cast):
        cast: Value = node.op(key_mask(node.inputs[0], reader))
        return cast
    raise Refusal("T5", f"its mask {list(mask.tensor.dims)} differs from query to query or head to head", reader)


def _judge_constant(array: np.ndarray, reader: Node) -> None:
    """Raise Refusal for a constant that depends on queries: causal, or a bias by relative position."""
    rows, columns = array.shape[-2:] if array.ndim >= 2 else (1, 1)
    if rows == 1:
        return
    kept = array if array.dtype == np.bool_ else array > -1e3
    if np.array_equal(np.broadcast_to(np.tri(rows, columns, dtype=np.bool_), kept.shape), kept):
        raise Refusal("T14", "attention is causal: merged tokens would leak what comes later", reader)
    if not kept.all():
        raise Refusal("T4", "its constant mask keeps tokens apart by their position, as windows do", reader)
    if array.dtype != np.bool_ and array.any():
        raise Refusal("T3", "it adds a bias by the relative position of tokens", reader)


def _unsqueezed(mask: Value) -> Value:
    shaped: Value = ops.Unsqueeze(tuple(range(4 - len(mask.tensor.dims))))(mask)
    return shaped


def _scalar(value: Value) -> Value:
    """A constant of one element, of whatever rank, as a scalar."""
    data = constant(value)
    assert data is not None
    made = data.numpy().reshape(())
    return value if not value.tensor.dims else Const(Data(made))()




def added(mask: Value, bias: Value) -> Value:
    """An additive mask that does what `mask` does and adds `bias`, both [B or 1, 1, 1, N]."""
    dtype = bias.tensor.dtype
    if mask.tensor.dtype == dtypes.boolean:
        lowest = np.asarray(np.finfo(dtype.storage).min / 2, dtype.storage)
        chosen: Value = ops.Where()(mask, bias, lowest)
        return chosen
    total: Value = ops.Add()(mask, bias)
    return total
