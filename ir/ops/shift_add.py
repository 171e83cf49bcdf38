"""Products of real numbers by weights that are codes of a codebook: shifts and additions, and one scale per channel.

The integer forms are `IntLinear` and `IntConv` themselves: their weights are codes already, and a codebook in the type
of the weights says how few bits and signed digits these need.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from planish.ir import dtypes
from planish.ir.graph import Value
from planish.ir.op import Op, need
from planish.ir.ops.linalg import Conv, Linear
from planish.ir.ops.quantize import Dequantize, quant_of
from planish.ir.types import TensorType


def _weight(w: TensorType, axis: int) -> TensorType:
    """The weight's type as real numbers; states C2."""
    quant = quant_of("w", w)
    need(w.dtype == dtypes.i8 and quant.zero == 0, f"C2: w is {w}; i8 with zero point 0 is needed")
    need(quant.axis in (None, axis), f"C2: w is quantized along axis {quant.axis}, not {axis}")
    need(bool(quant.codebook), f"C2: w is {w}; codes of a codebook are needed")
    return TensorType(dtypes.f32, w.dims)


class ShiftLinear(Op):
    """Linear layer whose weights are sums of signed powers of two, y = x @ (scale * w) + b.

    x: f32[..., K]    w: q(i8, zero 0, one scale or one per column, codebook)[K, N]    b: f32[N], default 0
    y: f32[..., N].
    C1 x and b are f32.  C2 w as above.  C3 as Linear.
    Rounding. Source: ShiftAddViT (arXiv 2306.06446), section 4.2, with a scale per column and several powers (APoT).
    """

    typed: ClassVar[bool] = True

    def infer(self, x: TensorType, w: TensorType, b: TensorType | None = None) -> TensorType:
        return Linear().infer(x, _weight(w, 1), b)

    def evaluate(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, *, types: Any) -> np.ndarray:
        return Linear().evaluate(x, Dequantize().evaluate(w, types=types[1:2]), b)

    def decompose(self, x: Value, w: Value, b: Value | None = None) -> Value:
        """Linear, by weights that Dequantize makes real."""
        result: Value = Linear()(x, Dequantize()(w), b)
        return result


class ShiftConv(Op):
    """Convolution whose weights are sums of signed powers of two, as Conv with w times its scale.

    strides, pads, dilations, group: as in Conv.
    x: f32[N, C, X1..Xs]    w: q(i8, zero 0, one scale or one per filter, codebook)[F, C / group, K1..Ks]
    b: f32[F], default 0    y: f32[N, F, Y1..Ys].
    C1 x and b are f32.  C2 w as above.  C3 as Conv.
    Rounding. Source: as ShiftLinear.
    """

    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int = 1
    typed: ClassVar[bool] = True

    def infer(self, x: TensorType, w: TensorType, b: TensorType | None = None) -> TensorType:
        return self._plain.infer(x, _weight(w, 0), b)

    def evaluate(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, *, types: Any) -> np.ndarray:
        return self._plain.evaluate(x, Dequantize().evaluate(w, types=types[1:2]), b)

    def decompose(self, x: Value, w: Value, b: Value | None = None) -> Value:
        """Conv, by weights that Dequantize makes real."""
        result: Value = self._plain(x, Dequantize()(w), b)
        return result

    @property
    def _plain(self) -> Conv:
        return Conv(self.strides, self.pads, self.dilations, self.group)
