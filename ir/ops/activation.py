"""Activation functions, elementwise. 16-bit floats are computed in float32 and rounded once."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from planish.ir.graph import Value
from planish.ir.op import need
from planish.ir.ops import numerics
from planish.ir.ops.binary import Add, Mul
from planish.ir.ops.elementwise import NUMERIC, SIGNED, Erf, _Unary
from planish.ir.types import TensorType

_TANH_CUBIC = 0.044715  # coefficient of x**3 in the tanh form of Gelu, Hendrycks and Gimpel 2016


class Tanh(_Unary):
    """Hyperbolic tangent.

    x: float[...]    y: as x.    C1 x is a float.  C2 not quantized.
    Rounding. Source: ONNX Tanh-13.
    """

    def _apply(self, x: np.ndarray) -> Any:
        return np.tanh(x)


class Sigmoid(_Unary):
    """Logistic function, y = 1 / (1 + e**-x).

    x: float[...]    y: as x.    C1 x is a float.  C2 not quantized.
    Rounding. Source: ONNX Sigmoid-13.
    """

    def _apply(self, x: np.ndarray) -> Any:
        return 1 / (1 + np.exp(-x))


class Relu(_Unary):
    """Rectifier, y = max(x, 0); NaN stays.

    x: float or signed int[...]    y: as x.    C1 x is a float or signed integer.  C2 not quantized.
    Exact. Source: ONNX Relu-14.
    """

    kinds = SIGNED

    def _apply(self, x: np.ndarray) -> Any:
        return np.maximum(x, np.zeros((), x.dtype))


class Softplus(_Unary):
    """Smooth rectifier, y = log(1 + e**x), without overflow.

    x: float[...]    y: as x.    C1 x is a float.  C2 not quantized.
    Rounding. Source: ONNX Softplus-22.
    """

    def _apply(self, x: np.ndarray) -> Any:
        return np.logaddexp(np.zeros((), x.dtype), x)


class Gelu(_Unary):
    """Gaussian error linear unit, y = x/2 * (1 + erf(x / sqrt(2))).

    approximate: "none" for that, "tanh" for y = x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x**3))).
    x: float[...]    y: as x.    C1 x is a float.  C2 not quantized.  C3 approximate is one of the two.
    Rounding. Source: ONNX Gelu-20; Hendrycks and Gimpel 2016.
    """

    approximate: Literal["none", "tanh"] = "none"

    def infer(self, x: TensorType) -> TensorType:
        need(self.approximate in ("none", "tanh"), f"C3: approximate is {self.approximate!r}, not 'none' or 'tanh'")
        return super().infer(x)

    def _apply(self, x: np.ndarray) -> Any:
        if self.approximate == "tanh":
            inner = np.tanh(math.sqrt(2 / math.pi) * (x + _TANH_CUBIC * x * x * x))
        else:
            inner = numerics.erf(x / math.sqrt(2))
        return 0.5 * x * (1 + inner)

    def decompose(self, x: Value) -> Value:
        def scalar(value: float) -> np.ndarray:
            return numerics.scalar(value, x.tensor.dtype)

        if self.approximate == "tanh":
            cubic = Mul()(Mul()(Mul()(x, x), x), scalar(_TANH_CUBIC))
            inner = Tanh()(Mul()(Add()(x, cubic), scalar(math.sqrt(2 / math.pi))))
        else:
            inner = Erf()(Mul()(x, scalar(math.sqrt(0.5))))
        result: Value = Mul()(Mul()(x, scalar(0.5)), Add()(inner, scalar(1)))
        return result


class Swish(_Unary):
    """Sigmoid-weighted linear unit, y = x * sigmoid(alpha * x); called SiLU for alpha = 1.

    x: float[...]    y: as x.    C1 x is a float.  C2 not quantized.
    Rounding. Source: ONNX Swish-24.
    """

    alpha: float = 1.0

    def _apply(self, x: np.ndarray) -> Any:
        return x / (1 + np.exp(-self.alpha * x))

    def decompose(self, x: Value) -> Value:
        scaled = x if self.alpha == 1 else Mul()(x, numerics.scalar(self.alpha, x.tensor.dtype))
        result: Value = Mul()(x, Sigmoid()(scaled))
        return result


class HardSigmoid(_Unary):
    """Piecewise linear sigmoid, y = min(max(alpha * x + beta, 0), 1).

    x: float[...]    y: as x.    C1 x is a float.  C2 not quantized.
    Rounding. Source: ONNX HardSigmoid-22.
    """

    alpha: float = 0.2
    beta: float = 0.5

    def _apply(self, x: np.ndarray) -> Any:
        return np.clip(self.alpha * x + self.beta, 0, 1)


class HardSwish(_Unary):
    """Piecewise quadratic swish, y = x * min(max(x / 6 + 1/2, 0), 1).

    x: float[...]    y: as x.    C1 x is a float.  C2 not quantized.
    Rounding. Source: ONNX HardSwish-22.
    """

    def _apply(self, x: np.ndarray) -> Any:
        return x * np.clip(x / 6 + 0.5, 0, 1)

    def decompose(self, x: Value) -> Value:
        result: Value = Mul()(x, HardSigmoid(alpha=1 / 6, beta=0.5)(x))
        return result


class LeakyRelu(_Unary):
    """Leaky rectifier, y = x for x >= 0, else alpha * x.

    x: float[...]    y: as x.    C1 x is a float.  C2 not quantized.
    Exact up to one rounding. Source: ONNX LeakyRelu-16.
    """

    alpha: float = 0.01

    def _apply(self, x: np.ndarray) -> Any:
        return np.where(x < 0, self.alpha * x, x)


class Elu(_Unary):
    """Exponential linear unit, y = x for x >= 0, else alpha * (e**x - 1).

    x: float[...]    y: as x.    C1 x is a float.  C2 not quantized.
    Rounding. Source: ONNX Elu-22.
    """

    alpha: float = 1.0

    def _apply(self, x: np.ndarray) -> Any:
        return np.where(x < 0, self.alpha * np.expm1(x), x)


class Clip(_Unary):
    """Limit to a range, y = min(max(x, lo), hi): hi wins if it is below lo. A bound of None is absent. NaN stays.

    x: number[...]    y: as x.
    C1 x is a number.  C2 not quantized.  C3 bounds of an integer x are integers that fit its dtype.
    Exact. Source: ONNX Clip-13 with constant bounds.
    """

    lo: float | int | None = None
    hi: float | int | None = None
    kinds = NUMERIC

    def infer(self, x: TensorType) -> TensorType:
        result = super().infer(x)
        if x.dtype.is_integer:
            for bound in (self.lo, self.hi):
                fits = bound is None or (isinstance(bound, int) and x.dtype.min <= bound <= x.dtype.max)
                need(fits, f"C3: bound {bound!r} is no {x.dtype}")
        return result

    def _apply(self, x: np.ndarray) -> Any:
        if self.lo is not None:
            x = np.maximum(x, np.asarray(self.lo, x.dtype))
        return x if self.hi is None else np.minimum(x, np.asarray(self.hi, x.dtype))
