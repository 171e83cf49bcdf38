"""Constant scales, shifts and casts behind a norm become its parameters; computed ones stay outside."""

from __future__ import annotations

import numpy as np

from planish.ir import dtypes
from planish.ir.dtypes import DType
from planish.ir.graph import Value
from planish.ir.op import constant
from planish.ir.ops import Add, Cast, LayerNorm, Mul, RMSNorm, Transpose
from planish.passes.exactness import ROUNDING
from planish.passes.pattern import Array, Maybe, Pattern, attr
from planish.passes.raising.parameters import along, channels, keeping, stored, wide
from planish.passes.rewrite import reject, rule


def layer_norm(x: object, gamma: object, beta: object) -> Pattern:
    result: Pattern = LayerNorm(axis=attr("axis"), eps=attr("eps"))(x, gamma, beta)
    return result


def rms_norm(x: object, gamma: object) -> Pattern:
    result: Pattern = RMSNorm(axis=attr("axis"), eps=attr("eps"))(x, gamma)
    return result


def scaled_layer_norm(x: Pattern, gamma: Maybe, beta: Maybe, factor: Array) -> Pattern:
    return Mul()(layer_norm(x, gamma, beta), factor)


@rule(scaled_layer_norm, exactness=ROUNDING)
def scale_into_layer_norm(
    x: Value, gamma: Value | None, beta: Value | None, factor: np.ndarray, axis: int, eps: float, root: Value
) -> Value:
    """LayerNorm(x, gamma, beta) * s = LayerNorm(x, gamma * s, beta * s), s constant and of the normalised shape."""
    factor = along(factor, x.tensor.dims[axis:])
    return keeping(LayerNorm(axis, eps)(x, _times(gamma, factor) if gamma else factor, _times(beta, factor)), root)


def shifted_layer_norm(x: Pattern, gamma: Maybe, beta: Maybe, shift: Array) -> Pattern:
    return Add()(layer_norm(x, gamma, beta), shift)


@rule(shifted_layer_norm, exactness=ROUNDING)
def shift_into_layer_norm(
    x: Value, gamma: Value | None, beta: Value | None, shift: np.ndarray, axis: int, eps: float, root: Value
) -> Value:
    """LayerNorm(x, gamma, beta) + t = LayerNorm(x, gamma, beta + t), t constant and of the normalised shape."""
    shift = along(shift, x.tensor.dims[axis:])
    return keeping(LayerNorm(axis, eps)(x, gamma, _plus(beta, shift)), root)


def scaled_moved_layer_norm(x: Pattern, gamma: Maybe, beta: Maybe, factor: Array) -> Pattern:
    return Mul()(Transpose(perm=attr("perm"))(layer_norm(x, gamma, beta)), factor)


@rule(scaled_moved_layer_norm, exactness=ROUNDING)
def scale_into_moved_layer_norm(
    x: Value,
    gamma: Value | None,
    beta: Value | None,
    factor: np.ndarray,
    axis: int,
    eps: float,
    perm: tuple[int, ...],
    root: Value,
) -> Value:
    """Transpose(LayerNorm(x, gamma, beta)) * s = Transpose(LayerNorm(x, gamma * s, beta * s)), s along its axis."""
    factor = _along_moved(factor, x, axis, perm)
    scaled = LayerNorm(axis, eps)(x, _times(gamma, factor) if gamma else factor, _times(beta, factor))
    return keeping(Transpose(perm)(scaled), root)


def shifted_moved_layer_norm(x: Pattern, gamma: Maybe, beta: Maybe, shift: Array) -> Pattern:
    return Add()(Transpose(perm=attr("perm"))(layer_norm(x, gamma, beta)), shift)


@rule(shifted_moved_layer_norm, exactness=ROUNDING)
def shift_into_moved_layer_norm(
    x: Value,
    gamma: Value | None,
    beta: Value | None,
    shift: np.ndarray,
    axis: int,
    eps: float,
    perm: tuple[int, ...],
    root: Value,
) -> Value:
    """Transpose(LayerNorm(x, gamma, beta)) + t = Transpose(LayerNorm(x, gamma, beta + t)), t along its axis."""
    shift = _along_moved(shift, x, axis, perm)
    return keeping(Transpose(perm)(LayerNorm(axis, eps)(x, gamma, _plus(beta, shift))), root)


def layer_norm_between_casts(x: Pattern, gamma: Maybe, beta: Maybe) -> Pattern:
    return Cast(to=attr("narrow"))(layer_norm(Cast(to=dtypes.f32)(x), gamma, beta))


@rule(layer_norm_between_casts, exactness=ROUNDING)
def casts_into_layer_norm(
    x: Value, gamma: Value | None, beta: Value | None, axis: int, eps: float, narrow: DType
) -> Value:
    """Cast(LayerNorm(Cast(x))) = LayerNorm(x) for 16-bit x, whose norm is computed in float32 anyway."""
    _need_round_trip(x, narrow)
    result: Value = LayerNorm(axis, eps)(x, _narrowed(gamma, narrow), _narrowed(beta, narrow))
    return result


