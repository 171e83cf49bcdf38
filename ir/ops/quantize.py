"""From real numbers to codes and back, and from one scale to another.

A code q of a tensor with scale s and zero point z stands for the real number s * (q - z); both stand in the type.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from planish.ir import dtypes, fixedpoint
from planish.ir.dtypes import DType
from planish.ir.fixedpoint import Dyadic
from planish.ir.op import Op, fail, need
from planish.ir.ops.elementwise import FLOAT, need_kind
from planish.ir.types import Quant, TensorType, Type


def quant_of(name: str, type_: Type | None) -> Quant:
    """The quantization of an operand. Raises VerifyError if it has none."""
    if not isinstance(type_, TensorType) or type_.quant is None or not type_.dtype.is_integer:
        fail(f"{name} is {type_}; codes with a scale are needed")
    return type_.quant


def per_tensor(name: str, type_: Type | None) -> tuple[float, int]:
    """Scale and zero point of an operand with one of each. Raises VerifyError if there are several."""
    quant = quant_of(name, type_)
    need(quant.axis is None, f"{name} is quantized per channel; one scale is needed")
    return quant.scale[0], quant.zero


def centred(x: np.ndarray, type_: Type | None) -> np.ndarray:
    """Codes less their zero point, as int64."""
    return x.astype(np.int64) - quant_of("x", type_).zero


def need_scale(scale: float, zero: int, to: DType) -> None:
    """State that codes of dtype `to` can have this scale and zero point."""
    need(to.is_integer and to.bits >= 8, f"codes of dtype {to} aren't supported")
    need(0 < scale < float("inf"), f"scale {scale} isn't positive and finite")
    need(to.min <= zero <= to.max, f"{to} can't hold zero point {zero}")


def rescaling(type_: Type | None, scale: float) -> Dyadic:
    """The factor from the codes of `type_` to those of one scale, in a shape that broadcasts against them.

    Raises VerifyError for codes that, less their zero point, leave 32 bits: their products could leave 64.
    """
    quant = quant_of("x", type_)
    dtype, rank = (type_.dtype, len(type_.dims)) if isinstance(type_, TensorType) else (dtypes.i32, 0)
    widest = max(dtype.max - quant.zero, quant.zero - dtype.min)
    need(widest <= 2**31, f"C1: codes of {dtype} less the zero point {quant.zero} leave 32 bits")
    factor = fixedpoint.dyadic(quant.scales / scale)
    return factor.reshape(*(-1 if i == quant.axis else 1 for i in range(rank)))


class _ToCodes(Op):
    """Base of ops whose result has the codes that its attributes describe.

    scale: of the result. zero: its zero point. to: its dtype.
    """

    scale: float
    zero: int = 0
    to: DType = dtypes.i8

    def coded(self, shape: Any) -> TensorType:
        """The result type of that shape."""
        need_scale(self.scale, self.zero, self.to)
        return TensorType(self.to, tuple(shape), Quant((self.scale,), self.zero))

    def finished(self, q: np.ndarray) -> np.ndarray:
        """Codes without zero point (int64), given it and saturated."""
        return fixedpoint.saturate(q + self.zero, self.to)


class Quantize(_ToCodes):
    """Real numbers to codes, y = saturate(round(x / scale) + zero), computed in float32, half to even.

    x: f32[...]    y: to[...], scale and zero as the attributes say.
    C1 x is f32.  C2 not quantized.  C3 the scale is positive, `to` an integer that holds the zero point.
    Rounding. Source: ONNX QuantizeLinear-21.
    """

    def infer(self, x: TensorType) -> TensorType:
        need_kind("x", x, FLOAT)
        need(x.dtype == dtypes.f32, f"C1: x is {x.dtype}; f32 is needed")
        return self.coded(x.dims)

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            rounded = np.rint(x / np.float32(self.scale))
        return self.finished(np.clip(np.nan_to_num(rounded), -(2.0**40), 2.0**40).astype(np.int64))


class Dequantize(Op):
    """Codes to real numbers, y = scale * (x - zero), in float32.

    x: q(int)[...], one scale or one per channel    y: f32[...].    C1 x is quantized.
    Rounding: codes of more than 24 bits are rounded to float32 first. Source: ONNX DequantizeLinear-21.
    """

    typed: ClassVar[bool] = True

    def infer(self, x: TensorType) -> TensorType:
        quant_of("x", x)
        return TensorType(dtypes.f32, x.dims)

    def evaluate(self, x: np.ndarray, *, types: Any) -> np.ndarray:
        scale = quant_of("x", types[0]).along(x.ndim).astype(np.float32)
        return np.asarray(centred(x, types[0]).astype(np.float32) * scale).reshape(x.shape)


class Requantize(_ToCodes):
    """Codes of one scale to codes of another, y = saturate(round((x - zero of x) * m / 2**e) + zero), half up.

    m / 2**e is the dyadic form of scale of x / scale, per channel if x is quantized so; the product has 64 bits.
    x: q(int of at most 32 bits)[...]    y: to[...], scale and zero as the attributes say.
    C1 x is quantized, with at most 32 bits, also less its zero point.  C2 the ratio of scales is below 2**30.
    C3 as in Quantize.
    Exact. Source: Jacob et al. 2018, section 2.2; I-ViT, section 3.3 (there half to even in floating point).
    """

    typed: ClassVar[bool] = True

    def infer(self, x: TensorType) -> TensorType:
        quant_of("x", x)
        need(x.dtype.bits <= 32, f"C1: x is {x.dtype}; at most 32 bits are needed")
        rescaling(x, self.scale)
        return self.coded(x.dims)

    def evaluate(self, x: np.ndarray, *, types: Any) -> np.ndarray:
        return self.finished(rescaling(types[0], self.scale).times(centred(x, types[0])))


class ScaleBy(Op):
    """The same codes for numbers that are `factor` times as large: a multiplication that costs nothing.

    factor: positive.    x: q(int)[...]    y: as x, its scale times factor.
    C1 x is quantized.  C2 the factor is positive and finite.    Exact.
    """

    factor: float

    def infer(self, x: TensorType) -> TensorType:
        need(0 < self.factor < float("inf"), f"C2: factor {self.factor} isn't positive and finite")
        return TensorType(x.dtype, x.dims, quant_of("x", x).times(self.factor))

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        return x


class FromCodes(Op):
    """Plain integers read as codes: what an integer graph input is taken for.

    x: int[...], not quantized    y: as x, with the scale and zero point of the attributes.
    C1 x is an integer of at least 8 bits.  C2 not quantized.    Exact.
    """

    scale: float
    zero: int = 0

    def infer(self, x: TensorType) -> TensorType:
        need_kind("x", x, ("int", "uint"))
        need_scale(self.scale, self.zero, x.dtype)
        return TensorType(x.dtype, x.dims, Quant((self.scale,), self.zero))

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        return x


class ToCodes(Op):
    """Codes as plain integers: what an integer graph output is.

    x: q(int)[...], one scale    y: int[...], the same integers.    C1 x is quantized per tensor.    Exact.
    """

    def infer(self, x: TensorType) -> TensorType:
        per_tensor("x", x)
        return TensorType(x.dtype, x.dims)

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        return x
