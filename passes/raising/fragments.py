"""Patterns that several norms share: square, mean, reciprocal square root, optional casts.

Each call makes a new pattern: two calls match independently of each other.
"""

from __future__ import annotations

from planish.ir.ops import Cast, Clip, Div, Max, Pow, Reciprocal, ReduceMean, Relu, Sqrt
from planish.passes.pattern import Pattern, attr, either


def mean(x: Pattern) -> Pattern:
    """Mean of x over `axes`, kept as axes of extent 1. All means of one pattern have the same axes."""
    return ReduceMean(axes=attr("axes"), keepdims=True)(x)


def square(x: Pattern) -> Pattern:
    """x * x or x ** 2."""
    return either(x * x, Pow()(x, 2.0))


def raw_variance(x: Pattern, average: Pattern) -> Pattern:
    """E[x^2] - E[x]^2, maybe kept from falling below zero."""
    variance = mean(square(x)) - square(average)
    return either(variance, Max()(variance, 0.0), Relu()(variance), Clip(lo=0.0)(variance))


def inverse_root(x: Pattern) -> Pattern:
    """1 / sqrt(x)."""
    root = Sqrt()(x)
    return either(Reciprocal()(root), 1.0 / root, Pow()(x, -0.5), Sqrt()(Reciprocal()(x)))


def over_root(x: Pattern, squared: Pattern) -> Pattern:
    """x / sqrt(squared), the root maybe cast to the dtype of x."""
    inverse = inverse_root(squared)
    return either(Div()(x, narrowed(Sqrt()(squared))), x * narrowed(inverse))


def widened(x: Pattern) -> Pattern:
    """x, maybe cast (to the dtype `up`)."""
    return either(x, Cast(to=attr("up"))(x))


def narrowed(x: Pattern) -> Pattern:
    """x, maybe cast (to the dtype `down`)."""
    return either(x, Cast(to=attr("down"))(x))
