"""Elementwise ops of two or three operands: arithmetic, comparison, logic, selection.

Shapes broadcast as in numpy. 16-bit floats are computed in float32 and rounded once; integers wrap around.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from planish.ir import dims, dtypes
from planish.ir.dims import Dim
from planish.ir.dtypes import DType
from planish.ir.op import Op, need
from planish.ir.ops import contents, numerics
from planish.ir.ops.elementwise import NUMERIC, need_kind
from planish.ir.types import TensorType


def broadcast_shape(*types: TensorType) -> tuple[Dim, ...]:
    """The shape that numpy broadcasting gives. Raises VerifyError if the shapes can't go together."""
    shape: tuple[Dim, ...] = ()
    for type_ in types:
        rank = max(len(shape), len(type_.dims))
        padded = [(1,) * (rank - len(part)) + part for part in (shape, type_.dims)]
        shape = tuple(dims.broadcast(a, b) for a, b in zip(*padded, strict=True))
    return shape


class _Binary(Op):
    """z = f(x, y) for each pair of elements.

    `_apply` is f on arrays of at least 32-bit floats (Any because numpy types its functions so), `_on_dims` is f on
    known contents, None where it isn't decided.
    """

    pointwise = True
    kinds: ClassVar[tuple[str, ...]] = NUMERIC
    result: ClassVar[DType | None] = None  # dtype of z; None means that of x

    def infer(self, x: TensorType, y: TensorType) -> TensorType:
        need_kind("x", x, self.kinds)
        need_kind("y", y, self.kinds)
        need(x.dtype == y.dtype, f"C3: dtypes {x.dtype} and {y.dtype} differ")
        return contents.combine(self._on_dims, TensorType(self.result or x.dtype, broadcast_shape(x, y)), x, y)

    def evaluate(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            z = self._apply(numerics.widen(x), numerics.widen(y))
        return numerics.rounded(z, self.result.storage if self.result else x.dtype)

    def _apply(self, x: np.ndarray, y: np.ndarray) -> Any:
        raise NotImplementedError(self.name)

    def _on_dims(self, x: Dim, y: Dim) -> Dim | bool | None:
        return None


class Add(_Binary):
    """Sum, z = x + y.

    x, y: number[...], same dtype    z: as x, shapes broadcast.    C1 numbers.  C2 not quantized.  C3 same dtype.
    Exact up to one rounding. Source: ONNX Add-14.
    """

    commutative = True

    def _apply(self, x: np.ndarray, y: np.ndarray) -> Any:
        return np.add(x, y)

    def _on_dims(self, x: Dim, y: Dim) -> Dim:
        return dims.add(x, y)


class Sub(_Binary):
    """Difference, z = x - y.

    x, y: number[...], same dtype    z: as x, shapes broadcast.    C1 numbers.  C2 not quantized.  C3 same dtype.
    Exact up to one rounding. Source: ONNX Sub-14.
    """

    def _apply(self, x: np.ndarray, y: np.ndarray) -> Any:
        return np.subtract(x, y)

    def _on_dims(self, x: Dim, y: Dim) -> Dim:
        return dims.sub(x, y)


class Mul(_Binary):
    """Product, z = x * y.

    x, y: number[...], same dtype    z: as x, shapes broadcast.    C1 numbers.  C2 not quantized.  C3 same dtype.
    Exact up to one rounding. Source: ONNX Mul-14.
    """

    commutative = True

    def _apply(self, x: np.ndarray, y: np.ndarray) -> Any:
        return np.multiply(x, y)

    def _on_dims(self, x: Dim, y: Dim) -> Dim:
        return dims.mul(x, y)


class Div(_Binary):
    """Quotient, z = x / y; of integers rounded toward zero. An integer divided by zero is undefined.

    x, y: number[...], same dtype    z: as x, shapes broadcast.    C1 numbers.  C2 not quantized.  C3 same dtype.
    Exact up to one rounding. Source: ONNX Div-14.
    """

    def _apply(self, x: np.ndarray, y: np.ndarray) -> Any:
        return np.divide(x, y) if dtypes.of(x).is_float else numerics.truncated_divide(x, y)

    def _on_dims(self, x: Dim, y: Dim) -> Dim | None:
        return contents.divide(x, y)


class Pow(Op):
    """Power, z = x ** y. Integers are raised exactly and wrap around; a negative exponent is taken in float64.

    x: number[...]    y: number[...], any dtype    z: as x, shapes broadcast.
    C1 x and y are numbers.  C2 not quantized.
    Rounding. Source: ONNX Pow-15.
    """

    pointwise = True

    def infer(self, x: TensorType, y: TensorType) -> TensorType:
        need_kind("x", x, NUMERIC)
        need_kind("y", y, NUMERIC)
        return TensorType(x.dtype, broadcast_shape(x, y))

    def evaluate(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        base, exponent = numerics.widen(x), numerics.widen(y)
        if not dtypes.of(x).is_float:
            whole = dtypes.of(y).is_integer and not np.any(exponent < 0)
            exponent = exponent.astype(base.dtype if whole else np.float64)
        with np.errstate(all="ignore"):
            return numerics.rounded(np.power(base, exponent), x.dtype)


class Max(_Binary):
    """Greater of two, z = max(x, y); NaN if either is.

    x, y: number[...], same dtype    z: as x, shapes broadcast.    C1 numbers.  C2 not quantized.  C3 same dtype.
    Exact. Source: ONNX Max-13, with two operands.
    """

    commutative = True

    def _apply(self, x: np.ndarray, y: np.ndarray) -> Any:
        return np.maximum(x, y)

    def _on_dims(self, x: Dim, y: Dim) -> Dim | None:
        return contents.larger(x, y)


class Min(_Binary):
    """Lesser of two, z = min(x, y); NaN if either is.

    x, y: number[...], same dtype    z: as x, shapes broadcast.    C1 numbers.  C2 not quantized.  C3 same dtype.
    Exact. Source: ONNX Min-13, with two operands.
    """

    commutative = True

    def _apply(self, x: np.ndarray, y: np.ndarray) -> Any:
        return np.minimum(x, y)

    def _on_dims(self, x: Dim, y: Dim) -> Dim | None:
        return contents.smaller(x, y)


class Mod(_Binary):
    """Remainder of x / y: with the sign of y, or (`fmod`) with the sign of x as in C. Modulo zero is undefined.

    x, y: number[...], same dtype    z: as x, shapes broadcast.
    C1 numbers.  C2 not quantized.  C3 same dtype.  C4 floats only with fmod.
    Exact. Source: ONNX Mod-13.
    """

    fmod: bool = False

    def infer(self, x: TensorType, y: TensorType) -> TensorType:
        need(self.fmod or not x.dtype.is_float, f"C4: fmod is needed for the remainder of {x.dtype}")
        return super().infer(x, y)

    def _apply(self, x: np.ndarray, y: np.ndarray) -> Any:
        return np.fmod(x, y) if self.fmod else np.remainder(x, y)

    def _on_dims(self, x: Dim, y: Dim) -> Dim | None:
        if self.fmod and not (contents.never_negative(x) and contents.never_negative(y)):
            return None
        return contents.remainder(x, y)


class Equal(_Binary):
    """Equality, z = (x == y); NaN equals nothing.

    x, y: number, bool or string[...], same dtype    z: bool, shapes broadcast.
    C1 no complex numbers.  C2 not quantized.  C3 same dtype.
    Exact. Source: ONNX Equal-19.
    """

    commutative = True
    kinds = (*NUMERIC, "bool", "str")
    result = dtypes.boolean

    def _apply(self, x: np.ndarray, y: np.ndarray) -> Any:
        return np.equal(x, y)

    def _on_dims(self, x: Dim, y: Dim) -> bool | None:
        return contents.equal(x, y)


class Less(_Binary):
    """z = (x < y).

    x, y: number[...], same dtype    z: bool, shapes broadcast.    C1 numbers.  C2 not quantized.  C3 same dtype.
    Exact. Source: ONNX Less-13.
    """

    result = dtypes.boolean

    def _apply(self, x: np.ndarray, y: np.ndarray) -> Any:
        return np.less(x, y)

    def _on_dims(self, x: Dim, y: Dim) -> bool | None:
        return contents.greater_or_equal(y, dims.add(x, 1))


class LessOrEqual(_Binary):
    """z = (x <= y).

    x, y: number[...], same dtype    z: bool, shapes broadcast.    C1 numbers.  C2 not quantized.  C3 same dtype.
    Exact. Source: ONNX LessOrEqual-16.
    """

    result = dtypes.boolean

    def _apply(self, x: np.ndarray, y: np.ndarray) -> Any:
        return np.less_equal(x, y)

    def _on_dims(self, x: Dim, y: Dim) -> bool | None:
        return contents.greater_or_equal(y, x)


class Greater(_Binary):
    """z = (x > y).

    x, y: number[...], same dtype    z: bool, shapes broadcast.    C1 numbers.  C2 not quantized.  C3 same dtype.
    Exact. Source: ONNX Greater-13.
    """

    result = dtypes.boolean

    def _apply(self, x: np.ndarray, y: np.ndarray) -> Any:
        return np.greater(x, y)

    def _on_dims(self, x: Dim, y: Dim) -> bool | None:
        return contents.greater_or_equal(x, dims.add(y, 1))


class GreaterOrEqual(_Binary):
    """z = (x >= y).

    x, y: number[...], same dtype    z: bool, shapes broadcast.    C1 numbers.  C2 not quantized.  C3 same dtype.
    Exact. Source: ONNX GreaterOrEqual-16.
    """

    result = dtypes.boolean

    def _apply(self, x: np.ndarray, y: np.ndarray) -> Any:
        return np.greater_equal(x, y)

    def _on_dims(self, x: Dim, y: Dim) -> bool | None:
        return contents.greater_or_equal(x, y)


class And(_Binary):
    """Both of two truth values.

    x, y: bool[...]    z: bool, shapes broadcast.    C1 x and y are bool.
    Exact. Source: ONNX And-7.
    """

    commutative = True
    kinds = ("bool",)

    def _apply(self, x: np.ndarray, y: np.ndarray) -> Any:
        return np.logical_and(x, y)


class Or(_Binary):
    """Either or both of two truth values.

    x, y: bool[...]    z: bool, shapes broadcast.    C1 x and y are bool.
    Exact. Source: ONNX Or-7.
    """

    commutative = True
    kinds = ("bool",)

    def _apply(self, x: np.ndarray, y: np.ndarray) -> Any:
        return np.logical_or(x, y)


class Xor(_Binary):
    """Either, not both of two truth values.

    x, y: bool[...]    z: bool, shapes broadcast.    C1 x and y are bool.
    Exact. Source: ONNX Xor-7.
    """

    commutative = True
    kinds = ("bool",)

    def _apply(self, x: np.ndarray, y: np.ndarray) -> Any:
        return np.logical_xor(x, y)


class Where(Op):
    """Selection, z = x where the condition holds, else y.

    condition: bool[...]    x, y: any dtype, the same    z: as x, shapes broadcast.
    C1 condition is bool.  C2 x and y have the same dtype and quantization.
    Exact. Source: ONNX Where-16.
    """

    pointwise = True

    def infer(self, condition: TensorType, x: TensorType, y: TensorType) -> TensorType:
        need(condition.dtype == dtypes.boolean, f"C1: condition has dtype {condition.dtype}; bool is needed")
        need((x.dtype, x.quant) == (y.dtype, y.quant), f"C2: x is {x} and y is {y}; their dtypes must agree")
        result = TensorType(x.dtype, broadcast_shape(condition, x, y), x.quant)
        return contents.combine(lambda c, a, b: a if c == 1 else b if c == 0 else None, result, condition, x, y)

    def evaluate(self, condition: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.asarray(np.where(condition, x, y))
