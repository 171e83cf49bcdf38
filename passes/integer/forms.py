"""Forms in which a value can be had, and the codes that a range of numbers asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np

from planish.ir import dtypes
from planish.ir.dtypes import DType
from planish.ir.types import Quant

_LEAST = 1e-30  # of a scale: a value that is always zero needs some


@dataclass(frozen=True, slots=True)
class Spec:
    """Codes of one scale and zero point.

    evened: of a norm's result divided by factors per channel, which the weights of the reader make up for.
    """

    dtype: DType
    scale: float
    zero: int = 0
    evened: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", float(self.scale))  # numpy numbers print differently

    @property
    def quant(self) -> Quant:
        return Quant((self.scale,), self.zero)

    @property
    def lo(self) -> float:
        """The least number that has a code."""
        return self.scale * (self.dtype.min - self.zero)

    @property
    def hi(self) -> float:
        """The greatest number that has a code."""
        return self.scale * (self.dtype.max - self.zero)


class Native(Enum):
    """Forms that don't fix a scale."""

    SUM = "sum"
    """Integers of at most 32 bits, of whatever scales come cheapest: the accumulator of a product."""
    FLOAT = "float"
    """Real numbers, for what isn't rewritten."""


SUM, FLOAT = Native.SUM, Native.FLOAT

Form = Spec | Native


def asymmetric(lo: float, hi: float, dtype: DType = dtypes.u8) -> Spec:
    """Codes for the range [lo, hi], widened to hold 0, which is exact."""
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    scale = max((hi - lo) / (dtype.max - dtype.min), _LEAST)
    return Spec(dtype, scale, min(max(dtype.min + round(-lo / scale), dtype.min), dtype.max))


def symmetric(lo: float, hi: float, dtype: DType, bits: int | None = None) -> Spec:
    """Codes for [-m, m] with m the greatest magnitude, zero point 0; of fewer bits than the dtype if asked."""
    top = (1 << ((bits or dtype.bits) - 1)) - 1
    return Spec(dtype, max(abs(lo), abs(hi)) / top if max(abs(lo), abs(hi)) > _LEAST * top else _LEAST)


def centred_unsigned(lo: float, hi: float) -> Spec:
    """Symmetric codes stored as u8 with zero point 128: what x86 multiplies fast."""
    signed = symmetric(lo, hi, dtypes.i8)
    return Spec(dtypes.u8, signed.scale, 128)


def column_scales(w: np.ndarray, axis: int, floor: np.ndarray | float = 0.0) -> np.ndarray:
    """Symmetric 8-bit scales of a weight for each index of `axis`, at least `floor`: float64[channels]."""
    others = tuple(i for i in range(w.ndim) if i != axis)
    largest = np.max(np.abs(w), axis=others, initial=0.0).astype(np.float64)
    return np.maximum(np.maximum(largest / 127, floor), _LEAST)


def operand_bits(w: np.ndarray, room: int = 31) -> int:
    """Bits of a symmetric left operand whose products with the code columns w [K, N] provably stay in 32 bits."""
    heaviest = float(np.max(np.sum(np.abs(w.astype(np.float64)), axis=0), initial=1.0))
    return min(16, max(8, math.floor(room - 0.01 - math.log2(max(heaviest, 1.0)))))
