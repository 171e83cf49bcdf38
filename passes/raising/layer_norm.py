"""LayerNorm from its parts: (x - E[x]) / sqrt(Var[x] + eps), in the spellings of exporters and converters.

Scale and shift are left behind as Mul and Add; `norm_affine` takes them in.
"""

from __future__ import annotations

import numpy as np

from planish.ir import dims
from planish.ir.dtypes import DType
from planish.ir.graph import Value
from planish.ir.ops import (
    BatchNorm,
    Cast,
    Expand,
    InstanceNorm,
    LayerNorm,
    Neg,
    ReduceMean,
    ReduceSumSquare,
    Reshape,
    Squeeze,
    Transpose,
    Unsqueeze,
)
from planish.passes.exactness import ROUNDING
from planish.passes.pattern import Array, Pattern, Scalar, attr, either
from planish.passes.raising.fragments import inverse_root, mean, over_root, raw_variance, square, widened
from planish.passes.raising.parameters import along, epsilon, keeping
from planish.passes.rewrite import reject, rule


def mean_with_axes_put_back(x: Pattern) -> Pattern:
    flat = ReduceMean(axes=attr("axes"), keepdims=False)(x)
    return either(Reshape(shape=attr("shape"))(flat), Unsqueeze(axes=attr("places"))(flat))


@rule(mean_with_axes_put_back)
def kept_mean(x: Value, axes: tuple[int, ...], root: Value, **_: object) -> Value:
    """A mean whose axes are put back as 1 = the mean that keeps them."""
    kept: Value = ReduceMean(axes=axes, keepdims=True)(x)
    if kept.tensor.dims != root.tensor.dims:
        reject(f"{root.type} is not {x.type} with axes {axes} of extent 1")
    return kept


def centred_over_deviation(x: Pattern, eps: Scalar) -> Pattern:
    centred = x - mean(x)
    wide = widened(centred)
    variance = mean(square(wide))
    return over_root(either(centred, wide), variance + eps)


@rule(centred_over_deviation, exactness=ROUNDING)
def layer_norm(
    x: Value, eps: float, axes: tuple[int, ...], root: Value, up: object = None, down: object = None
) -> Value:
    """(x - E[x]) / sqrt(E[(x - E[x])^2] + eps) = LayerNorm(x)."""
    return keeping(normalised(_in_dtype(x, root.tensor.dtype), axes, eps), root)


def centred_over_raw_deviation(x: Pattern, eps: Scalar) -> Pattern:
    average = mean(x)
    return over_root(x - average, raw_variance(x, average) + eps)


@rule(centred_over_raw_deviation, exactness=ROUNDING)
def layer_norm_of_raw_moments(x: Value, eps: float, axes: tuple[int, ...], root: Value, down: object = None) -> Value:
    """(x - E[x]) / sqrt(E[x^2] - E[x]^2 + eps) = LayerNorm(x)."""
    return keeping(normalised(x, axes, eps), root)


def scaled_centred(x: Pattern, gamma: Array, eps: Scalar) -> Pattern:
    centred = x - mean(x)
    inverse = inverse_root(mean(square(centred)) + eps)
    return centred * (inverse * gamma)


@rule(scaled_centred, exactness=ROUNDING)
def layer_norm_of_scaled_inverse(x: Value, gamma: np.ndarray, eps: float, axes: tuple[int, ...], root: Value) -> Value:
    """(x - E[x]) * (gamma / sqrt(Var[x] + eps)) = LayerNorm(x, gamma)."""
    return keeping(_affine(x, gamma, None, axes, eps), root)


def scale_and_shift(x: Pattern, gamma: Array, beta: Array, eps: Scalar) -> Pattern:
    average = mean(x)
    variance = either(mean(square(x - average)), raw_variance(x, average))
    inverse = inverse_root(variance + eps)
    scale = either(inverse * gamma, inverse)
    moved = average * scale
    moved_back = either(Neg()(average) * scale, -moved)
    return either(
        x * scale + either(beta - moved, beta + moved_back),
        x * scale - moved,
        x * scale + moved_back,
    )


@rule(scale_and_shift, exactness=ROUNDING)
def layer_norm_of_scale_and_shift(
    x: Value,
    gamma: np.ndarray | None,
    beta: np.ndarray | None,
    eps: float,
    axes: tuple[int, ...],
    root: Value,
) -> Value:
    """x * s + (beta - E[x] * s) with s = gamma / sqrt(Var[x] + eps) is LayerNorm(x, gamma, beta)."""
    return keeping(_affine(x, gamma, beta, axes, eps), root)


