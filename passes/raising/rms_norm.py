"""RMSNorm from its parts: x / sqrt(E[x^2] + eps). The scale is left behind as Mul; `norm_affine` takes it in."""

from __future__ import annotations

import math

import numpy as np

from planish.ir.graph import Value
from planish.ir.ops import Cast, ReduceL2, ReduceSum, ReduceSumSquare, RMSNorm
from planish.passes.exactness import ROUNDING
from planish.passes.pattern import Array, Pattern, Scalar, attr, either
from planish.passes.raising.fragments import inverse_root, mean, over_root, square, widened
from planish.passes.raising.parameters import along, epsilon, keeping
from planish.passes.rewrite import reject, rule


def over_mean_square(x: Pattern, eps: Scalar) -> Pattern:
    wide = widened(x)
    return over_root(either(x, wide), mean(square(wide)) + eps)


@rule(over_mean_square, exactness=ROUNDING)
def rms_norm(x: Value, eps: float, axes: tuple[int, ...], root: Value, up: object = None, down: object = None) -> Value:
    """x / sqrt(E[x^2] + eps) = RMSNorm(x)."""
    return _normalised(x, axes, eps, root)


def over_scaled_mean_square(x: Pattern, gamma: Array, eps: Scalar) -> Pattern:
    return x * (inverse_root(mean(square(x)) + eps) * gamma)


@rule(over_scaled_mean_square, exactness=ROUNDING)
def rms_norm_of_scaled_inverse(x: Value, gamma: np.ndarray, eps: float, axes: tuple[int, ...], root: Value) -> Value:
    """x * (gamma / sqrt(E[x^2] + eps)) = RMSNorm(x, gamma)."""
    _need_last(axes)
    return keeping(RMSNorm(axes[0], epsilon(eps))(x, along(gamma, x.tensor.dims[axes[0] :])), root)


def over_sum_of_squares(x: Pattern, share: Scalar, count: Scalar, eps: Scalar) -> Pattern:
    axes = attr("axes")
    total = either(ReduceSumSquare(axes=axes, keepdims=True)(x), ReduceSum(axes=axes, keepdims=True)(square(x)))
    return over_root(x, either(total * share, total / count) + eps)


@rule(over_sum_of_squares, exactness=ROUNDING)
def rms_norm_of_sum(
    x: Value,
    share: float | None,
    count: float | None,
    eps: float,
    axes: tuple[int, ...],
    root: Value,
    down: object = None,
) -> Value:
    """x / sqrt(sum(x^2) / D + eps) = RMSNorm(x) over D elements."""
    _need_factor(1 / count if count else share, 1 / _elements(x, axes))
    return _normalised(x, axes, eps, root)


def over_length(x: Pattern, share: Scalar, divisor: Scalar, factor: Scalar) -> Pattern:
    length = ReduceL2(axes=attr("axes"), keepdims=True)(x)
    return either(x / either(length * share, length / divisor), x / length * factor)


@rule(over_length, exactness=ROUNDING)
def rms_norm_of_length(
    x: Value,
    share: float | None,
    divisor: float | None,
    factor: float | None,
    axes: tuple[int, ...],
    root: Value,
) -> Value:
    """x / (|x| / sqrt(D)) = RMSNorm(x) over D elements, with epsilon 0."""
    if factor:
        share = 1 / factor
    _need_factor(1 / divisor if divisor else share, 1 / math.sqrt(_elements(x, axes)))
    return _normalised(x, axes, 0.0, root)


def _normalised(x: Value, axes: tuple[int, ...], eps: float, root: Value) -> Value:
    _need_last(axes)
    operand = x if x.tensor.dtype == root.tensor.dtype else Cast(root.tensor.dtype)(x)
    return keeping(RMSNorm(axis=axes[0], eps=epsilon(eps))(operand), root)


def _need_last(axes: tuple[int, ...]) -> None:
    if axes != tuple(range(-len(axes), 0)):
        reject(f"axes {axes} are not the last ones")


def _elements(x: Value, axes: tuple[int, ...]) -> int:
    extents = [x.tensor.dims[axis] for axis in axes]
    static = [extent for extent in extents if isinstance(extent, int)]
    if len(static) != len(extents) or 0 in static:
        reject(f"the number of elements over axes {axes} is not constant")
    return math.prod(static)


def _need_factor(found: float | None, wanted: float) -> None:
    if found is None or not math.isclose(found, wanted, rel_tol=1e-5):
        reject(f"the sum is scaled by {found}, not by {wanted:g}")


RMS_NORM_RULES = (rms_norm, rms_norm_of_scaled_inverse, rms_norm_of_sum, rms_norm_of_length)
"""From parts to RMSNorm; to be tried after LayerNorm, which is an RMSNorm of a centred tensor."""
