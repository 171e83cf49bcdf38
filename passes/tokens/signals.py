"""How important each token is, from what the attention before the cut has: float[B, N], higher is more important."""

from __future__ import annotations

import numpy as np

from planish.ir import dtypes, ops
from planish.ir.graph import Value
from planish.ir.ops import numerics

SIGNALS = ("auto", "class", "received", "energy", "prior")
_MARGIN = 0.5  # cosine from which keys count as alike


def class_score(q: Value, k: Value, scale: float, mask: Value | None) -> Value:
    """Attention that the first token pays to each, the mean over heads. Source: EViT (arXiv 2202.07800), eq. 3."""
    first = ops.Slice((0,), (1,), (2,), (1,))(q)
    return _mean(_weights(first, k, scale, mask))


def received_score(q: Value, k: Value, scale: float, mask: Value | None) -> Value:
    """Attention that each token gets, the mean over heads and queries; queries that are masked as keys don't count.

    Source: PoWER-BERT (arXiv 2001.08950), section 3.1, with the token's attention to itself.
    """
    weights = _weights(q, k, scale, mask)
    if mask is None:
        return _mean(weights)
    shown = mask
    if mask.tensor.dtype != dtypes.boolean:
        shown = ops.Greater()(mask, numerics.scalar(-1e3, mask.tensor.dtype))
    return _mean(ops.MatMul()(ops.Cast(q.tensor.dtype)(shown), weights))


def energy_score(k: Value) -> Value:
    """Less for tokens with many alike: minus the mean of ELU(cosine - margin) over all others.

    Source: PiToMe (arXiv 2405.16148), eq. 4, with one margin.
    """
    means = ops.ReduceMean((-3,), False)(k)
    length = ops.Sqrt()(ops.ReduceSum((-1,), True)(ops.Mul()(means, means)))
    units = ops.Div()(means, ops.Clip(1e-12, None)(length))
    cosines = ops.MatMul()(units, ops.Transpose((0, 2, 1))(units))
    alike = ops.Elu(1.0)(ops.Sub()(cosines, np.asarray(_MARGIN, k.tensor.dtype.storage)))
    score: Value = ops.Neg()(ops.ReduceMean((-1,), False)(alike))
    return score


def _weights(q: Value, k: Value, scale: float, mask: Value | None) -> Value:
    """Softmax of the scaled products, float[B, H, rows of q, N]."""
    scaled = ops.Mul()(q, numerics.scalar(scale, q.tensor.dtype))
    scores = ops.MatMul()(scaled, ops.Transpose((0, 1, 3, 2))(k))
    if mask is not None and mask.tensor.dtype == dtypes.boolean:
        scores = ops.Where()(mask, scores, numerics.scalar(float(np.finfo(np.float32).min) / 2, q.tensor.dtype))
    elif mask is not None:
        scores = ops.Add()(scores, mask)
    weights: Value = ops.Softmax(-1)(scores)
    return weights


def _mean(weights: Value) -> Value:
    """Over heads and queries, float[B, N]."""
    score: Value = ops.ReduceMean((-3, -2), False)(weights)
    return score
