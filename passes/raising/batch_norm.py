"""BatchNorm in inference is an affine function of channels; the Linear or Conv next to it takes it in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from planish.ir.graph import Value
from planish.ir.ops import Add, BatchNorm, Conv, Linear, Mul, Transpose
from planish.passes.base import RulePass
from planish.passes.exactness import ROUNDING
from planish.passes.pattern import Array, Maybe, Pattern, attr
from planish.passes.raising.parameters import stored, wide
from planish.passes.raising.weights import Affine, conv_of, conv_then, linear_of, linear_then
from planish.passes.rewrite import Rule, reject, rule

ANY_CONV = Conv(strides=attr("strides"), pads=attr("pads"), dilations=attr("dilations"), group=attr("group"))
CHANNELS_LAST = Transpose((0, 2, 1))


def batch_norm(x: Pattern, gamma: Array, beta: Array, mean: Array, var: Array) -> Pattern:
    result: Pattern = BatchNorm(eps=attr("eps"))(x, gamma, beta, mean, var)
    return result


def conv_then_batch_norm(x: Pattern, w: Array, b: Maybe, gamma: Array, beta: Array, mean: Array, var: Array) -> Pattern:
    return batch_norm(ANY_CONV(x, w, b), gamma, beta, mean, var)


@rule(conv_then_batch_norm, exactness=ROUNDING)
def batch_norm_into_conv(
    x: Value,
    w: np.ndarray,
    b: Value | None,
    gamma: np.ndarray,
    beta: np.ndarray,
    mean: np.ndarray,
    var: np.ndarray,
    eps: float,
    **conv: Any,
) -> Value:
    """BatchNorm(Conv(x, W, b)) = Conv(x, W * s, (b - mean) * s + beta) with s = gamma / sqrt(var + eps)."""
    return conv_then(affine_of(gamma, beta, mean, var, eps), Conv(**conv), x, w, b)


def linear_then_batch_norm(
    x: Pattern, w: Array, b: Maybe, gamma: Array, beta: Array, mean: Array, var: Array
) -> Pattern:
    return batch_norm(Linear()(x, w, b), gamma, beta, mean, var)


@rule(linear_then_batch_norm, exactness=ROUNDING)
def batch_norm_into_linear(
    x: Value,
    w: np.ndarray,
    b: Value | None,
    gamma: np.ndarray,
    beta: np.ndarray,
    mean: np.ndarray,
    var: np.ndarray,
    eps: float,
) -> Value:
    """BatchNorm(Linear(x, W, b)) = Linear(x, W * s, (b - mean) * s + beta) for x[B, K]."""
    _need_matrix(x)
    return linear_then(affine_of(gamma, beta, mean, var, eps), x, w, b)


def batch_norm_then_conv(x: Pattern, w: Array, b: Maybe, gamma: Array, beta: Array, mean: Array, var: Array) -> Pattern:
    result: Pattern = ANY_CONV(batch_norm(x, gamma, beta, mean, var), w, b)
    return result


@rule(batch_norm_then_conv, exactness=ROUNDING)
def conv_of_batch_norm(
    x: Value,
    w: np.ndarray,
    b: Value | None,
    gamma: np.ndarray,
    beta: np.ndarray,
    mean: np.ndarray,
    var: np.ndarray,
    eps: float,
    **conv: Any,
) -> Value:
    """Conv(BatchNorm(x), W, b) = Conv(x, W * s, b + sum of W * (beta - mean * s)), where no zeros are padded."""
    return conv_of(affine_of(gamma, beta, mean, var, eps), Conv(**conv), x, w, b)


def batch_norm_then_linear(
    x: Pattern, w: Array, b: Maybe, gamma: Array, beta: Array, mean: Array, var: Array
) -> Pattern:
    result: Pattern = Linear()(batch_norm(x, gamma, beta, mean, var), w, b)
    return result


@rule(batch_norm_then_linear, exactness=ROUNDING)
def linear_of_batch_norm(
    x: Value,
    w: np.ndarray,
    b: Value | None,
    gamma: np.ndarray,
    beta: np.ndarray,
    mean: np.ndarray,
    var: np.ndarray,
    eps: float,
) -> Value:
    """Linear(BatchNorm(x), W, b) = Linear(x, diag(s) W, b + (beta - mean * s) W) for x[B, K]."""
    _need_matrix(x)
    return linear_of(affine_of(gamma, beta, mean, var, eps), x, w, b)


def batch_norm_of_tokens(x: Pattern, gamma: Array, beta: Array, mean: Array, var: Array) -> Pattern:
    return CHANNELS_LAST(batch_norm(CHANNELS_LAST(x), gamma, beta, mean, var))


@rule(batch_norm_of_tokens, exactness=ROUNDING)
def token_batch_norm(
    x: Value, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray, eps: float
) -> Value:
    """Transpose(BatchNorm(Transpose(x))) = x * s + (beta - mean * s) along the last axis of x[B, N, C]."""
    affine = affine_of(gamma, beta, mean, var, eps)
    affine.need_finite()
    factor, shift = (stored(part, np.empty(0, x.tensor.dtype.storage)) for part in (affine.factor, affine.shift))
    result: Value = Add()(Mul()(x, factor), shift)
    return result


@dataclass(frozen=True)
class FoldBatchNorm(RulePass):
    """BatchNorm folded into the Conv or Linear before or behind it; between transposes it becomes Mul and Add."""

    name: ClassVar[str] = "fold-batch-norm"
    rule_set: ClassVar[tuple[Rule, ...]] = (
        batch_norm_into_conv,
        batch_norm_into_linear,
        token_batch_norm,
        conv_of_batch_norm,
        linear_of_batch_norm,
    )


def affine_of(gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray, eps: float) -> Affine:
    """What a BatchNorm does to each channel in inference."""
    with np.errstate(all="ignore"):
        factor = wide(gamma) / np.sqrt(wide(var) + eps)
    return Affine(factor, wide(beta) - wide(mean) * factor)


def _need_matrix(x: Value) -> None:
    if x.tensor.rank != 2:
        reject(f"x is {x.type}: the channels of the norm are axis 1, those of Linear the last axis")
