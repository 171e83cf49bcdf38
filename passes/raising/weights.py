"""Affine functions of channels, a * x + d, folded into the weights of the Linear or Conv before or behind them.

All arithmetic is in float64; the result has the dtype of the weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planish.ir.graph import Value
from planish.ir.op import constant
from planish.ir.ops import Conv, Linear
from planish.passes.raising.parameters import stored, wide
from planish.passes.rewrite import reject


@dataclass(frozen=True, eq=False)
class Affine:
    """y = factor * x + shift along one axis of n channels; both float64[n].

    For `linear_of`, factor may be a matrix float64[n, n] too: y = x @ factor + shift.
    """

    factor: np.ndarray
    shift: np.ndarray

    def need_finite(self) -> None:
        """Reject the match if a number is infinite or NaN."""
        if not np.isfinite(self.factor).all() or not np.isfinite(self.shift).all():
            reject("a factor or shift is not finite")


def linear_then(affine: Affine, x: Value, w: np.ndarray, b: Value | None) -> Value:
    """affine(Linear(x, W, b)) = Linear(x, W * a, b * a + d)."""
    affine.need_finite()
    bias = affine.factor * _bias(b, w.shape[1]) + affine.shift
    result: Value = Linear()(x, stored(wide(w) * affine.factor, w), _wanted(bias, b, w))
    return result


def linear_of(affine: Affine, x: Value, w: np.ndarray, b: Value | None) -> Value:
    """Linear(affine(x), W, b) = Linear(x, diag(a) W, b + d W), or A W for a matrix A."""
    affine.need_finite()
    bias = _bias(b, w.shape[1]) + affine.shift @ wide(w)
    folded = affine.factor @ wide(w) if affine.factor.ndim == 2 else wide(w) * affine.factor[:, None]
    result: Value = Linear()(x, stored(folded, w), _wanted(bias, b, w))
    return result


def conv_then(affine: Affine, op: Conv, x: Value, w: np.ndarray, b: Value | None) -> Value:
    """affine(Conv(x, W, b)) = Conv(x, W * a, b * a + d), along the filters of W[F, C / group, ...]."""
    affine.need_finite()
    bias = affine.factor * _bias(b, w.shape[0]) + affine.shift
    scaled = wide(w) * affine.factor.reshape(-1, *(1,) * (w.ndim - 1))
    result: Value = op(x, stored(scaled, w), _wanted(bias, b, w))
    return result


def conv_of(affine: Affine, op: Conv, x: Value, w: np.ndarray, b: Value | None) -> Value:
    """Conv(affine(x), W, b) = Conv(x, W * a, b + sum of W * d); a shift needs a Conv that pads no zeros."""
    affine.need_finite()
    if affine.factor.ndim == 2:
        reject("a convolution takes in one factor per channel, not a matrix")
    if any(op.pads) and affine.shift.any():
        reject("the convolution pads with zeros, which are not shifted")
    filters, inputs = w.shape[:2]
    taps = (1,) * (w.ndim - 2)
    # Row f of these holds the numbers of the input channels that filter f sees.
    factor, shift = (
        np.repeat(part.reshape(op.group, inputs), filters // op.group, axis=0).reshape(filters, inputs, *taps)
        for part in (affine.factor, affine.shift)
    )
    bias = _bias(b, filters) + (wide(w) * shift).sum(axis=tuple(range(1, w.ndim)))
    result: Value = op(x, stored(wide(w) * factor, w), _wanted(bias, b, w))
    return result


def _bias(b: Value | None, count: int) -> np.ndarray:
    if b is None:
        return np.zeros(count)
    data = constant(b)
    if data is None:
        reject("the bias is computed")
    return wide(data.numpy())


def _wanted(bias: np.ndarray, b: Value | None, w: np.ndarray) -> np.ndarray | None:
    """The bias as an operand: none where there was none and none is needed."""
    return None if b is None and not bias.any() else stored(bias, w)
