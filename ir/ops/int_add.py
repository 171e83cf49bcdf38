"""Addition of codes of two scales."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from planish.ir.op import need
from planish.ir.ops.binary import broadcast_shape
from planish.ir.ops.quantize import _ToCodes, centred, quant_of, rescaling
from planish.ir.types import TensorType


class IntAdd(_ToCodes):
    """Sum of codes: each operand is brought to the scale of the result and rounded, then they add and saturate.

    y = saturate(round(a * ma / 2**ea) + round(b * mb / 2**eb) + zero), half up, products of 64 bits.
    a, b: q(int of at most 32 bits)[...], one scale or one per channel; shapes broadcast
    y: to[...], scale and zero as the attributes say.
    C1 both are quantized, with at most 32 bits, also less their zero points.
    C2 an operand with several scales has the rank of the result.
    C3 ratios of scales are below 2**30.
    Exact. Source: I-ViT, residual connection; Jacob et al. 2018, appendix A.2.
    """

    commutative = True
    pointwise = True
    typed: ClassVar[bool] = True

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        result = self.coded(broadcast_shape(a, b))
        for name, operand in (("a", a), ("b", b)):
            quant = quant_of(name, operand)
            need(operand.dtype.bits <= 32, f"C1: {name} is {operand}; at most 32 bits are needed")
            ranked = quant.axis is None or len(operand.dims) == len(result.dims)
            need(ranked, f"C2: {name} is {operand}; it is broadcast, so it needs one scale")
            rescaling(operand, self.scale)
        return result

    def evaluate(self, a: np.ndarray, b: np.ndarray, *, types: Any) -> np.ndarray:
        left, right = (
            rescaling(type_, self.scale).times(centred(x, type_)) for x, type_ in zip((a, b), types, strict=True)
        )
        return self.finished(left + right)