def scaled_instance_norm(x: Pattern, gamma: Array) -> Pattern:
    return InstanceNorm(eps=attr("eps"))(x, 1.0, 0.0) * gamma


@rule(scaled_instance_norm, exactness=ROUNDING)
def layer_norm_of_instance_norm(x: Value, gamma: np.ndarray, eps: float, root: Value) -> Value:
    """InstanceNorm(x, 1, 0) * gamma = LayerNorm(x, gamma) for x[B, N, C] and gamma[C]: each token is an instance."""
    if x.tensor.rank != 3:
        reject(f"the tensor has rank {x.tensor.rank}, not 3")
    return keeping(_affine(x, gamma, None, (-1,), eps), root)


def batch_norm_of_own_moments(x: Pattern, tokens: Pattern, count: Scalar, share: Scalar) -> Pattern:
    rows = Reshape(shape=attr("rows"))(x)
    average = mean(rows)
    total = ReduceSumSquare(axes=attr("axes"), keepdims=True)(rows - average)
    flat_total = ReduceSumSquare(axes=attr("axes"), keepdims=False)(rows - average)
    flat = Squeeze(axes=attr("flat"))
    variance = either(flat(either(total / count, total * share)), flat_total / count, flat_total * share)
    one, zero = (either(number, Expand()(number, tokens)) for number in (1.0, 0.0))
    normal = BatchNorm(eps=attr("eps"))(rows, one, zero, flat(average), variance)
    return Reshape(shape=attr("back"))(normal)


@rule(batch_norm_of_own_moments, exactness=ROUNDING)
def layer_norm_of_batch_norm(
    x: Value,
    count: float | None,
    share: float | None,
    axes: tuple[int, ...],
    eps: float,
    root: Value,
    rows: tuple[int, ...],
    back: tuple[int, ...],
    flat: tuple[int, ...],
    tokens: Value | None = None,
) -> Value:
    """BatchNorm of x as [1, tokens, C, 1] with its own mean and variance per token = LayerNorm(x)."""
    shape, shaped = x.tensor.dims, Reshape(rows)(x).tensor.dims
    last = [axis for axis in range(-1, -len(shape), -1) if len(shaped) == 4 and dims.product(shape[axis:]) == shaped[2]]
    if shape != root.tensor.dims or not last or (shaped[0], shaped[3]) != (1, 1):
        reject(f"{x.type} seen as {shaped} is not one channel per token")
    width = shaped[2]
    divides = count == width if share is None else isinstance(width, int) and share * width == 1
    if axes != (-4, -2, -1) or not divides:
        reject(f"moments over axes {axes}, divided by {count or share}, are not those of a token of width {width}")
    return keeping(LayerNorm(axis=last[0], eps=eps)(x), root)


def normalised(x: Value, axes: tuple[int, ...], eps: float) -> Value:
    """LayerNorm without affine part over `axes` (negative, sorted); an inner axis is moved to the end and back."""
    if axes == tuple(range(-len(axes), 0)):
        result: Value = LayerNorm(axis=axes[0], eps=epsilon(eps))(x)
        return result
    rank = len(x.tensor.dims)
    if len(axes) != 1:
        reject(f"axes {axes} are not the last ones")
    order = (*(place for place in range(rank) if place - rank not in axes), *(rank + axis for axis in axes))
    back = tuple(order.index(place) for place in range(rank))
    moved: Value = Transpose(back)(LayerNorm(axis=-len(axes), eps=epsilon(eps))(Transpose(order)(x)))
    return moved


def _affine(x: Value, gamma: np.ndarray | None, beta: np.ndarray | None, axes: tuple[int, ...], eps: float) -> Value:
    if axes != tuple(range(-len(axes), 0)):
        reject(f"axes {axes} are not the last ones")
    shape = x.tensor.dims[axes[0] :]
    parameters = [None if array is None else along(array, shape) for array in (gamma, beta)]
    result: Value = LayerNorm(axis=axes[0], eps=epsilon(eps))(x, *parameters)
    return result


def _in_dtype(x: Value, dtype: DType) -> Value:
    if x.tensor.dtype == dtype:
        return x
    result: Value = Cast(dtype)(x)
    return result


LAYER_NORM_RULES = (
    kept_mean,
    layer_norm,
    layer_norm_of_raw_moments,
    layer_norm_of_scaled_inverse,
    layer_norm_of_scale_and_shift,
    layer_norm_of_instance_norm,
    layer_norm_of_batch_norm,
)
"""From parts to LayerNorm; roots are Div, Mul, Add, Sub and Reshape."""
