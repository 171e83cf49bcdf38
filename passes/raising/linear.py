"""Matrix products with a constant matrix become Linear, constant vectors added to it its bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.ir.graph import Value
from planish.ir.ops import Add, Linear, MatMul
from planish.passes.base import RulePass
from planish.passes.pattern import Array, Const, Pattern
from planish.passes.raising.parameters import along, keeping
from planish.passes.rewrite import Rule, reject, rule


def product_with_constant(x: Pattern, w: Const) -> Pattern:
    return MatMul()(x, w)


@rule(product_with_constant)
def matmul_to_linear(x: Value, w: Value) -> Value:
    """x @ W = Linear(x, W), where W is a constant matrix."""
    if w.tensor.rank != 2:
        reject(f"the weight has rank {w.tensor.rank}, not 2")
    if not x.tensor.rank or x.tensor.rank < 2:
        reject("a vector times a matrix is left alone")
    return Linear()(x, w)


def linear_plus_constant(x: Pattern, w: Pattern, bias: Array) -> Pattern:
    return Add()(Linear()(x, w), bias)


@rule(linear_plus_constant)
def linear_with_bias(x: Value, w: Value, bias: np.ndarray, root: Value) -> Value:
    """Linear(x, W) + b = Linear(x, W, b), where b is constant along all axes but the last."""
    return keeping(Linear()(x, w, along(bias, w.tensor.dims[1:])), root)


@dataclass(frozen=True)
class RaiseLinear(RulePass):
    """Matrix products with constant matrices, and the biases added to them, as Linear."""

    name: ClassVar[str] = "raise-linear"
    rule_set: ClassVar[tuple[Rule, ...]] = (matmul_to_linear, linear_with_bias)
