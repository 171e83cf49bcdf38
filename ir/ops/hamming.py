"""Products in Hamming space: one operand holds only -1 and +1, so that a matrix product only adds and subtracts."""

from __future__ import annotations

import numpy as np

from planish.ir.graph import Value
from planish.ir.op import Op, need
from planish.ir.ops import numerics
from planish.ir.ops.binary import Greater, GreaterOrEqual, Where
from planish.ir.ops.elementwise import FLOAT, need_kind
from planish.ir.ops.linalg import MatMul
from planish.ir.types import TensorType


class Binarize(Op):
    """Codes of signs, y = 1 where x >= 0 (so also where x is -0), -1 elsewhere (so also where x is NaN).

    zero: what 0 becomes, 1 or -1; with -1, y = 1 where x > 0.
    x: float[...]    y: as x.
    C1 floats.  C2 not quantized.  C3 zero is 1 or -1.
    Exact. Source: ShiftAddViT (arXiv 2306.06446), section 4.1; EcoFormer (arXiv 2209.09004), section 3.
    """

    zero: int = 1
    pointwise = True

    def infer(self, x: TensorType) -> TensorType:
        need_kind("x", x, FLOAT)
        need(self.zero in (1, -1), f"C3: zero can't become {self.zero}")
        return TensorType(x.dtype, x.shape)

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        above = x >= 0 if self.zero == 1 else x > 0
        return np.asarray(np.where(above, 1, -1)).astype(x.dtype)

    def decompose(self, x: Value) -> Value:
        compare = GreaterOrEqual() if self.zero == 1 else Greater()
        zero, one, minus = (numerics.scalar(number, x.tensor.dtype) for number in (0.0, 1.0, -1.0))
        result: Value = Where()(compare(x, zero), one, minus)
        return result


class AddMatMul(Op):
    """Matrix product whose left operand only adds and subtracts, c[..., i, j] = sum over k of +-b[..., k, j].

    The sign is that of a[..., i, k], which is -1 or +1.
    a: float[..., I, K], -1 and +1    b: as a, any numbers [..., K, J]    c: as a, [..., I, J]; leading axes broadcast.
    C1 floats.  C2 not quantized.  C3 same dtype.  C4 ranks of 2 or more.  C5 the K agree.
    `evaluate` raises VerifyError if a holds anything else.
    Rounding: sums in any order; 16-bit floats are added up in float32. Source: ShiftAddViT (arXiv 2306.06446), 4.1.
    """

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        need_kind("a", a, FLOAT)
        need_kind("b", b, FLOAT)
        need_matrices(a, b)
        return MatMul().infer(a, b)

    def evaluate(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        need_signs(a, self.name)
        with np.errstate(all="ignore"):
            return numerics.rounded(np.matmul(numerics.widen(a), numerics.widen(b)), a.dtype)

    def decompose(self, a: Value, b: Value) -> Value:
        product: Value = MatMul()(a, b)
        return product


def need_matrices(a: TensorType, b: TensorType) -> None:
    """State constraint C4 of products by signs."""
    need(len(a.dims) >= 2 and len(b.dims) >= 2, f"C4: a is {a} and b {b}; ranks of 2 or more are needed")


def need_signs(a: np.ndarray, what: str) -> None:
    """Raise VerifyError unless every element is -1 or +1."""
    need(bool(np.all((a == 1) | (a == -1))), f"the left operand of {what} holds other numbers than -1 and +1")
