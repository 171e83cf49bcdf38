"""Matching and merging of tokens on codes, exact in 32 bits."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from planish.ir import dtypes, fixedpoint
from planish.ir.op import Op, need
from planish.ir.ops.quantize import per_tensor
from planish.ir.ops.tokens import choice_types, gathered_sums, matched, need_choice
from planish.ir.types import Quant, TensorType

UNIT_BITS = 14
"""Fraction bits of a normalised key: products of two keep to 32 bits, by Cauchy and Schwarz."""

COUNT = Quant((1.0,))
"""The quantization of numbers of tokens: codes that are what they stand for."""

_MOST_HEADS = 1 << 9  # sums of as many bytes, times 2**UNIT_BITS, keep to 32 bits


class IntMatchTokens(Op):
    """MatchTokens on codes, by the cosine of keys with 28 fraction bits.

    merged, protected: as in MatchTokens.
        m = sum of k over heads    n = max(isqrt(sum of m * m), 1)    u = floor((m * 2**14 + (n >> 1)) / n)
        score = u[even places] @ u[odd places].T, in 32 bits
    k: q(i8, zero 0)[B, H, N, D]    keep: i64[B, N - merged]    source, into: i64[B, merged].
    C1 dtype and zero point as above, one scale.  C2 rank 4, at most 512 heads.  C3 as MatchTokens.
    Exact. Source: MatchTokens; cosine needs no division by both lengths where both vectors have been normalised.
    """

    merged: int
    protected: int = 0

    def infer(self, k: TensorType) -> tuple[TensorType, TensorType, TensorType]:
        _, zero = per_tensor("k", k)
        need(k.dtype == dtypes.i8 and zero == 0, f"C1: k is {k}; i8 with zero point 0 is needed")
        need(len(k.dims) == 4, f"C2: k is {k}; rank 4 is needed")
        heads = k.dims[1]
        need(isinstance(heads, int) and heads <= _MOST_HEADS, f"C2: {heads} heads")
        return choice_types(k.dims[0], k.dims[2], self.merged, self.protected)

    def evaluate(self, k: np.ndarray) -> tuple[np.ndarray, ...]:
        sums = np.sum(k, axis=1, dtype=np.int64)
        length = np.maximum(fixedpoint.isqrt(np.sum(sums * sums, axis=2, keepdims=True)), 1)
        units = ((sums << UNIT_BITS) + (length >> 1)) // length
        scores = fixedpoint.exact_product(units[:, 0::2], np.swapaxes(units[:, 1::2], 1, 2))
        return matched(scores, self.merged, self.protected, dtypes.i32.min)


class IntMergeTokens(Op):
    """MergeTokens on codes: sums weighted by sizes are exact, the mean is rounded half up.

    y[i] = floor((2 * sum + total) / (2 * total)), with sum and total as in MergeTokens.
    most: the number of original tokens, which no total exceeds.
    x: q(i8 or i16, zero any)[B, N, C]    keep, source, into: a choice among N    size: q(i32, 1)[B, N], default 1
    y: as x, [B, M, C]    total: q(i32, 1)[B, M].
    C1 x is quantized per tensor, with 8 or 16 signed bits; size has scale 1 and zero point 0.  C2, C3 as MergeTokens.
    C4 `most` is below 2**14.
    Exact: codes of 16 bits, twice, times `most`, keep to 32 bits.
    """

    most: int
    typed: ClassVar[bool] = True

    def infer(
        self, x: TensorType, keep: TensorType, source: TensorType, into: TensorType, size: TensorType | None = None
    ) -> tuple[TensorType, TensorType]:
        per_tensor("x", x)
        need(x.dtype in (dtypes.i8, dtypes.i16), f"C1: x is {x}; i8 or i16 is needed")
        if size is not None:
            need(size.dtype == dtypes.i32 and size.quant == COUNT, f"C1: size is {size}; i32 of scale 1 is needed")
        need_choice(x, keep, source, into, size)
        need(0 < self.most < 1 << 14, f"C4: {self.most} tokens")
        shape = (x.dims[0], keep.dims[1], x.dims[2])
        return TensorType(x.dtype, shape, x.quant), TensorType(dtypes.i32, shape[:2], COUNT)

    def evaluate(
        self,
        x: np.ndarray,
        keep: np.ndarray,
        source: np.ndarray,
        into: np.ndarray,
        size: np.ndarray | None = None,
        *,
        types: Any,
    ) -> tuple[np.ndarray, ...]:
        sizes = np.ones(x.shape[:2], np.int64) if size is None else size.astype(np.int64)
        sums = gathered_sums(x.astype(np.int64) * sizes[:, :, None], keep, source, into)
        total = gathered_sums(sizes, keep, source, into)
        weight = total[:, :, None]
        return ((2 * sums + weight) // (2 * weight)).astype(x.dtype), total.astype(np.int32)
