"""Activation functions spelled with erf, tanh, sigmoid and clipping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from planish.ir.graph import Value
from planish.ir.ops import Clip, Erf, Gelu, HardSigmoid, HardSwish, Max, Min, Pow, Relu, Sigmoid, Swish, Tanh
from planish.passes.base import RulePass
from planish.passes.exactness import ROUNDING
from planish.passes.pattern import Pattern, Scalar, attr, either
from planish.passes.raising.parameters import keeping, shortest
from planish.passes.rewrite import Rule, reject, rule


def half_of_product(x: Pattern, curve: Pattern) -> Pattern:
    """x / 2 * (1 + curve), the half at any place."""
    gate = 1.0 + curve
    return either(
        0.5 * (x * gate),
        x * gate / 2.0,
        either(0.5 * x, x / 2.0) * gate,
        x * either(0.5 * gate, gate / 2.0, 0.5 + 0.5 * curve),
    )


def erf_of_scaled(x: Pattern, divisor: Scalar, factor: Scalar) -> Pattern:
    return half_of_product(x, Erf()(either(x / divisor, x * factor)))


@rule(erf_of_scaled, exactness=ROUNDING)
def gelu(x: Value, divisor: float | None, factor: float | None, root: Value) -> Value:
    """x/2 * (1 + erf(x / sqrt(2))) = Gelu(x)."""
    _near(1 / divisor if divisor else factor, math.sqrt(0.5), "the argument of erf")
    return keeping(Gelu()(x), root)


def tanh_of_cubic(x: Pattern, outer: Scalar, cubic: Scalar) -> Pattern:
    squared = either(x * x, Pow()(x, 2.0))
    bent = either(
        cubic * either(Pow()(x, 3.0), squared * x), either(cubic * squared, (cubic * x) * x) * x, (cubic * x) * squared
    )
    factor = 1.0 + either(cubic * squared, (cubic * x) * x)
    polynomial = x + bent
    argument = either(outer * polynomial, outer * (x * factor), (outer * x) * factor, x * (outer * factor))
    return half_of_product(x, Tanh()(argument))


@rule(tanh_of_cubic, exactness=ROUNDING)
def tanh_gelu(x: Value, outer: float, cubic: float, root: Value) -> Value:
    """x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))) = Gelu(x), approximated."""
    _near(outer, math.sqrt(2 / math.pi), "the argument of tanh")
    _near(cubic, 0.044715, "the cube", 1e-4)
    return keeping(Gelu(approximate="tanh")(x), root)


def product_with_sigmoid(x: Pattern, alpha: Scalar) -> Pattern:
    return x * Sigmoid()(either(x * alpha, x))


@rule(product_with_sigmoid, exactness=ROUNDING)
def swish(x: Value, alpha: float | None, root: Value) -> Value:
    """x * sigmoid(alpha * x) = Swish(x)."""
    return keeping(Swish(1.0 if alpha is None else shortest(alpha))(x), root)


def sixth_of_clipped(x: Pattern) -> Pattern:
    clipped = Clip(lo=0.0, hi=6.0)(x + 3.0)
    return either(clipped / 6.0, clipped * (1 / 6))


@rule(sixth_of_clipped, exactness=ROUNDING)
def hard_sigmoid_of_sixth(x: Value, root: Value) -> Value:
    """min(max(x + 3, 0), 6) / 6 = HardSigmoid(1/6, 1/2)(x)."""
    return keeping(HardSigmoid(alpha=1 / 6, beta=0.5)(x), root)


def clipped_line(x: Pattern, alpha: Scalar, beta: Scalar) -> Pattern:
    return Clip(lo=0.0, hi=1.0)(x * alpha + beta)


@rule(clipped_line, exactness=ROUNDING)
def hard_sigmoid(x: Value, alpha: float, beta: float, root: Value) -> Value:
    """min(max(alpha * x + beta, 0), 1) = HardSigmoid(alpha, beta)(x)."""
    return keeping(HardSigmoid(shortest(alpha), shortest(beta))(x), root)


def product_with_hard_sigmoid(x: Pattern) -> Pattern:
    clipped = Clip(lo=0.0, hi=6.0)(x + 3.0)
    return either(
        x * HardSigmoid(alpha=attr("alpha"), beta=attr("beta"))(x),
        x * clipped / 6.0,
        x * clipped * (1 / 6),
        either(x / 6.0, x * (1 / 6)) * clipped,
    )


@rule(product_with_hard_sigmoid, exactness=ROUNDING)
def hard_swish(x: Value, root: Value, alpha: float = 1 / 6, beta: float = 0.5) -> Value:
    """x * HardSigmoid(1/6, 1/2)(x) = HardSwish(x)."""
    _near(alpha, 1 / 6, "the gate", 1e-4)
    _near(beta, 0.5, "the middle of the gate", 1e-4)
    return keeping(HardSwish()(x), root)


def limited_both_ways(x: Pattern, lo: Scalar, hi: Scalar) -> Pattern:
    return either(Min()(Max()(x, lo), hi), Max()(Min()(x, hi), lo), Min()(Relu()(x), hi))


@rule(limited_both_ways)
def clip(x: Value, lo: float | None, hi: float, root: Value) -> Value:
    """min(max(x, lo), hi) = Clip(lo, hi)(x)."""
    lo = type(hi)(0) if lo is None else lo
    if not lo <= hi:
        reject(f"the lower limit {lo} is above the upper limit {hi}")
    limits = (lo, hi) if x.tensor.dtype.is_integer else (shortest(lo), shortest(hi))
    return keeping(Clip(*limits)(x), root)


@dataclass(frozen=True)
class RaiseActivations(RulePass):
    """Activation functions from their formulas: Gelu, Swish, HardSigmoid, HardSwish, Clip."""

    name: ClassVar[str] = "raise-activations"
    rule_set: ClassVar[tuple[Rule, ...]] = (
        clip,
        gelu,
        tanh_gelu,
        swish,
        hard_swish,
        hard_sigmoid,
        hard_sigmoid_of_sixth,
    )


def _near(found: float | None, wanted: float, what: str, tolerance: float = 1e-3) -> None:
    if found is None or not math.isclose(found, wanted, rel_tol=tolerance):
        reject(f"{what} is scaled by {found:g}, not by {wanted:g}")
