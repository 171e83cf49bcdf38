"""GELU of codes by I-ViT's shifts. (By table, it is an IntTable.)"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from planish.ir import dtypes, fixedpoint
from planish.ir.op import Op, need
from planish.ir.ops.quantize import per_tensor
from planish.ir.types import Quant, TensorType

GELU_SLOPE = 1.702
GELU_STEPS = 15
GELU_BITS = 8


class ShiftGelu(Op):
    """GELU as x * sigmoid(1.702 x) with exponentials by shifts; for the profile `ivit`.

        c = ceil(1 / (1.702 scale))    u = c * 2**15    e = ShiftExp(|x|), in units of u
        g = ((u if x >= 0 else e) * floor((2**31 - 1) / (e + u))) >> 24, in 0..127        y = x * g
    The two cases of the sign replace the published maximum over the row: the same function, but pointwise, and the
    exponent can't run out of bits.
    x: q(int of at most 16 bits, zero 0)[...]    y: q(i32, scale / 128)[...].
    C1 x is quantized per tensor, with at most 16 bits and zero point 0.  C2 c < 2**15, so nothing leaves 32 bits.
    Exact. Source: I-ViT, section 3.3.
    """

    pointwise = True
    typed: ClassVar[bool] = True

    def infer(self, x: TensorType) -> TensorType:
        scale, zero = per_tensor("x", x)
        need(x.dtype.bits <= 16 and zero == 0, f"C1: x is {x}; at most 16 bits and zero point 0 are needed")
        need(self.unit(x) < 1 << 15, f"C2: scale {scale} is too small")
        return TensorType(dtypes.i32, x.dims, Quant((scale / 2 ** (GELU_BITS - 1),)))

    def unit(self, x: TensorType) -> int:
        """c, the code for 1 after the slope."""
        return math.ceil(1 / (GELU_SLOPE * per_tensor("x", x)[0]))

    def evaluate(self, x: np.ndarray, *, types: Any) -> np.ndarray:
        wide, unit = x.astype(np.int64), self.unit(types[0])
        one = np.int64(unit) << GELU_STEPS
        e = fixedpoint.shift_exp(np.abs(wide), unit, GELU_STEPS)
        sigmoid = (np.where(wide >= 0, one, e) * ((np.int64(2**31) - 1) // (e + one))) >> (32 - GELU_BITS)
        return fixedpoint.accumulator(wide * sigmoid, self.name)
