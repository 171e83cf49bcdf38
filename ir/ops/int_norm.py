"""Layer and root-mean-square normalisation of codes, with an integer square root."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from planish.ir import dims, dtypes, fixedpoint
from planish.ir.op import need
from planish.ir.ops.quantize import _ToCodes, per_tensor, quant_of
from planish.ir.types import TensorType

NORM_BITS = 20  # fraction bits of normalised values
RECIPROCAL_BITS = 40  # of the reciprocal of the root


class _IntNorm(_ToCodes):
    """Normalised codes z, then y = saturate(((z * gamma + beta + 2**(e - 1)) >> e) + zero), per channel.

    With C channels of codes x (zero point taken off), all in int64:
        r = isqrt(C * sum(x * x) - sum(x)**2 + epsilon) = C times the standard deviation
        z = ((C * x - sum(x)) * floor(2**40 / r) + 2**19) >> 20        scale 2**-20
    RMSNorm leaves out sum(x). epsilon = max(1, round(C * C * eps / scale of x ** 2)), so that it is the float one.
    """

    eps: float = 1e-5
    centre: ClassVar[bool] = True
    typed: ClassVar[bool] = True

    def _coded(self, x: TensorType, gamma: TensorType, beta: TensorType | None) -> TensorType:
        per_tensor("x", x)
        need(x.dtype.bits <= 16, f"C1: x is {x}; codes of at most 16 bits are needed")
        need(len(x.dims) >= 1 and isinstance(x.dims[-1], int), f"C2: the channels of {x} aren't known")
        channels = x.dims[-1]
        need(self.widest(x) < 1 << 62, f"C4: with eps {self.eps}, the square root of {x} takes more than 62 bits")
        shifts = gamma.dtype == dtypes.i32 and 0 < self.shift(x, gamma) <= fixedpoint.MAX_SHIFT
        need(shifts, f"C3: gamma is {gamma}; codes in i32 of a scale that shifts by 1 to 62 bits are needed")
        for name, part in (("gamma", gamma), ("beta", beta)):
            fits = part is None or (len(part.dims) == 1 and dims.may_equal(part.dims[0], channels))
            need(fits, f"C3: {name} is {part}; [{channels}] is needed")
            need(part is None or quant_of(name, part).zero == 0, f"C3: {name} is {part}; zero point 0 is needed")
        if beta is not None:
            wanted = self.unit(x) * per_tensor("gamma", gamma)[0]
            need(beta.dtype == dtypes.i64, f"C3: beta is {beta}; i64 is needed")
            need(math.isclose(per_tensor("beta", beta)[0], wanted), "C3: the scale of beta isn't that of gamma times z")
        return self.coded(x.dims)

    def unit(self, x: TensorType) -> float:
        """The scale of normalised values z."""
        return 2.0**-NORM_BITS

    def shift(self, x: TensorType, gamma: TensorType) -> int:
        """e, from scale of z * scale of gamma = scale / 2**e. Raises VerifyError if that is no power of two."""
        exact = -math.log2(self.unit(x) * per_tensor("gamma", gamma)[0] / self.scale)
        need(abs(exact - round(exact)) < 1e-6, "C3: scale of gamma * scale of z / scale is no power of two")
        return round(exact)

    def epsilon(self, x: TensorType) -> int:
        """eps, on codes."""
        scale, channels = per_tensor("x", x)[0], int(x.dims[-1])
        return max(1, round(channels * channels * self.eps / scale**2))

    def widest(self, x: TensorType) -> int:
        """A bound of what the square root is taken of."""
        return (int(x.dims[-1]) * _magnitude(x)) ** 2 + self.epsilon(x)

    def normalised(self, x: np.ndarray, type_: TensorType) -> np.ndarray:
        """z, as int64."""
        x, channels = x.astype(np.int64) - quant_of("x", type_).zero, x.shape[-1]
        total = np.sum(x, axis=-1, keepdims=True) if self.centre else np.int64(0)
        variance = channels * np.sum(x * x, axis=-1, keepdims=True) - total * total
        root = np.maximum(fixedpoint.isqrt(variance + self.epsilon(type_)), 1)
        reciprocal = (np.int64(1) << RECIPROCAL_BITS) // root
        half = np.int64(1) << (NORM_BITS - 1)
        return np.asarray(((channels * x - total) * reciprocal + half) >> (RECIPROCAL_BITS - NORM_BITS))

    def _affine(self, z: np.ndarray, gamma: np.ndarray, beta: np.ndarray | None, types: Any) -> np.ndarray:
        shift = self.shift(types[0], types[1])
        scaled = z * gamma.astype(np.int64) + (0 if beta is None else beta)
        return self.finished((scaled + (np.int64(1) << (shift - 1))) >> shift)


def _magnitude(x: TensorType) -> int:
    """Largest absolute value of codes less their zero point."""
    zero = quant_of("x", x).zero
    return max(x.dtype.max - zero, zero - x.dtype.min)


class IntLayerNorm(_IntNorm):
    """Layer normalisation of codes over the last axis, with the affine map and the requantization in one.

    scale, zero, to: of the result. eps: added to the variance, in real units.
    x: q(int of at most 16 bits)[..., C]    gamma: q(i32, scale g)[C]    beta: q(i64, scale g / 2**20)[C], default 0
    y: to[..., C], scale and zero as the attributes say.
    C1 x is quantized per tensor, with at most 16 bits.  C2 C is known.  C3 g = scale / 2**k for an integer k with
    -20 < k <= 42, and zero points are 0.  C4 C**2 * (greatest x**2 + eps / scale of x ** 2) < 2**62.
    Exact (the arithmetic is that of the base class; no rounding of the mean).
    Source: I-ViT, I-LayerNorm, with exact centring, a seeded square root, and gamma and beta in the requantization.
    """

    def infer(self, x: TensorType, gamma: TensorType, beta: TensorType | None = None) -> TensorType:
        return self._coded(x, gamma, beta)

    def evaluate(self, x: np.ndarray, gamma: np.ndarray, beta: np.ndarray | None = None, *, types: Any) -> np.ndarray:
        return self._affine(self.normalised(x, types[0]), gamma, beta, types)


class IntRMSNorm(_IntNorm):
    """Root-mean-square normalisation of codes over the last axis: IntLayerNorm without centring and beta.

    scale, zero, to: of the result. eps: added to the mean square, in real units.
    x: q(int of at most 16 bits)[..., C]    gamma: q(i32, scale g)[C]
    y: to[..., C], scale and zero as the attributes say.    C1 to C4 as IntLayerNorm.
    Exact. Source: Zhang and Sennrich 2019; the arithmetic of IntLayerNorm.
    """

    centre: ClassVar[bool] = False

    def infer(self, x: TensorType, gamma: TensorType) -> TensorType:
        return self._coded(x, gamma, None)

    def evaluate(self, x: np.ndarray, gamma: np.ndarray, *, types: Any) -> np.ndarray:
        return self._affine(self.normalised(x, types[0]), gamma, None, types)


class ShiftLayerNorm(_IntNorm):
    """I-LayerNorm as I-ViT publishes it: rounded mean, no epsilon, a reciprocal of 31 bits; for the profile `ivit`.

        d = x - round(mean)    k = isqrt(sum(d * d))    z = (d * floor((2**31 - 1) / k)) >> 1    scale sqrt(C) / 2**30
    then the affine map and requantization of IntLayerNorm. eps is ignored; k is at least 1.
    x: q(int of at most 16 bits)[..., C]    gamma: q(i32, scale g)[C]    beta: q(i64, scale g * sqrt(C) / 2**30)[C]
    y: to[..., C], scale and zero as the attributes say.
    C1, C2 as IntLayerNorm.  C3 g * sqrt(C) / 2**30 = scale / 2**k for an integer 0 < k <= 62,
    and zero points are 0.  C4 4 * C * greatest x**2 < 2**62.
    Exact. Source: I-ViT, section 3.4; Newton's method seeded by bit length instead of ten steps from 2**16.
    """

    def infer(self, x: TensorType, gamma: TensorType, beta: TensorType | None = None) -> TensorType:
        return self._coded(x, gamma, beta)

    def evaluate(self, x: np.ndarray, gamma: np.ndarray, beta: np.ndarray | None = None, *, types: Any) -> np.ndarray:
        return self._affine(self.normalised(x, types[0]), gamma, beta, types)

    def widest(self, x: TensorType) -> int:
        return int(x.dims[-1]) * (2 * _magnitude(x)) ** 2

    def unit(self, x: TensorType) -> float:
        return math.sqrt(int(x.dims[-1])) / 2.0**30

    def normalised(self, x: np.ndarray, type_: TensorType) -> np.ndarray:
        x, channels = x.astype(np.int64) - quant_of("x", type_).zero, x.shape[-1]
        mean = (2 * np.sum(x, axis=-1, keepdims=True) + channels) // (2 * channels)
        distance = x - mean
        root = np.maximum(fixedpoint.isqrt(np.sum(distance * distance, axis=-1, keepdims=True)), 1)
        return np.asarray((distance * ((np.int64(2**31) - 1) // root)) >> 1)