def layer_norm_of_unit_scale(x: Pattern, beta: Maybe) -> Pattern:
    return layer_norm(x, 1.0, beta)


@rule(layer_norm_of_unit_scale, exactness=ROUNDING)
def drop_unit_scale(x: Value, beta: Value | None, axis: int, eps: float) -> Value:
    """LayerNorm(x, 1, beta) = LayerNorm(x, None, beta)."""
    result: Value = LayerNorm(axis, eps)(x, None, beta)
    return result


def layer_norm_of_zero_shift(x: Pattern, gamma: Maybe) -> Pattern:
    return layer_norm(x, gamma, 0.0)


@rule(layer_norm_of_zero_shift, exactness=ROUNDING)
def drop_zero_shift(x: Value, gamma: Value | None, axis: int, eps: float) -> Value:
    """LayerNorm(x, gamma, 0) = LayerNorm(x, gamma)."""
    result: Value = LayerNorm(axis, eps)(x, gamma)
    return result


def scaled_rms_norm(x: Pattern, gamma: Maybe, factor: Array) -> Pattern:
    return Mul()(rms_norm(x, gamma), factor)


@rule(scaled_rms_norm, exactness=ROUNDING)
def scale_into_rms_norm(x: Value, gamma: Value | None, factor: np.ndarray, axis: int, eps: float, root: Value) -> Value:
    """RMSNorm(x, gamma) * s = RMSNorm(x, gamma * s), s constant and of the normalised shape."""
    factor = along(factor, x.tensor.dims[axis:])
    return keeping(RMSNorm(axis, eps)(x, _times(gamma, factor) if gamma else factor), root)


def rms_norm_between_casts(x: Pattern, gamma: Maybe) -> Pattern:
    return Cast(to=attr("narrow"))(rms_norm(Cast(to=dtypes.f32)(x), gamma))


@rule(rms_norm_between_casts, exactness=ROUNDING)
def casts_into_rms_norm(x: Value, gamma: Value | None, axis: int, eps: float, narrow: DType) -> Value:
    """Cast(RMSNorm(Cast(x))) = RMSNorm(x) for 16-bit x, whose norm is computed in float32 anyway."""
    _need_round_trip(x, narrow)
    result: Value = RMSNorm(axis, eps)(x, _narrowed(gamma, narrow))
    return result


def rms_norm_of_unit_scale(x: Pattern) -> Pattern:
    return rms_norm(x, 1.0)


@rule(rms_norm_of_unit_scale, exactness=ROUNDING)
def drop_unit_rms_scale(x: Value, axis: int, eps: float) -> Value:
    """RMSNorm(x, 1) = RMSNorm(x)."""
    result: Value = RMSNorm(axis, eps)(x)
    return result


NORM_AFFINE_RULES = (
    scale_into_layer_norm,
    shift_into_layer_norm,
    scale_into_moved_layer_norm,
    shift_into_moved_layer_norm,
    casts_into_layer_norm,
    drop_unit_scale,
    drop_zero_shift,
    scale_into_rms_norm,
    casts_into_rms_norm,
    drop_unit_rms_scale,
)
"""From a norm and what stands behind it to a norm with parameters."""


def _along_moved(array: np.ndarray, x: Value, axis: int, perm: tuple[int, ...]) -> np.ndarray:
    """`array`, which acts on the transposed x, as a vector along the last axis of x."""
    if axis != -1:
        reject(f"the norm runs from axis {axis}, not over the last one")
    return channels(array, len(perm), x.tensor.dims[-1], perm.index(len(perm) - 1))


def _array(value: Value) -> np.ndarray:
    data = constant(value)
    if data is None:
        reject("a parameter of the norm is computed")
    return data.numpy()


def _times(parameter: Value | None, factor: np.ndarray) -> np.ndarray | None:
    return None if parameter is None else stored(wide(_array(parameter)) * wide(factor), factor)


def _plus(parameter: Value | None, shift: np.ndarray) -> np.ndarray:
    return shift if parameter is None else stored(wide(_array(parameter)) + wide(shift), shift)


def _need_round_trip(x: Value, narrow: DType) -> None:
    if x.tensor.dtype != narrow or narrow.bits != 16:
        reject(f"{x.tensor.dtype} computed in f32 and cast to {narrow} is no 16-bit norm")


def _narrowed(parameter: Value | None, dtype: DType) -> np.ndarray | None:
    """The parameter in a 16-bit dtype; rejects one that overflows there."""
    if parameter is None:
        return None
    with np.errstate(over="ignore"):
        narrow = _array(parameter).astype(dtype.storage)
    if not np.isfinite(narrow.astype(np.float32)).all():
        reject(f"a parameter of the norm overflows {dtype}")
    return narrow
