"""Products of codes with exact 32-bit sums: linear layers, batched matrices, convolutions, element by element.

The scale of a result is the product of the operands' scales; zero points are taken off before multiplying.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from planish.ir import dims, dtypes, fixedpoint
from planish.ir.dtypes import DType
from planish.ir.graph import Value
from planish.ir.op import Op, need
from planish.ir.ops.binary import broadcast_shape
from planish.ir.ops.hamming import need_matrices, need_signs
from planish.ir.ops.linalg import Conv, MatMul
from planish.ir.ops.quantize import centred, per_tensor, quant_of
from planish.ir.ops.reduce import reduced_shape
from planish.ir.types import Quant, TensorType

OPERANDS: tuple[DType, ...] = (dtypes.u8, dtypes.i8, dtypes.u16, dtypes.i16)
"""Dtypes of codes that can be multiplied; 16 bits are two products of bytes on targets that have no other."""


def _operand(name: str, type_: TensorType) -> tuple[float, int]:
    need(type_.dtype in OPERANDS, f"C1: {name} is {type_}; codes of 8 or 16 bits are needed")
    return per_tensor(name, type_)


def _weight(w: TensorType, axis: int) -> Quant:
    quant = quant_of("w", w)
    need(w.dtype == dtypes.i8 and quant.zero == 0, f"C2: w is {w}; i8 with zero point 0 is needed")
    need(quant.axis in (None, axis), f"C2: w is quantized along axis {quant.axis}, not {axis}")
    return quant


def _accumulated(scale: float, weight: Quant, b: TensorType | None, axis: int) -> Quant:
    """Quantization of the sums; states C3, that a bias has their scale."""
    sums = weight.times(scale)
    if b is not None:
        bias = quant_of("b", b)
        need(b.dtype == dtypes.i32 and bias.zero == 0, f"C3: b is {b}; i32 with zero point 0 is needed")
        need(bias.scale == sums.scale, "C3: the scales of b aren't those of x times those of w")
    return Quant(sums.scale, 0, None if weight.axis is None else axis)


class IntLinear(Op):
    """Linear layer on codes, y = (x - zero) @ w + b, exact in 32 bits.

    x: q(u8, i8, u16 or i16)[..., K]    w: q(i8, zero 0, one scale or one per column)[K, N]
    b: q(i32, scale of x * scale of w)[N], default 0    y: q(i32, the same scale)[..., N].
    C1 x is quantized per tensor, with 8 or 16 bits.  C2 w as above.  C3 b as above.  C4 ranks and extents agree.
    C5 no sum leaves 32 bits (proved by `int_ranges.overflows`; `evaluate` raises VerifyError).
    Exact. Source: Jacob et al. 2018, section 2.3; ONNX MatMulInteger-10.
    """

    typed: ClassVar[bool] = True

    def infer(self, x: TensorType, w: TensorType, b: TensorType | None = None) -> TensorType:
        scale, _ = _operand("x", x)
        need(len(x.dims) >= 1 and len(w.dims) == 2, f"C4: x is {x} and w {w}; [..., K] and [K, N] are needed")
        need(dims.may_equal(x.dims[-1], w.dims[0]), f"C4: x has {x.dims[-1]} columns but w {w.dims[0]} rows")
        if b is not None:
            need(len(b.dims) == 1 and dims.may_equal(b.dims[0], w.dims[1]), f"C4: b is {b}; [N] is needed")
        quant = _accumulated(scale, _weight(w, 1), b, len(x.dims) - 1)
        return TensorType(dtypes.i32, (*x.dims[:-1], w.dims[1]), quant)

    def evaluate(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, *, types: Any) -> np.ndarray:
        total = fixedpoint.exact_product(centred(x, types[0]), w)
        return fixedpoint.accumulator(total if b is None else total + b, self.name)


class IntLinearDequantize(Op):
    """Linear layer on codes with a real result, y = scale of x * scale of w * ((x - zero) @ w) + b, in float32.

    The island form: one kernel on ONNX Runtime, between real numbers.
    x: q(u8 or i8)[..., K]    w: q(i8, zero 0, one scale or one per column)[K, N]    b: f32[N], default 0
    y: f32[..., N].
    C1 x is quantized per tensor, with 8 bits.  C2 w as above.  C3 b is f32.  C4 ranks and extents agree.
    Rounding: the sums are exact, scaling and bias are rounded. Source: com.microsoft MatMulIntegerToFloat-1.
    """

    typed: ClassVar[bool] = True

    def infer(self, x: TensorType, w: TensorType, b: TensorType | None = None) -> TensorType:
        need(x.dtype.bits == 8, f"C1: x is {x}; codes of 8 bits are needed")
        sums = IntLinear().infer(x, w)
        if b is not None:
            need(b.dtype == dtypes.f32 and b.quant is None, f"C3: b is {b}; f32 is needed")
            need(len(b.dims) == 1 and dims.may_equal(b.dims[0], w.dims[1]), f"C4: b is {b}; [N] is needed")
        return TensorType(dtypes.f32, sums.dims)

    def evaluate(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, *, types: Any) -> np.ndarray:
        total = IntLinear().evaluate(x, w, types=types)
        scale = (per_tensor("x", types[0])[0] * quant_of("w", types[1]).scales).astype(np.float32)
        y = total.astype(np.float32) * scale
        return y if b is None else y + b


class IntMatMul(Op):
    """Matrix product of codes, c = (a - zero of a) @ (b - zero of b), exact in 32 bits; leading axes broadcast.

    a, b: q(u8, i8, u16 or i16)[..., I, K] and [..., K, J]    c: q(i32, scale of a * scale of b)[..., I, J].
    C1 both are quantized per tensor, with 8 or 16 bits.  C2 as MatMul.  C3 no sum leaves 32 bits.
    Exact. Source: ONNX MatMulInteger-10.
    """

    typed: ClassVar[bool] = True

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        scale = _operand("a", a)[0] * _operand("b", b)[0]
        plain = MatMul().infer(TensorType(dtypes.i32, a.dims), TensorType(dtypes.i32, b.dims))
        return TensorType(dtypes.i32, plain.dims, Quant((scale,)))

    def evaluate(self, a: np.ndarray, b: np.ndarray, *, types: Any) -> np.ndarray:
        total = fixedpoint.exact_product(centred(a, types[0]), centred(b, types[1]))
        return fixedpoint.accumulator(total, self.name)


class IntAddMatMul(Op):
    """Sums of codes with signs, c[..., i, j] = sum over k of +-(b[..., k, j] - zero of b), exact in 32 bits.

    The sign is that of the code a[..., i, k], which is -1 or +1; leading axes broadcast.
    a: q(i8, 1.0)[..., I, K], -1 and +1    b: q(u8, i8, u16 or i16)[..., K, J]    c: q(i32, scale of b)[..., I, J].
    C1 a is i8 of scale 1 and zero point 0; b is quantized per tensor, with 8 or 16 bits.  C2 as AddMatMul.
    C3 no sum leaves 32 bits.  `evaluate` raises VerifyError if a holds anything else.
    Exact. Source: ShiftAddViT (arXiv 2306.06446), section 4.1.
    """

    typed: ClassVar[bool] = True

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        plain = a.dtype == dtypes.i8 and quant_of("a", a) == Quant((1.0,))
        need(plain, f"C1: a is {a}; i8 with scale 1 and zero point 0 is needed")
        need_matrices(a, b)
        return IntMatMul().infer(a, b)

    def evaluate(self, a: np.ndarray, b: np.ndarray, *, types: Any) -> np.ndarray:
        need_signs(a, self.name)
        return IntMatMul().evaluate(a, b, types=types)

    def decompose(self, a: Value, b: Value) -> Value:
        product: Value = IntMatMul()(a, b)
        return product


class IntConv(Op):
    """Convolution of codes, exact in 32 bits; the border is filled with the zero point, which stands for 0.

    strides, pads, dilations, group: as in Conv.
    x: q(u8 or i8)[N, C, X1..Xs]    w: q(i8, zero 0, one scale or one per filter)[F, C / group, K1..Ks]
    b: q(i32, scale of x * scale of w)[F], default 0    y: q(i32, the same scale)[N, F, Y1..Ys].
    C1 x is quantized per tensor, with 8 bits.  C2, C3 w and b as above.  C4 as Conv.  C5 no sum leaves 32 bits.
    Exact. Source: ONNX ConvInteger-10.
    """

    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int = 1
    typed: ClassVar[bool] = True

    def infer(self, x: TensorType, w: TensorType, b: TensorType | None = None) -> TensorType:
        scale, _ = per_tensor("x", x)
        need(x.dtype.bits == 8, f"C1: x is {x}; codes of 8 bits are needed")
        quant = _accumulated(scale, _weight(w, 0), b, 1)
        plain = self._float.infer(*(None if t is None else TensorType(dtypes.f32, t.dims) for t in (x, w, b)))  # type: ignore[arg-type]
        return TensorType(dtypes.i32, plain.dims, quant)

    def evaluate(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, *, types: Any) -> np.ndarray:
        # float64 is exact here: 53 bits hold 2**37 products of bytes
        total = self._float.evaluate(centred(x, types[0]).astype(np.float64), w.astype(np.float64)).astype(np.int64)
        spread = (-1, *(1,) * (x.ndim - 2))
        return fixedpoint.accumulator(total if b is None else total + b.reshape(spread), self.name)

    @property
    def _float(self) -> Conv:
        return Conv(self.strides, self.pads, self.dilations, self.group)


class IntMul(Op):
    """Product of codes, element by element, c = (a - zero of a) * (b - zero of b), in 32 bits; shapes broadcast.

    a, b: q(u8, i8, u16 or i16)[...]    c: q(i32, scale of a * scale of b)[...].
    C1 both are quantized per tensor, with 8 or 16 bits.  C2 the product can't leave 32 bits.    Exact.
    """

    commutative = True
    pointwise = True
    typed: ClassVar[bool] = True

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        scale = _operand("a", a)[0] * _operand("b", b)[0]
        need(a.dtype.bits + b.dtype.bits < 32, f"C2: {a.dtype} times {b.dtype} may leave 32 bits")
        return TensorType(dtypes.i32, broadcast_shape(a, b), Quant((scale,)))

    def evaluate(self, a: np.ndarray, b: np.ndarray, *, types: Any) -> np.ndarray:
        return fixedpoint.accumulator(centred(a, types[0]) * centred(b, types[1]), self.name)


class IntReduceSum(Op):
    """Sum of codes along axes, y = sum of (x - zero), exact in 32 bits. A mean is this under another scale.

    axes: negative, ascending. keepdims: leave reduced axes in the shape, with extent 1.
    x: q(u8, i8, u16 or i16)[...]    y: q(i32, scale of x), axes reduced.
    C1 x is quantized per tensor, with 8 or 16 bits.  C2 axes in range.  C3 no sum leaves 32 bits.    Exact.
    """

    axes: tuple[int, ...]
    keepdims: bool = True
    typed: ClassVar[bool] = True

    def infer(self, x: TensorType) -> TensorType:
        scale, _ = _operand("x", x)
        return TensorType(dtypes.i32, reduced_shape(x.dims, self.axes, self.keepdims), Quant((scale,)))

    def evaluate(self, x: np.ndarray, *, types: Any) -> np.ndarray:
        total = np.sum(centred(x, types[0]), axis=self.axes, keepdims=self.keepdims)
        return fixedpoint.accumulator(np.asarray(total), self.name)
