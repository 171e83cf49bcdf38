"""Constant factors and summands before or behind a Linear or Conv, folded into its weights and bias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from planish.ir.graph import Value
from planish.ir.ops import Add, Conv, Div, Linear, Mul, Sub
from planish.passes.base import RulePass
from planish.passes.exactness import ROUNDING
from planish.passes.pattern import Array, Maybe, Pattern, attr, either
from planish.passes.raising.parameters import channels, folds_floats, keeping, wide
from planish.passes.raising.weights import Affine, conv_of, conv_then, linear_of, linear_then
from planish.passes.rewrite import Rule, reject, rule

ANY_CONV = Conv(strides=attr("strides"), pads=attr("pads"), dilations=attr("dilations"), group=attr("group"))


def adjusted(x: Pattern, factor: Array, divisor: Array, summand: Array, subtrahend: Array) -> Pattern:
    """x after one step of constant arithmetic."""
    return either(Mul()(x, factor), Div()(x, divisor), Add()(x, summand), Sub()(x, subtrahend))


def linear_of_adjusted(
    x: Pattern, w: Array, b: Maybe, factor: Array, divisor: Array, summand: Array, subtrahend: Array
) -> Pattern:
    result: Pattern = Linear()(adjusted(x, factor, divisor, summand, subtrahend), w, b)
    return result


@rule(linear_of_adjusted, exactness=ROUNDING)
def scale_into_next_linear(x: Value, w: np.ndarray, b: Value | None, root: Value, **numbers: Any) -> Value:
    """Linear(c * x + d, W, b) = Linear(x, diag(c) W, b + d W), where c and d are constant vectors or numbers."""
    rank = len(x.tensor.dims)
    _need_unchanged(x, root)
    return keeping(linear_of(_affine(w, w.shape[0], rank, rank - 1, **numbers), x, w, b), root)


def conv_of_adjusted(
    x: Pattern, w: Array, b: Maybe, factor: Array, divisor: Array, summand: Array, subtrahend: Array
) -> Pattern:
    result: Pattern = ANY_CONV(adjusted(x, factor, divisor, summand, subtrahend), w, b)
    return result


@rule(conv_of_adjusted, exactness=ROUNDING)
def scale_into_next_conv(
    x: Value,
    w: np.ndarray,
    b: Value | None,
    root: Value,
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    group: int,
    **numbers: Any,
) -> Value:
    """Conv(c * x + d, W, b) = Conv(x, c * W, b + sum of W * d); a shift needs a Conv that pads no zeros."""
    _need_unchanged(x, root)
    affine = _affine(w, w.shape[1] * group, w.ndim, 1, **numbers)
    return keeping(conv_of(affine, Conv(strides, pads, dilations, group), x, w, b), root)


def adjusted_linear(
    x: Pattern, w: Array, b: Maybe, factor: Array, divisor: Array, summand: Array, subtrahend: Array
) -> Pattern:
    return adjusted(Linear()(x, w, b), factor, divisor, summand, subtrahend)


@rule(adjusted_linear, exactness=ROUNDING)
def scale_into_linear(x: Value, w: np.ndarray, b: Value | None, root: Value, **numbers: Any) -> Value:
    """c * Linear(x, W, b) + d = Linear(x, W * c, b * c + d), where c and d are constant vectors or numbers."""
    rank = len(x.tensor.dims)
    return keeping(linear_then(_affine(w, w.shape[1], rank, rank - 1, **numbers), x, w, b), root)


def adjusted_conv(
    x: Pattern, w: Array, b: Maybe, factor: Array, divisor: Array, summand: Array, subtrahend: Array
) -> Pattern:
    return adjusted(ANY_CONV(x, w, b), factor, divisor, summand, subtrahend)


@rule(adjusted_conv, exactness=ROUNDING)
def scale_into_conv(
    x: Value,
    w: np.ndarray,
    b: Value | None,
    root: Value,
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    group: int,
    **numbers: Any,
) -> Value:
    """c * Conv(x, W, b) + d = Conv(x, c * W, c * b + d), where c and d are constant per channel."""
    affine = _affine(w, w.shape[0], w.ndim, 1, **numbers)
    return keeping(conv_then(affine, Conv(strides, pads, dilations, group), x, w, b), root)


@dataclass(frozen=True)
class FoldScales(RulePass):
    """Constant scales and shifts next to a Linear or Conv folded into its weights: image normalisation, layer scale."""

    name: ClassVar[str] = "fold-scales"
    rule_set: ClassVar[tuple[Rule, ...]] = (
        scale_into_next_linear,
        scale_into_next_conv,
        scale_into_linear,
        scale_into_conv,
    )


def _affine(
    w: np.ndarray,
    count: int,
    rank: int,
    axis: int,
    factor: np.ndarray | None,
    divisor: np.ndarray | None,
    summand: np.ndarray | None,
    subtrahend: np.ndarray | None,
) -> Affine:
    """The step that was matched, on `count` channels along `axis` of a tensor of `rank`."""
    steps: tuple[tuple[np.ndarray | None, Callable[[np.ndarray], Affine]], ...] = (
        (factor, lambda c: Affine(c, np.zeros(count))),
        (divisor, lambda c: Affine(1 / c, np.zeros(count))),
        (summand, lambda d: Affine(np.ones(count), d)),
        (subtrahend, lambda d: Affine(np.ones(count), -d)),
    )
    for array, make in steps:
        if array is not None:
            folds_floats(w, array)
            with np.errstate(all="ignore"):
                return make(wide(channels(array, rank, count, axis)))
    reject("there is nothing to fold")


def _need_unchanged(x: Value, root: Value) -> None:
    """Reject the match if the constant broadcasts x to another shape."""
    operand = root.node.operands[0] if root.node is not None else None
    if operand is None or operand.tensor.dims != x.tensor.dims:
        reject(f"the constant broadcasts {x.type}")
