"""Elementwise ops of one operand: roundings, powers, exponentials, casts.

All of them keep the shape. Operands of 16-bit floats are computed in float32 and rounded once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from planish.ir import dims, dtypes
from planish.ir.dtypes import DType
from planish.ir.op import Op, need
from planish.ir.ops import contents, numerics
from planish.ir.types import TensorType

FLOAT = ("float",)
SIGNED = ("float", "int")
NUMERIC = ("float", "int", "uint")


def need_kind(name: str, type_: TensorType, kinds: tuple[str, ...]) -> None:
    """State C1 and C2 of an op: a tensor of one of the kinds, not quantized, no 8-bit float, no 4-bit integer."""
    dtype = type_.dtype
    wide = dtype.bits >= (16 if dtype.is_float else 8) or dtype.kind == "str"
    need(dtype.kind in kinds and wide, f"C1: {name} has dtype {dtype}; {', '.join(kinds)} is needed")
    need(type_.quant is None, f"C2: {name} is quantized; the op takes plain numbers")


class _Unary(Op):
    """y = f(x) for each element: y has the type of x.

    `_apply` is f on arrays of at least 32-bit floats; it returns Any because numpy types its functions so.
    """

    pointwise = True
    kinds: ClassVar[tuple[str, ...]] = FLOAT

    def infer(self, x: TensorType) -> TensorType:
        need_kind("x", x, self.kinds)
        return TensorType(x.dtype, x.shape)

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return numerics.rounded(self._apply(numerics.widen(x)), x.dtype)

    def _apply(self, x: np.ndarray) -> Any:
        raise NotImplementedError(self.name)


class Abs(_Unary):
    """Absolute value, y = |x|; the smallest integer stays as it is.

    x: number[...]    y: as x.    C1 x is a number.  C2 not quantized.
    Exact. Source: ONNX Abs-13.
    """

    kinds = NUMERIC

    def infer(self, x: TensorType) -> TensorType:
        return contents.combine(lambda a: contents.larger(a, dims.mul(a, -1)), super().infer(x), x)

    def _apply(self, x: np.ndarray) -> Any:
        return np.abs(x)


class Neg(_Unary):
    """Negation, y = -x.

    x: float or signed int[...]    y: as x.    C1 x is a float or signed integer.  C2 not quantized.
    Exact. Source: ONNX Neg-13.
    """

    kinds = SIGNED

    def infer(self, x: TensorType) -> TensorType:
        return contents.combine(lambda a: dims.mul(a, -1), super().infer(x), x)

    def _apply(self, x: np.ndarray) -> Any:
        return np.negative(x)


class Sign(_Unary):
    """Sign, y = -1, 0 or 1.

    x: number[...]    y: as x.    C1 x is a number.  C2 not quantized.
    Exact. Source: ONNX Sign-13.
    """

    kinds = NUMERIC

    def _apply(self, x: np.ndarray) -> Any:
        return np.sign(x)


class Sqrt(_Unary):
    """Square root; NaN for negative x.

    x: float[...]    y: as x.    C1 x is a float.  C2 not quantized.
    Exact (correctly rounded). Source: ONNX Sqrt-13.
    """

    def _apply(self, x: np.ndarray) -> Any:
        return np.sqrt(x)


class Reciprocal(_Unary):
    """Reciprocal, y = 1 / x.

    x: float[...]    y: as x.    C1 x is a float.  C2 not quantized.
    Exact (correctly rounded). Source: ONNX Reciprocal-13.
    """

    def _apply(self, x: np.ndarray) -> Any:
        return np.reciprocal(x)


class Exp(_Unary):
    """Exponential, y = e**x.

    x: float[...]    y: as x.    C1 x is a float.  C2 not quantized.
    Rounding. Source: ONNX Exp-13.
    """

    def _apply(self, x: np.ndarray) -> Any:
        return np.exp(x)


class Log(_Unary):
    """Natural logarithm; NaN for negative x.

    x: float[...]    y: as x.    C1 x is a float.  C2 not quantized.
    Rounding. Source: ONNX Log-13.
    """

    def _apply(self, x: np.ndarray) -> Any:
        return np.log(x)


class Erf(_Unary):
    """Error function, y = 2 / sqrt(pi) * integral of exp(-t**2) from 0 to x.

    x: float[...]    y: as x.    C1 x is a float.  C2 not quantized.
    Rounding. Source: ONNX Erf-13.
    """

    def _apply(self, x: np.ndarray) -> Any:
        return numerics.erf(x)


class Sin(_Unary):
    """Sine of x in radians.

    x: float[...]    y: as x.    C1 x is a float.  C2 not quantized.
    Rounding. Source: ONNX Sin-22.
    """

    def _apply(self, x: np.ndarray) -> Any:
        return np.sin(x)


class Cos(_Unary):
    """Cosine of x in radians.

    x: float[...]    y: as x.    C1 x is a float.  C2 not quantized.
    Rounding. Source: ONNX Cos-22.
    """

    def _apply(self, x: np.ndarray) -> Any:
        return np.cos(x)


class Floor(_Unary):
    """Greatest integer not above x.

    x: float[...]    y: as x.    C1 x is a float.  C2 not quantized.
    Exact. Source: ONNX Floor-13.
    """

    def _apply(self, x: np.ndarray) -> Any:
        return np.floor(x)


class Ceil(_Unary):
    """Least integer not below x.

    x: float[...]    y: as x.    C1 x is a float.  C2 not quantized.
    Exact. Source: ONNX Ceil-13.
    """

    def _apply(self, x: np.ndarray) -> Any:
        return np.ceil(x)


class Round(_Unary):
    """Nearest integer, halves to the even one.

    x: float[...]    y: as x.    C1 x is a float.  C2 not quantized.
    Exact. Source: ONNX Round-22.
    """

    def _apply(self, x: np.ndarray) -> Any:
        return np.rint(x)


class Not(_Unary):
    """Logical negation.

    x: bool[...]    y: as x.    C1 x is bool.
    Exact. Source: ONNX Not-1.
    """

    kinds = ("bool",)

    def infer(self, x: TensorType) -> TensorType:
        return contents.combine(lambda a: None if isinstance(a, str) else a == 0, super().infer(x), x)

    def _apply(self, x: np.ndarray) -> Any:
        return np.logical_not(x)


class IsNaN(Op):
    """Whether an element is not a number.

    x: float[...]    y: bool, shape of x.    C1 x is a float.  C2 not quantized.
    Exact. Source: ONNX IsNaN-20.
    """

    pointwise = True

    def infer(self, x: TensorType) -> TensorType:
        need_kind("x", x, FLOAT)
        return TensorType(dtypes.boolean, x.shape)

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(np.isnan(x))


class Cast(Op):
    """The same numbers as another dtype: toward zero to integers, to the nearest (halves to even) to floats.

    x: number or bool[...]    y: `to`, shape of x.
    Integers that don't fit wrap around; 8- and 4-bit floats saturate. What a float out of the range of an integer
    type becomes is undefined.
    C1 neither x nor `to` is string, complex or f8e8m0.  C2 not quantized.
    Rounding. Source: ONNX Cast-24 with saturate = 1.
    """

    pointwise = True
    to: DType

    def infer(self, x: TensorType) -> TensorType:
        for name, dtype in (("x", x.dtype), ("to", self.to)):
            castable = dtype.kind in (*NUMERIC, "bool") and dtype != dtypes.f8e8m0
            need(castable, f"C1: {name} is {dtype}, which has no cast here")
        need(x.quant is None, "C2: x is quantized; the op takes plain numbers")
        result = TensorType(self.to, x.shape)
        if self.to == dtypes.boolean:
            return contents.combine(lambda a: None if isinstance(a, str) else a != 0, result, x)
        return contents.combine(lambda a: a, result, x)

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            if self.to.is_float and self.to.bits <= 8:
                limit = float(ml_dtypes.finfo(self.to.storage).max)  # type: ignore[no-untyped-call]
                x = np.clip(x.astype(np.float32), -limit, limit)
            elif self.to.is_integer and self.to.bits < 8:
                x = _wrap(x, self.to)
            elif self.to == dtypes.boolean:
                return np.asarray(numerics.widen(x) != 0)
            return numerics.rounded(x, self.to.storage)


class Identity(Op):
    """y = x, for a tensor of any dtype.

    Exact. Source: ONNX Identity-25.
    """

    pointwise = True

    def infer(self, x: TensorType) -> TensorType:
        return replace(x)

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        return x


def _wrap(x: np.ndarray, dtype: DType) -> np.ndarray:
    """Keep the low bits of x, as an int8 that `dtype` can hold."""
    low = x.astype(np.int64) & ((1 << dtype.bits) - 1)
    return np.where(low > dtype.max, low - (1 << dtype.bits), low).astype(np.int8)
