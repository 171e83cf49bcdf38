"""Softmax of codes over the last axis: by a table of exponentials, and by I-ViT's shifts."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from planish.ir import dims, dtypes, fixedpoint
from planish.ir.dims import Dim
from planish.ir.op import Op, need
from planish.ir.ops.binary import broadcast_shape
from planish.ir.ops.linalg import MatMul
from planish.ir.ops.quantize import centred, per_tensor
from planish.ir.types import Quant, TensorType

EXP_LEVELS = 255
EXP_ENTRIES = 256
EXP_SCALE = math.log(2 * EXP_LEVELS) / (EXP_ENTRIES - 1)
"""The scale of logits at which the table ends where its entries round to zero: nothing is lost but the rounding."""

SHIFT_STEPS = 15  # exponent bits of ShiftExp in Shiftmax, as published for ViT


class IntExp(Op):
    """Exponentials below the row's greatest, y = table[min(max(x) - x, 255)], table[d] = round(255 exp(-d scale)).

    Numerators of a softmax over the last axis, with the full resolution of 8 bits in each row, however flat.
    x: q(int)[..., M]    keep: bool, which places take part; broadcasts to x
    y: q(u8, 1/255)[..., M], 0 where not kept.
    C1 x is quantized per tensor.  C2 keep is bool and broadcasts to x.    Exact.
    """

    typed: ClassVar[bool] = True

    def infer(self, x: TensorType, keep: TensorType | None = None) -> TensorType:
        per_tensor("x", x)
        need(len(x.dims) >= 1, "a scalar has no row")
        if keep is not None:
            need(keep.dtype == dtypes.boolean, f"C2: keep is {keep}; bool is needed")
            fits = len(shape := broadcast_shape(x, keep)) == len(x.dims) and all(map(dims.may_equal, shape, x.dims))
            need(fits, f"C2: keep is {keep}, which doesn't broadcast to {x}")
        return TensorType(dtypes.u8, x.dims, Quant((1 / EXP_LEVELS,)))

    def table(self, x: TensorType) -> np.ndarray:
        """The 256 numerators, as int64."""
        return fixedpoint.exp_table(per_tensor("x", x)[0], EXP_LEVELS, EXP_ENTRIES)

    def evaluate(self, x: np.ndarray, keep: np.ndarray | None = None, *, types: Any) -> np.ndarray:
        x = x.astype(np.int64)
        if keep is not None:
            x = np.where(keep, x, types[0].dtype.min)
        distance = np.minimum(np.max(x, axis=-1, keepdims=True, initial=types[0].dtype.min) - x, EXP_ENTRIES - 1)
        y = self.table(types[0])[distance]
        return np.asarray(y if keep is None else np.where(keep, y, 0)).astype(np.uint8)


class IntWeightedMean(Op):
    """Mean of rows of v with the weights e, y = round(2**bits * sum(e * v) / sum(e)), half up; 0 where no weight is.

    The second product of attention: with numerators for e, this is softmax @ v without rounded probabilities.
    bits: fraction bits that the mean has more than v.
    e: q(u8 or u16, zero 0)[..., N, M]    v: q(i8, zero 0)[..., M, E]    y: q(i32, scale of v / 2**bits)[..., N, E].
    C1 dtypes and zero points as above.  C2 as MatMul.  C3 0 <= bits <= 16.
    Exact. sum(e * v) stays in 32 bits for up to 65,000 rows of u8 weights.
    """

    bits: int = 7
    typed: ClassVar[bool] = True

    def infer(self, e: TensorType, v: TensorType) -> TensorType:
        (_, zero), (scale, centre) = per_tensor("e", e), per_tensor("v", v)
        need(e.dtype in (dtypes.u8, dtypes.u16) and zero == 0, f"C1: e is {e}; unsigned with zero point 0 is needed")
        need(v.dtype == dtypes.i8 and centre == 0, f"C1: v is {v}; i8 with zero point 0 is needed")
        need(0 <= self.bits <= 16, f"C3: {self.bits} fraction bits")
        plain = MatMul().infer(TensorType(dtypes.i32, e.dims), TensorType(dtypes.i32, v.dims))
        return TensorType(dtypes.i32, plain.dims, Quant((scale / 2**self.bits,)))

    def evaluate(self, e: np.ndarray, v: np.ndarray, *, types: Any) -> np.ndarray:
        total = fixedpoint.accumulator(fixedpoint.exact_product(e, v), self.name).astype(np.int64)
        weight = np.maximum(np.sum(e, axis=-1, keepdims=True, dtype=np.int64), 1)
        return fixedpoint.accumulator(((total << self.bits) + (weight >> 1)) // weight, self.name)


class IntSoftmax(Op):
    """Softmax of codes over the last axis by table, y = round(levels * e / sum(e)), e as in IntExp with 15 bits.

    to: dtype of the result. levels: its code for 1.
    x: q(int)[..., M]    y: q(to, 1/levels)[..., M].
    C1 x is quantized per tensor.  C2 `to` is unsigned and holds `levels`, at most 65,535.
    Exact; from the true softmax of the same logits at most (1 + levels * (M + 1) / sum(e)) / 2 codes off, since each of
    the M exponentials is at most a half off.
    """

    levels: int = 255
    to: dtypes.DType = dtypes.u8
    typed: ClassVar[bool] = True

    def infer(self, x: TensorType) -> TensorType:
        per_tensor("x", x)
        holds = self.to.kind == "uint" and 1 <= self.levels <= min(self.to.max, 65535)
        need(holds, f"C2: {self.to} with {self.levels} levels")
        need(len(x.dims) >= 1, "a scalar has no row")
        return TensorType(self.to, x.dims, Quant((1 / self.levels,)))

    def table(self, x: TensorType) -> np.ndarray:
        """Exponentials of distances from the row's greatest, with 15 bits, to where they round to zero."""
        scale = per_tensor("x", x)[0]
        return fixedpoint.exp_table(scale, SOFTMAX_UNIT, math.ceil(math.log(2 * SOFTMAX_UNIT) / scale) + 1)

    def evaluate(self, x: np.ndarray, *, types: Any) -> np.ndarray:
        x, table = x.astype(np.int64), self.table(types[0])
        distance = np.minimum(np.max(x, axis=-1, keepdims=True) - x, len(table) - 1)
        e = table[distance]
        total = np.sum(e, axis=-1, keepdims=True)
        return np.asarray((e * self.levels + (total >> 1)) // total).astype(self.to.storage)


SOFTMAX_UNIT = (1 << 15) - 1


class Shiftmax(Op):
    """Softmax of codes by shifts, as I-ViT publishes it; for the profile `ivit`.

    bits: of the result as signed number; 16 for ViT.
        c = ceil(1 / scale)    e = ShiftExp(max(x) - x), in units of c * 2**15
        y = (e * floor((2**31 - 1) / sum(e))) >> (32 - bits)
    x: q(int, zero any)[..., M]    y: q(u16 or u8, 2**-(bits - 1))[..., M].
    C1 x is quantized per tensor.  C2 bits is 8 or 16.  C3 M is known, and M * c * 2**15 < 2**31.
    Exact. Source: I-ViT, section 3.2, with the exponent kept to half a unit as in its PyTorch code.
    """

    bits: int = 16
    typed: ClassVar[bool] = True

    def infer(self, x: TensorType) -> TensorType:
        per_tensor("x", x)
        need(self.bits in (8, 16), f"C2: {self.bits} bits")
        rows: Dim = x.dims[-1] if x.dims else 1
        fits = isinstance(rows, int) and rows * (self.unit(x) << SHIFT_STEPS) < 2**31
        need(fits, f"C3: sums of {rows} exponentials of scale {per_tensor('x', x)[0]} may leave 32 bits")
        return TensorType(dtypes.u16 if self.bits == 16 else dtypes.u8, x.dims, Quant((2.0 ** (1 - self.bits),)))

    def unit(self, x: TensorType) -> int:
        """c, the code for 1."""
        return math.ceil(1 / per_tensor("x", x)[0])

    def evaluate(self, x: np.ndarray, *, types: Any) -> np.ndarray:
        x = centred(x, types[0])
        e = fixedpoint.shift_exp(np.max(x, axis=-1, keepdims=True) - x, self.unit(types[0]), SHIFT_STEPS)
        factor = (np.int64(2**31) - 1) // np.sum(e, axis=-1, keepdims=True)
        return ((e * factor) >> (32 - self.bits)).astype(np.uint16 if self.bits == 16 else np.uint8)
