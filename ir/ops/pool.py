"""Pooling over windows of the spatial axes. 16-bit floats are averaged in float32 and rounded once."""

from __future__ import annotations

import math

import numpy as np

from planish.ir import dims
from planish.ir.dims import Dim
from planish.ir.op import Op, need
from planish.ir.ops import numerics
from planish.ir.ops.elementwise import FLOAT, need_kind
from planish.ir.types import TensorType


class MaxPool(Op):
    """Largest element of each window, y[n, c, o] = max over k of x[n, c, o * stride + k * dilation - pad].

    kernel, strides, dilations: one per spatial axis. pads: elements that never win, before each spatial axis, then
    after each.
    x: number[N, C, X1..Xs]    y: as x, [N, C, Y1..Ys] with Yi = (Xi + pads - dilation * (Ki - 1) - 1) // stride + 1.
    C1 numbers; quantized ones keep their quantization, which must not run along a spatial axis.  C2 s >= 1.
    C3 attributes have one element (pads two) per spatial axis; all but pads are positive, pads are not negative.
    C4 a pad is smaller than its window.  C5 Yi isn't negative.
    Exact. Source: ONNX MaxPool-12 with explicit pads.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]

    def infer(self, x: TensorType) -> TensorType:
        need(x.dtype.is_float or x.dtype.is_integer, f"C1: x is {x}; numbers are needed")
        along = x.quant.axis if x.quant is not None else None
        need(along is None or along % len(x.dims) < 2, "C1: x is quantized along a spatial axis")
        shape = pooled_shape(x.dims, self.kernel, self.strides, self.pads, self.dilations)
        return TensorType(x.dtype, shape, x.quant)

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        wide = numerics.widen(x) if np.dtype(x.dtype).kind not in "iu" else x
        lowest = np.iinfo(x.dtype).min if wide.dtype.kind in "iu" else -np.inf
        windows = _windows(wide, self.kernel, self.strides, self.pads, self.dilations, lowest)
        return np.asarray(windows.max(axis=tuple(range(x.ndim, windows.ndim)))).astype(x.dtype)


class AveragePool(Op):
    """Mean of each window; with count_include_pad the padding counts as zeros, else it is left out of the mean.

    kernel, strides: one per spatial axis. pads: before each spatial axis, then after each.
    x: float[N, C, X1..Xs]    y: as x, [N, C, Y1..Ys] with Yi = (Xi + pads - Ki) // stride + 1.
    C1 float, not quantized.  C2 to C5 as for MaxPool.
    Rounding. Source: ONNX AveragePool-11 with explicit pads.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    count_include_pad: bool = False

    def infer(self, x: TensorType) -> TensorType:
        need_kind("x", x, FLOAT)
        shape = pooled_shape(x.dims, self.kernel, self.strides, self.pads, (1,) * len(self.kernel))
        return TensorType(x.dtype, shape)

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        wide, ones = numerics.widen(x), (1,) * len(self.kernel)
        axes = tuple(range(-len(self.kernel), 0))
        with np.errstate(all="ignore"):
            total = _windows(wide, self.kernel, self.strides, self.pads, ones, 0).sum(axis=axes)
            if self.count_include_pad:
                return numerics.rounded(total / math.prod(self.kernel), x.dtype)
            there = np.ones((1, 1, *x.shape[2:]), wide.dtype)
            count = _windows(there, self.kernel, self.strides, self.pads, ones, 0).sum(axis=axes)
            return numerics.rounded(np.asarray(total / count, wide.dtype), x.dtype)


def pooled_shape(
    shape: tuple[Dim, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
) -> tuple[Dim, ...]:
    """Shape of the windows' results. States constraints C2 to C5 of the pooling ops."""
    spatial = len(shape) - 2
    need(spatial >= 1, f"C2: x has rank {len(shape)}; 3 or more is needed")
    counts = (len(kernel), len(strides), len(dilations), len(pads))
    need(counts == (spatial, spatial, spatial, 2 * spatial), f"C3: the attributes don't fit {spatial} spatial axes")
    need(min(*kernel, *strides, *dilations) > 0 and min(pads) >= 0, "C3: an attribute is negative or a step is zero")
    extents: list[Dim] = []
    for i, extent in enumerate(shape[2:]):
        reach = dilations[i] * (kernel[i] - 1) + 1
        before, after = pads[i], pads[i + spatial]
        need(max(before, after) < reach, f"C4: pads of {before} and {after} exceed a window of {reach}")
        result = dims.add(dims.floordiv(dims.add(extent, before + after - reach), strides[i]), 1)
        need(not isinstance(result, int) or result >= 0, f"C5: the window is wider than axis {i + 2} of x, {extent}")
        extents.append(result)
    return (*shape[:2], *extents)


def _windows(
    x: np.ndarray,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    filler: float,
) -> np.ndarray:
    """[N, C, Y1..Ys, K1..Ks]: the padded windows of x."""
    spatial = len(kernel)
    margins = [(0, 0), (0, 0), *zip(pads[:spatial], pads[spatial:], strict=True)]
    padded = np.pad(x, margins, constant_values=filler)
    reach = tuple(d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True))
    if any(extent < r for extent, r in zip(padded.shape[2:], reach, strict=True)):
        extents = [int(dim) for dim in pooled_shape(x.shape, kernel, strides, pads, dilations)]
        return np.zeros((*extents, *kernel), x.dtype)
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, x.ndim)))
    steps = (*(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations))
    return windows[(slice(None), slice(None), *steps)]
