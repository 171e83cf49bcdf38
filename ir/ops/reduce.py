"""Reductions over axes. Axes are negative, counted from the end, and ascending: the normal form of the IR.

16-bit floats are computed in float32 and rounded once; integer sums and products wrap around.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from planish.ir import dims, dtypes
from planish.ir.dims import Dim
from planish.ir.op import Op, need
from planish.ir.ops import contents, numerics
from planish.ir.ops.elementwise import NUMERIC, need_kind
from planish.ir.types import TensorType


def reduced_shape(shape: tuple[Dim, ...], axes: tuple[int, ...], keepdims: bool) -> tuple[Dim, ...]:
    """The shape with the given negative axes reduced to 1 or taken out. States constraint C3 of the reductions."""
    rank = len(shape)
    ordered = bool(axes) and list(axes) == sorted(set(axes)) and axes[-1] < 0
    need(ordered, f"C3: axes {axes} aren't negative and ascending")
    need(axes[0] >= -rank, f"C3: axis {axes[0]} is out of range for rank {rank}")
    places = {axis + rank for axis in axes}
    if keepdims:
        return tuple(1 if i in places else dim for i, dim in enumerate(shape))
    return tuple(dim for i, dim in enumerate(shape) if i not in places)


class _Reduce(Op):
    """y = f(elements of x along the axes). `_apply` is f on an array of at least 32-bit floats, keeping the axes.

    axes: negative, ascending. keepdims: leave reduced axes in the shape, with extent 1.
    """

    axes: tuple[int, ...]
    keepdims: bool = True
    kinds: ClassVar[tuple[str, ...]] = NUMERIC

    def infer(self, x: TensorType) -> TensorType:
        need_kind("x", x, self.kinds)
        return TensorType(x.dtype, reduced_shape(x.dims, self.axes, self.keepdims))

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            y = numerics.rounded(self._apply(numerics.widen(x)), x.dtype)
        return y if self.keepdims else np.asarray(y.squeeze(self.axes))

    def _apply(self, x: np.ndarray) -> Any:
        raise NotImplementedError(self.name)

    def _fold(self, x: TensorType, result: TensorType, start: int) -> TensorType:
        """`result` with the sum (start 0) or product (start 1) of the known contents of x."""
        if x.known is None or x.rank != 1:
            return result
        total = dims.product(x.known) if start else 0
        for element in () if start else x.known:
            total = dims.add(total, element)
        return contents.combine(lambda: total, result)


class ReduceMean(_Reduce):
    """Arithmetic mean along axes; of integers rounded toward zero.

    x: number[...]    y: as x, axes reduced.
    C1 x is a number.  C2 not quantized.  C3 axes negative, ascending, in range.
    Rounding. Source: ONNX ReduceMean-18.
    """

    def _apply(self, x: np.ndarray) -> Any:
        if dtypes.of(x).is_float:
            return np.mean(x, axis=self.axes, keepdims=True)
        total = np.sum(x, axis=self.axes, keepdims=True, dtype=x.dtype)
        count = np.asarray(x.size // max(total.size, 1), x.dtype)
        return numerics.truncated_divide(total, count)


class ReduceSum(_Reduce):
    """Sum along axes.

    x: number[...]    y: as x, axes reduced.
    C1 x is a number.  C2 not quantized.  C3 axes negative, ascending, in range.
    Rounding; exact modulo 2**bits for integers. Source: ONNX ReduceSum-13.
    """

    def infer(self, x: TensorType) -> TensorType:
        return self._fold(x, super().infer(x), 0)

    def _apply(self, x: np.ndarray) -> Any:
        return np.sum(x, axis=self.axes, keepdims=True, dtype=x.dtype)


class ReduceMax(_Reduce):
    """Greatest element along axes; NaN if there is one. Of no elements: the least value of the dtype.

    x: number or bool[...]    y: as x, axes reduced.
    C1 x is a number or bool.  C2 not quantized.  C3 axes negative, ascending, in range.
    Exact. Source: ONNX ReduceMax-20.
    """

    kinds = (*NUMERIC, "bool")

    def _apply(self, x: np.ndarray) -> Any:
        return np.max(x, axis=self.axes, keepdims=True, initial=_least(x.dtype))


class ReduceMin(_Reduce):
    """Least element along axes; NaN if there is one. Of no elements: the greatest value of the dtype.

    x: number or bool[...]    y: as x, axes reduced.
    C1 x is a number or bool.  C2 not quantized.  C3 axes negative, ascending, in range.
    Exact. Source: ONNX ReduceMin-20.
    """

    kinds = (*NUMERIC, "bool")

    def _apply(self, x: np.ndarray) -> Any:
        return np.min(x, axis=self.axes, keepdims=True, initial=_greatest(x.dtype))


class ReduceProd(_Reduce):
    """Product along axes.

    x: number[...]    y: as x, axes reduced.
    C1 x is a number.  C2 not quantized.  C3 axes negative, ascending, in range.
    Rounding; exact modulo 2**bits for integers. Source: ONNX ReduceProd-18.
    """

    def infer(self, x: TensorType) -> TensorType:
        return self._fold(x, super().infer(x), 1)

    def _apply(self, x: np.ndarray) -> Any:
        return np.prod(x, axis=self.axes, keepdims=True, dtype=x.dtype)


class ReduceL2(_Reduce):
    """Euclidean norm along axes, y = sqrt(sum of x * x); of integers rounded toward zero.

    x: number[...]    y: as x, axes reduced.
    C1 x is a number.  C2 not quantized.  C3 axes negative, ascending, in range.
    Rounding. Source: ONNX ReduceL2-18.
    """

    def _apply(self, x: np.ndarray) -> Any:
        wide = x if dtypes.of(x).is_float else x.astype(np.float64)
        return np.sqrt(np.sum(wide * wide, axis=self.axes, keepdims=True))


class ReduceSumSquare(_Reduce):
    """Sum of squares along axes, y = sum of x * x.

    x: number[...]    y: as x, axes reduced.
    C1 x is a number.  C2 not quantized.  C3 axes negative, ascending, in range.
    Rounding; exact modulo 2**bits for integers. Source: ONNX ReduceSumSquare-18.
    """

    def _apply(self, x: np.ndarray) -> Any:
        return np.sum(x * x, axis=self.axes, keepdims=True, dtype=x.dtype)


class ArgMax(Op):
    """Index of the greatest element along an axis, the first of several.

    x: number[...]    y: i64, axis reduced.
    C1 x is a number.  C2 not quantized.  C3 axis negative, in range.  C4 the axis isn't empty.
    Exact. Source: ONNX ArgMax-13 with select_last_index = 0.
    """

    axis: int
    keepdims: bool = True

    def infer(self, x: TensorType) -> TensorType:
        need_kind("x", x, NUMERIC)
        shape = reduced_shape(x.dims, (self.axis,), self.keepdims)
        need(x.dims[self.axis] != 0, f"C4: axis {self.axis} of {x} is empty")
        return TensorType(dtypes.i64, shape)

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        index = np.argmax(numerics.widen(x), axis=self.axis, keepdims=self.keepdims)
        return np.asarray(index, np.int64)


def _least(dtype: np.dtype[np.generic]) -> Any:
    element = dtypes.of(dtype)
    return element.min if element.is_integer else -np.inf if element.is_float else False


def _greatest(dtype: np.dtype[np.generic]) -> Any:
    element = dtypes.of(dtype)
    return element.max if element.is_integer else np.inf if element.is_float else True
