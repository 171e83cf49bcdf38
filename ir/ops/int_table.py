"""Any function of one code, as a table of what it gives for each."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from planish.ir import dims
from planish.ir.op import need
from planish.ir.ops.quantize import _ToCodes, per_tensor
from planish.ir.types import TensorType


class IntTable(_ToCodes):
    """Pointwise function of codes by table, y = table[x - least code of x].

    x: q(int of b = 8 to 16 bits)[...]    table: to[2**b], the result for each code of x in ascending order
    y: to[...], scale and zero as the attributes say.
    C1 x is quantized per tensor, with 8 to 16 bits.  C2 the table isn't quantized, and has dtype `to` and 2**b entries.
    Exact; what it approximates is said by who made the table.
    """

    pointwise = True
    typed: ClassVar[bool] = True

    def infer(self, x: TensorType, table: TensorType) -> TensorType:
        per_tensor("x", x)
        need(8 <= x.dtype.bits <= 16, f"C1: x is {x}; codes of 8 to 16 bits are needed")
        fits = len(table.dims) == 1 and dims.may_equal(table.dims[0], 1 << x.dtype.bits)
        need(fits, f"C2: table is {table}; {1 << x.dtype.bits} entries are needed")
        need(table.dtype == self.to and table.quant is None, f"C2: table is {table}; plain {self.to} is needed")
        return self.coded(x.dims)

    def evaluate(self, x: np.ndarray, table: np.ndarray, *, types: Any) -> np.ndarray:
        return np.asarray(table[x.astype(np.int64) - types[0].dtype.min])
