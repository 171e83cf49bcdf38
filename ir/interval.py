"""Intervals of numbers, and what gives the interval of a result: the terms of interval analysis."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planish.ir.graph import Node, Value
from planish.ir.types import TensorType


@dataclass(frozen=True, slots=True)
class Interval:
    """All numbers from lo to hi, both included; infinite where nothing is known."""

    lo: float = -math.inf
    hi: float = math.inf

    @staticmethod
    def hull(*numbers: float) -> Interval:
        """The smallest interval that holds all numbers; an undefined one (infinity times zero) makes it unbounded."""
        if any(math.isnan(n) for n in numbers):
            return Interval()
        return Interval(min(numbers), max(numbers))

    def union(self, other: Interval) -> Interval:
        return Interval(min(self.lo, other.lo), max(self.hi, other.hi))

    def meet(self, other: Interval) -> Interval:
        """What lies in both; `other` where they are disjoint."""
        lo, hi = max(self.lo, other.lo), min(self.hi, other.hi)
        return Interval(lo, hi) if lo <= hi else other

    def holds(self, array: np.ndarray) -> bool:
        return array.size == 0 or bool(np.min(array) >= self.lo and np.max(array) <= self.hi)

    @property
    def magnitude(self) -> float:
        """Largest absolute value."""
        return max(abs(self.lo), abs(self.hi))

    def map(self, rising: Callable[[float], float]) -> Interval:
        """The image under a function that never falls."""
        return Interval(rising(self.lo), rising(self.hi))


Bound = Callable[[Node, tuple[Interval, ...]], Interval]
"""From a node and the intervals of its operands, the interval of its results."""


def dtype_range(value: Value) -> Interval:
    """What the dtype of a value can hold; floats are unbounded."""
    if not isinstance(value.type, TensorType):
        return Interval()
    dtype = value.type.dtype
    if dtype.is_integer:
        return Interval(float(dtype.min), float(dtype.max))
    return Interval(0.0, 1.0) if dtype.kind == "bool" else Interval()
