"""Products: matrices, linear layers, convolutions. 16-bit floats are computed in float32 and rounded once."""

from __future__ import annotations

import numpy as np

from planish.ir import dims
from planish.ir.dims import Dim
from planish.ir.graph import Value
from planish.ir.op import Op, need
from planish.ir.ops import numerics
from planish.ir.ops.binary import Add, broadcast_shape
from planish.ir.ops.elementwise import FLOAT, NUMERIC, need_kind
from planish.ir.types import TensorType


class MatMul(Op):
    """Matrix product of the last two axes, c[..., i, j] = sum over k of a[..., i, k] * b[..., k, j].

    a: number[..., I, K] or [K]    b: as a, [..., K, J] or [K]    c: as a, [..., I, J]; a vector's axis is taken out.
    The leading axes broadcast.
    C1 numbers.  C2 not quantized.  C3 same dtype.  C4 rank of both is at least 1.  C5 the K agree.
    Rounding; exact modulo 2**bits for integers. Source: ONNX MatMul-13.
    """

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        need_kind("a", a, NUMERIC)
        need_kind("b", b, NUMERIC)
        need(a.dtype == b.dtype, f"C3: dtypes {a.dtype} and {b.dtype} differ")
        need(len(a.dims) >= 1 and len(b.dims) >= 1, "C4: a scalar has no matrix product")
        inner = b.dims[-2] if len(b.dims) > 1 else b.dims[0]
        need(dims.may_equal(a.dims[-1], inner), f"C5: a has {a.dims[-1]} columns but b {inner} rows")
        lead = broadcast_shape(TensorType(a.dtype, a.dims[:-2]), TensorType(b.dtype, b.dims[:-2]))
        rows = a.dims[-2:-1]
        columns = b.dims[-1:] if len(b.dims) > 1 else ()
        return TensorType(a.dtype, (*lead, *rows, *columns))

    def evaluate(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return numerics.rounded(np.matmul(numerics.widen(a), numerics.widen(b)), a.dtype)


class Linear(Op):
    """Linear layer, y = x @ w + b.

    x: float[..., K]    w: as x, [K, N]    b: as x, [N], default 0    y: as x, [..., N].
    C1 all floats.  C2 not quantized.  C3 same dtype.  C4 ranks as above.  C5 the K and the N agree.
    Rounding. Source: ONNX MatMul-13 and Add-14.
    """

    def infer(self, x: TensorType, w: TensorType, b: TensorType | None = None) -> TensorType:
        for name, type_ in (("x", x), ("w", w), *((("b", b),) if b is not None else ())):
            need_kind(name, type_, FLOAT)
            need(type_.dtype == x.dtype, f"C3: {name} is {type_.dtype} but x is {x.dtype}")
        need(len(x.dims) >= 1 and len(w.dims) == 2, f"C4: x is {x} and w {w}; [..., K] and [K, N] are needed")
        need(dims.may_equal(x.dims[-1], w.dims[0]), f"C5: x has {x.dims[-1]} columns but w {w.dims[0]} rows")
        if b is not None:
            need(len(b.dims) == 1, f"C4: b is {b}; [N] is needed")
            need(dims.may_equal(b.dims[0], w.dims[1]), f"C5: b has {b.dims[0]} elements but w {w.dims[1]} columns")
        return TensorType(x.dtype, (*x.dims[:-1], w.dims[1]))

    def evaluate(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
        with np.errstate(all="ignore"):
            y = np.matmul(numerics.widen(x), numerics.widen(w))
            return numerics.rounded(y if b is None else y + numerics.widen(b), x.dtype)

    def decompose(self, x: Value, w: Value, b: Value | None = None) -> Value:
        y: Value = MatMul()(x, w)
        return y if b is None else Add()(y, b)


class Conv(Op):
    """Convolution, y[n, f, o] = b[f] + sum over c, k of x[n, c, o * stride + k * dilation - pad] * w[f, c, k].

    strides, dilations: one per spatial axis. pads: zeros before each spatial axis, then those after each.
    group: input and output channels are cut into so many groups; each output group sees its input group only.
    x: float[N, C, X1..Xs]    w: as x, [F, C / group, K1..Ks]    b: as x, [F], default 0    y: as x, [N, F, Y1..Ys]
    with Yi = (Xi + pads - dilation * (Ki - 1) - 1) // stride + 1.
    C1 all floats.  C2 not quantized.  C3 same dtype.  C4 ranks as above, s >= 1.  C5 attributes have one element
    (pads two) per spatial axis; strides, dilations and group are positive.  C6 channels agree, group divides F.
    C7 Yi isn't negative.
    Rounding. Source: ONNX Conv-22 with explicit pads.
    """

    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int = 1

    def infer(self, x: TensorType, w: TensorType, b: TensorType | None = None) -> TensorType:
        for name, type_ in (("x", x), ("w", w), *((("b", b),) if b is not None else ())):
            need_kind(name, type_, FLOAT)
            need(type_.dtype == x.dtype, f"C3: {name} is {type_.dtype} but x is {x.dtype}")
        spatial = len(x.dims) - 2
        need(spatial >= 1 and len(w.dims) == spatial + 2, f"C4: x is {x} and w {w}; ranks of 3 or more must agree")
        self._need_attributes(spatial)
        channels, filters = dims.mul(w.dims[1], self.group), w.dims[0]
        need(dims.may_equal(x.dims[1], channels), f"C6: x has {x.dims[1]} channels but w takes {channels}")
        divisible = not isinstance(filters, int) or filters % self.group == 0
        need(divisible, f"C6: {filters} filters can't be cut into {self.group} groups")
        if b is not None:
            fits = len(b.dims) == 1 and dims.may_equal(b.dims[0], filters)
            need(fits, f"C6: b has shape {list(b.dims)}; {[filters]} is needed")
        return TensorType(x.dtype, (x.dims[0], filters, *self._extents(x.dims[2:], w.dims[2:])))

    def evaluate(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
        spatial = x.ndim - 2
        windows = self.windows(numerics.widen(x), w.shape[2:])
        if windows.size == 0:
            return np.zeros((x.shape[0], w.shape[0], *self._extents(x.shape[2:], w.shape[2:])), x.dtype)
        with np.errstate(all="ignore"):
            parts = [
                np.tensordot(
                    window, kernel, axes=([1, *range(-spatial, 0)], range(1, w.ndim))
                )  # [N, Y1..Ys, F / group]
                for window, kernel in zip(
                    np.split(windows, self.group, axis=1), np.split(numerics.widen(w), self.group), strict=True
                )
            ]
            y = np.concatenate(parts, axis=-1)
            return numerics.rounded(np.moveaxis(y if b is None else y + numerics.widen(b), -1, 1), x.dtype)

    def windows(self, x: np.ndarray, taps: tuple[int, ...]) -> np.ndarray:
        """What each place of the result is computed from: a view [N, C, Y1..Ys, K1..Ks] of x [N, C, X1..Xs], padded."""
        spatial = x.ndim - 2
        margins = [(0, 0), (0, 0), *zip(self.pads[:spatial], self.pads[spatial:], strict=True)]
        padded = np.pad(x, margins)
        reach = tuple(d * (k - 1) + 1 for d, k in zip(self.dilations, taps, strict=True))
        if any(extent < r for extent, r in zip(padded.shape[2:], reach, strict=True)):
            return np.zeros((*x.shape[:2], *self._extents(x.shape[2:], taps), *taps), x.dtype)
        found = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, x.ndim)))
        steps = (*(slice(None, None, s) for s in self.strides), *(slice(None, None, d) for d in self.dilations))
        return found[(slice(None), slice(None), *steps)]

    def _need_attributes(self, spatial: int) -> None:
        counts = (len(self.strides), len(self.dilations), len(self.pads))
        need(counts == (spatial, spatial, 2 * spatial), f"C5: {self!r} doesn't fit {spatial} spatial axes")
        need(min(*self.strides, *self.dilations, self.group) > 0, f"C5: {self!r} has a step that isn't positive")

    def _extents(self, inputs: tuple[Dim, ...], kernel: tuple[Dim, ...]) -> list[Dim]:
        extents: list[Dim] = []
        for i, (extent, taps) in enumerate(zip(inputs, kernel, strict=True)):
            padding = self.pads[i] + self.pads[i + len(inputs)]
            reach = dims.mul(self.dilations[i], dims.sub(taps, 1))
            last = dims.sub(dims.add(extent, padding - 1), reach)
            result = dims.add(dims.floordiv(last, self.strides[i]), 1)
            need(
                not isinstance(result, int) or result >= 0, f"C7: the kernel is wider than axis {i + 2} of x, {extent}"
            )
            extents.append(result)
        return extents
