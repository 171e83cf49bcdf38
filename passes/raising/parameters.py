"""Constants as parameters of an op: which axes they vary along, and the arithmetic of folding them.

Weights are folded in float64 and rounded once, to the dtype that they had.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planish.ir.dims import Dim
from planish.ir.graph import Value
from planish.passes.rewrite import reject


def along(array: np.ndarray, shape: Sequence[Dim]) -> np.ndarray:
    """`array`, a factor or summand of some tensor, as a parameter of shape `shape` for the tensor's last axes.

    Rejects the match if the array varies along other axes, or if an extent of `shape` isn't known.
    """
    extents = [extent for extent in shape if isinstance(extent, int)]
    if len(extents) != len(shape):
        reject(f"the extents {tuple(shape)} of the parameter are not constant")
    front = max(array.ndim - len(extents), 0)
    if any(extent != 1 for extent in array.shape[:front]):
        reject(f"a constant of shape {array.shape} varies along other axes than the last {len(extents)}")
    part = array.reshape(array.shape[front:])
    pairs: list[tuple[int, int]] = list(zip(part.shape[::-1], extents[::-1], strict=False))
    if any(extent not in (1, wanted) for extent, wanted in pairs):
        reject(f"a constant of shape {array.shape} doesn't fit {tuple(extents)}")
    return np.ascontiguousarray(np.broadcast_to(part, extents))


def channels(array: np.ndarray, rank: int, count: Dim, axis: int = 1) -> np.ndarray:
    """`array`, a factor or summand of a tensor of `rank`, as a vector of `count` along `axis`.

    Rejects the match if the array varies along other axes.
    """
    if array.ndim > rank:
        reject(f"a constant of shape {array.shape} has more axes than the {rank} of the tensor")
    shape = (1,) * (rank - array.ndim) + array.shape
    if any(extent != 1 for place, extent in enumerate(shape) if place != axis):
        reject(f"a constant of shape {array.shape} varies along other axes than {axis}")
    return along(array.reshape(-1), (count,))


def stored(array: np.ndarray, like: np.ndarray) -> np.ndarray:
    """`array`, folded in float64, in the dtype of `like`."""
    return np.ascontiguousarray(array.astype(like.dtype))


def shortest(number: float) -> float:
    """The shortest decimal for a float32 number, as float attributes are written; any other number as it is."""
    short = float(str(np.float32(number)))
    return short if float(np.float32(number)) == number else number


def quotient(factor: float | None, divisor: float | None) -> float:
    """factor / divisor, 1 for what is absent; rejects a factor or divisor of 0."""
    if factor == 0 or divisor == 0:
        reject("a scale of 0 or 1/0 is left alone")
    return (1.0 if factor is None else factor) / (1.0 if divisor is None else divisor)


def epsilon(number: float) -> float:
    """The summand under the root of a norm as an attribute; rejects negative ones."""
    if not number >= 0:
        reject(f"epsilon {number:g} is negative")
    return shortest(number)


def wide(array: np.ndarray) -> np.ndarray:
    """`array` in float64, to be folded."""
    return array.astype(np.float64)


def keeping(new: Value, root: Value) -> Value:
    """`new`, which stands for `root`; rejects the match if a constant in it broadcast `root` to another shape."""
    if new.type != root.type and not root.type.accepts(new.type):
        reject(f"a constant broadcasts {new.type} to {root.type}")
    return new


def folds_floats(*arrays: np.ndarray | None) -> None:
    """Reject the match unless all arrays are of one floating-point dtype of at least 16 bits."""
    kinds = {array.dtype for array in arrays if array is not None}
    if len(kinds) != 1 or not all(np.issubdtype(kind, np.floating) or kind.name == "bfloat16" for kind in kinds):
        reject(f"constants of dtypes {sorted(map(str, kinds))} are not folded")
