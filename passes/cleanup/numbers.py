"""What rules on arithmetic ask of constants, and how they compute new ones."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np

from planish.ir import dtypes
from planish.ir.graph import Value
from planish.ir.op import Op, constant
from planish.ir.types import TensorType
from planish.passes.rewrite import reject

LOOK_LIMIT = 4096  # elements; larger constants are weights, and looking into them would load them


def same_shape(x: Value, root: Value) -> None:
    """Reject unless `x` has the shape of `root`, so that it can stand in its place."""
    if not isinstance(x.type, TensorType) or not isinstance(root.type, TensorType) or x.type.shape != root.type.shape:
        reject(f"the result {root.type} has another shape than {x.type}")


def operand_of(root: Value, *kinds: type[Op]) -> Value:
    """The first operand of the node of `root`, or the first that an op of one of `kinds` made."""
    node = root.node
    for operand in node.inputs if node is not None else ():
        if not kinds or isinstance(operand.op, kinds):
            return operand
    reject("no operand is of the wanted kind")


def is_number(value: Value, number: int) -> bool:
    """True if all elements of a constant equal `number` exactly. False if it is too large to look."""
    array = small(value)
    return array is not None and array.dtype.kind not in "bO" and bool(np.all(array == array.dtype.type(number)))


def is_zero(value: Value, negative: bool) -> bool:
    """True if all elements of a constant are integer zeros, or zeros of the given sign."""
    array = small(value)
    if array is None or array.dtype.kind in "bO" or not np.all(array == array.dtype.type(0)):
        return False
    if not dtypes.of(array).is_float:
        return dtypes.of(array).is_integer
    return bool(np.all(np.signbit(array.astype(np.float64)) == negative))


def small(value: Value) -> np.ndarray | None:
    """The contents of a constant, None if it is empty or too large to look."""
    data = constant(value)
    return data.numpy() if data is not None and 0 < data.size <= LOOK_LIMIT else None


def power_of_two(value: Value) -> np.ndarray:
    """1 / value. Rejects unless the elements are powers of two whose reciprocals are normal numbers."""
    array = small(value)
    if array is None or not dtypes.of(array).is_float:
        reject("the divisor is no small float constant")
    wide = array.astype(np.float64)
    with np.errstate(all="ignore"):
        inverse = np.asarray(1 / wide).astype(array.dtype)
    exact = np.isfinite(wide) & (np.abs(np.frexp(wide)[0]) == 0.5)
    if not np.all(exact):
        reject("the divisor isn't a power of two")
    if not np.all(np.isfinite(inverse) & (np.abs(inverse.astype(np.float64)) >= _smallest(array.dtype))):
        reject("the reciprocal isn't a normal number")
    return inverse


def merged(function: Callable[[np.ndarray, np.ndarray], np.ndarray], c: Value, d: Value) -> np.ndarray:
    """function(c, d) in float64, rounded once; integers wrap around.

    Rejects where the result is larger than both, leaves the range of the dtype, or cancels to less than the operands:
    exporters write x + big - big to round.
    """
    first, second = small(c), small(d)
    if first is None or second is None:
        reject("a constant is too large to compute with")
    if not dtypes.of(first).is_float:
        with np.errstate(all="ignore"):
            result = np.asarray(function(first, second)).astype(first.dtype)
        _require_small(result, first, second)
        return result
    a, b = first.astype(np.float64), second.astype(np.float64)
    with np.errstate(all="ignore"):
        wide = np.asarray(function(a, b))
        result = wide.astype(first.dtype)
    _require_small(result, first, second)
    size = np.abs(result.astype(np.float64))
    if function in (np.add, np.subtract):
        if np.any(size < np.maximum(np.abs(a), np.abs(b)) / 2):
            reject("the constants cancel each other, which may be meant to round")
    elif not np.all((size >= _smallest(result.dtype)) | (a == 0)):
        reject("the product of the constants is no normal number")
    if not np.all(np.isfinite(size)):
        reject("the constants together are out of the range of the dtype")
    return result


def _require_small(result: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    if result.size > max(a.size, b.size):
        reject("the constants together are larger than each")


def _smallest(dtype: np.dtype[np.generic]) -> float:
    """The smallest positive normal number of a float dtype."""
    return float(ml_dtypes.finfo(dtype).smallest_normal)  # type: ignore[no-untyped-call]
