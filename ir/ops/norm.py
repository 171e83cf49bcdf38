"""Normalisations: to zero mean and unit variance, to unit root mean square, to a sum of one.

16-bit floats are computed in float32 and rounded once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from planish.ir import dims, dtypes
from planish.ir.dims import Dim
from planish.ir.graph import Value
from planish.ir.op import Op, need
from planish.ir.ops import numerics
from planish.ir.ops.binary import Add, Div, Mul, Sub
from planish.ir.ops.elementwise import FLOAT, Cast, Sqrt, need_kind
from planish.ir.ops.reduce import ReduceMean
from planish.ir.types import TensorType


class LayerNorm(Op):
    """Layer normalisation, y = (x - mean) / sqrt(var + eps) * gamma + beta, over the axes from `axis` to the last.

    axis: negative. eps: added to the (population) variance.
    x: float[..., D1..Dk]    gamma, beta: as x, [D1..Dk], default 1 and 0    y: as x.
    C1 all floats.  C2 not quantized.  C3 -rank <= axis < 0.  C4 gamma and beta have the dtype and the normalised
    shape of x.
    Rounding. Source: ONNX LayerNormalization-17; Ba et al. 2016.
    """

    axis: int = -1
    eps: float = 1e-5

    def infer(self, x: TensorType, gamma: TensorType | None = None, beta: TensorType | None = None) -> TensorType:
        need_kind("x", x, FLOAT)
        _need_axis(x, self.axis)
        for name, parameter in (("gamma", gamma), ("beta", beta)):
            _need_like(name, parameter, x, x.dims[self.axis :])
        return TensorType(x.dtype, x.shape)

    def evaluate(self, x: np.ndarray, gamma: np.ndarray | None = None, beta: np.ndarray | None = None) -> np.ndarray:
        wide, axes = numerics.widen(x), tuple(range(self.axis, 0))
        with np.errstate(all="ignore"):
            centred = wide - np.mean(wide, axis=axes, keepdims=True)
            y = centred / np.sqrt(np.mean(centred * centred, axis=axes, keepdims=True) + self.eps)
            return numerics.rounded(_affine(y, gamma, beta), x.dtype)

    def decompose(self, x: Value, gamma: Value | None = None, beta: Value | None = None) -> Value:
        wide, mean_of = _widened(x), ReduceMean(tuple(range(self.axis, 0)), True)
        centred = Sub()(wide, mean_of(wide))
        var = mean_of(Mul()(centred, centred))
        y = Div()(centred, Sqrt()(Add()(var, numerics.scalar(self.eps, wide.tensor.dtype))))
        return _scaled(_narrowed(y, x), gamma, beta)


class RMSNorm(Op):
    """Root mean square normalisation, y = x / sqrt(mean of x * x + eps) * gamma, over the axes from `axis` to the last.

    axis: negative. eps: added to the mean square.
    x: float[..., D1..Dk]    gamma: as x, [D1..Dk], default 1    y: as x.
    C1 all floats.  C2 not quantized.  C3 -rank <= axis < 0.  C4 gamma has the dtype and the normalised shape of x.
    Rounding. Source: ONNX RMSNormalization-23; Zhang and Sennrich 2019.
    """

    axis: int = -1
    eps: float = 1e-5

    def infer(self, x: TensorType, gamma: TensorType | None = None) -> TensorType:
        need_kind("x", x, FLOAT)
        _need_axis(x, self.axis)
        _need_like("gamma", gamma, x, x.dims[self.axis :])
        return TensorType(x.dtype, x.shape)

    def evaluate(self, x: np.ndarray, gamma: np.ndarray | None = None) -> np.ndarray:
        wide, axes = numerics.widen(x), tuple(range(self.axis, 0))
        with np.errstate(all="ignore"):
            y = wide / np.sqrt(np.mean(wide * wide, axis=axes, keepdims=True) + self.eps)
            return numerics.rounded(_affine(y, gamma, None), x.dtype)

    def decompose(self, x: Value, gamma: Value | None = None) -> Value:
        wide = _widened(x)
        square = ReduceMean(tuple(range(self.axis, 0)), True)(Mul()(wide, wide))
        y = Div()(wide, Sqrt()(Add()(square, numerics.scalar(self.eps, wide.tensor.dtype))))
        return _scaled(_narrowed(y, x), gamma, None)


class BatchNorm(Op):
    """Batch normalisation in inference, y = (x - mean) / sqrt(var + eps) * gamma + beta for each channel.

    eps: added to the variance.
    x: float[N, C, ...]    gamma, beta: float[C]    mean, var: float[C], maybe wider    y: as x.
    C1 all floats.  C2 not quantized.  C3 rank of x is at least 2.  C4 gamma, beta, mean and var have shape [C].
    C5 gamma and beta share a dtype, and so do mean and var.
    Rounding. Source: ONNX BatchNormalization-15 with training_mode = 0.
    """

    eps: float = 1e-5

    def infer(
        self, x: TensorType, gamma: TensorType, beta: TensorType, mean: TensorType, var: TensorType
    ) -> TensorType:
        need_kind("x", x, FLOAT)
        need(len(x.dims) >= 2, f"C3: x is {x}; a channel axis 1 is needed")
        for name, parameter in (("gamma", gamma), ("beta", beta), ("mean", mean), ("var", var)):
            need_kind(name, parameter, FLOAT)
            _need_shape(name, parameter, (x.dims[1],))
        need(gamma.dtype == beta.dtype, f"C5: gamma is {gamma.dtype} and beta {beta.dtype}")
        need(mean.dtype == var.dtype, f"C5: mean is {mean.dtype} and var {var.dtype}")
        return TensorType(x.dtype, x.shape)

    def evaluate(
        self, x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray
    ) -> np.ndarray:
        spread = (-1, *(1,) * (x.ndim - 2))
        gamma, beta, mean, var = (numerics.widen(p).reshape(spread) for p in (gamma, beta, mean, var))
        with np.errstate(all="ignore"):
            y = (numerics.widen(x) - mean) / np.sqrt(var + self.eps) * gamma + beta
            return numerics.rounded(y, x.dtype)


class InstanceNorm(Op):
    """Instance normalisation, y = (x - mean) / sqrt(var + eps) * gamma + beta for each sample and channel.

    eps: added to the (population) variance over all axes after the channel.
    x: float[N, C, ...]    gamma, beta: as x, [C]    y: as x.
    C1 all floats.  C2 not quantized.  C3 rank of x is at least 3.  C4 gamma and beta have the dtype of x and shape [C].
    Rounding. Source: ONNX InstanceNormalization-22.
    """

    eps: float = 1e-5

    def infer(self, x: TensorType, gamma: TensorType, beta: TensorType) -> TensorType:
        need_kind("x", x, FLOAT)
        need(len(x.dims) >= 3, f"C3: x is {x}; axes after the channel axis 1 are needed")
        for name, parameter in (("gamma", gamma), ("beta", beta)):
            _need_like(name, parameter, x, (x.dims[1],))
        return TensorType(x.dtype, x.shape)

    def evaluate(self, x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
        wide, axes = numerics.widen(x), tuple(range(2, x.ndim))
        spread = (-1, *(1,) * len(axes))
        with np.errstate(all="ignore"):
            centred = wide - np.mean(wide, axis=axes, keepdims=True)
            y = centred / np.sqrt(np.mean(centred * centred, axis=axes, keepdims=True) + self.eps)
            return numerics.rounded(_affine(y, gamma.reshape(spread), beta.reshape(spread)), x.dtype)


class Softmax(Op):
    """Softmax, y = e**x / sum of e**x along the axis, computed from x - max(x).

    axis: negative.
    x: float[...]    y: as x.    C1 x is a float.  C2 not quantized.  C3 -rank <= axis < 0.
    Rounding. Source: ONNX Softmax-13.
    """

    axis: int = -1

    def infer(self, x: TensorType) -> TensorType:
        need_kind("x", x, FLOAT)
        _need_axis(x, self.axis)
        return TensorType(x.dtype, x.shape)

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            power = np.exp(_below_max(numerics.widen(x), self.axis))
            return numerics.rounded(power / np.sum(power, axis=self.axis, keepdims=True), x.dtype)


class LogSoftmax(Op):
    """Logarithm of Softmax, y = x - log(sum of e**x along the axis), computed from x - max(x).

    axis: negative.
    x: float[...]    y: as x.    C1 x is a float.  C2 not quantized.  C3 -rank <= axis < 0.
    Rounding. Source: ONNX LogSoftmax-13.
    """

    axis: int = -1

    def infer(self, x: TensorType) -> TensorType:
        need_kind("x", x, FLOAT)
        _need_axis(x, self.axis)
        return TensorType(x.dtype, x.shape)

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            shifted = _below_max(numerics.widen(x), self.axis)
            return numerics.rounded(shifted - np.log(np.sum(np.exp(shifted), axis=self.axis, keepdims=True)), x.dtype)


def _need_axis(x: TensorType, axis: int) -> None:
    need(-len(x.dims) <= axis < 0, f"C3: axis {axis} isn't negative and in range for {x}")


def _need_like(name: str, parameter: TensorType | None, x: TensorType, shape: tuple[Dim, ...]) -> None:
    if parameter is not None:
        need_kind(name, parameter, FLOAT)
        need(parameter.dtype == x.dtype, f"C4: {name} is {parameter.dtype} but x is {x.dtype}")
        _need_shape(name, parameter, shape)


def _need_shape(name: str, parameter: TensorType, shape: tuple[Dim, ...]) -> None:
    fits = len(parameter.dims) == len(shape) and all(map(dims.may_equal, parameter.dims, shape))
    need(fits, f"C4: {name} has shape {list(parameter.dims)}; {list(shape)} is needed")


def _affine(y: Any, gamma: np.ndarray | None, beta: np.ndarray | None) -> Any:
    if gamma is not None:
        y = y * numerics.widen(gamma)
    return y if beta is None else y + numerics.widen(beta)


def _below_max(x: np.ndarray, axis: int) -> Any:
    return x - np.max(x, axis=axis, keepdims=True, initial=-np.inf)


def _widened(x: Value) -> Value:
    """x, cast to float32 if it is a 16-bit float: their squares overflow."""
    wide: Value = Cast(dtypes.f32)(x) if x.tensor.dtype.bits < 32 else x
    return wide


def _narrowed(y: Value, x: Value) -> Value:
    narrow: Value = y if y.tensor.dtype == x.tensor.dtype else Cast(x.tensor.dtype)(y)
    return narrow


def _scaled(y: Value, gamma: Value | None, beta: Value | None) -> Value:
    if gamma is not None:
        y = Mul()(y, gamma)
    return y if beta is None else Add()(y, beta)
