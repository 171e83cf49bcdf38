"""Products of two matrices of signs, which count where these differ instead of multiplying."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from planish.ir import dtypes, fixedpoint
from planish.ir.op import Op, need
from planish.ir.ops.linalg import MatMul
from planish.ir.ops.quantize import quant_of
from planish.ir.types import Quant, TensorType


def _signs(name: str, type_: TensorType) -> float:
    """The scale of an operand; states C1."""
    quant = quant_of(name, type_)
    need(type_.dtype == dtypes.i8 and quant.zero == 0, f"C1: {name} is {type_}; i8 with zero point 0 is needed")
    need(quant.axis is None, f"C1: {name} is quantized per channel; one scale is needed")
    return quant.scale[0]


class IntBinaryMatMul(Op):
    """Matrix product of codes that are all -1 or 1, c = a @ b = K - 2 * (places of K where the signs differ).

    a, b: q(i8, zero 0)[..., I, K] and [..., K, J]    c: q(i32, scale of a * scale of b)[..., I, J].
    C1 both are i8, quantized per tensor with zero point 0.  C2 as MatMul.
    C3 all codes are -1 or 1 (`evaluate` raises VerifyError for others).
    Exact. Source: XNOR-Net (Rastegari et al. 2016), section 3.3; binary queries and keys as in ShiftAddViT.
    """

    typed: ClassVar[bool] = True

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        scale = _signs("a", a) * _signs("b", b)
        plain = MatMul().infer(TensorType(dtypes.i32, a.dims), TensorType(dtypes.i32, b.dims))
        return TensorType(dtypes.i32, plain.dims, Quant((scale,)))

    def evaluate(self, a: np.ndarray, b: np.ndarray, *, types: Any) -> np.ndarray:
        for name, codes in (("a", a), ("b", b)):
            need(bool(np.all(np.abs(codes) == 1)), f"C3: {name} has codes that are neither -1 nor 1")
        return fixedpoint.accumulator(fixedpoint.exact_product(a, b), self.name)
