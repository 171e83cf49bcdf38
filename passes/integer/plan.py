"""What is decided before a graph is rewritten: which codes each value gets, and what stays in floating point."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from planish.ir import dtypes, ops
from planish.ir.graph import Node, Value
from planish.ir.op import constant
from planish.ir.types import TensorType
from planish.passes.calibration import Statistics, value_range
from planish.passes.integer.forms import Spec, asymmetric, centred_unsigned, symmetric

SAME_RANGE = (ops.Reshape, ops.DynamicReshape, ops.Transpose, ops.Squeeze, ops.Unsqueeze, ops.Expand, ops.Tile,
              ops.Identity)  # fmt: skip
"""Ops whose result holds the same numbers as their first operand."""


def is_real(value: Value | None) -> bool:
    """True if the value is a float tensor."""
    return value is not None and isinstance(value.type, TensorType) and value.type.dtype.is_float


def source_of(value: Value) -> Value:
    """The value whose numbers `value` holds in another shape."""
    while value.node is not None and isinstance(value.op, SAME_RANGE) and value.node.operands[0] is not None:
        value = value.node.operands[0]
    return value


def key_of(node: Node) -> str:
    """The name under which a node is reported and can be chosen: its first source."""
    return node.loc.sources[0] if node.loc.sources else node.op.name


@dataclass
class Plan:
    """Choices of codes, from calibration statistics and options.

    profile: "table" or "ivit". method: how ranges are found (see `value_range`).
    wide: keys of products that get 16-bit activations. folded: factor per channel (last axis) by which a norm's
    output is smaller, and its readers' weights are larger, than in the float model.
    """

    statistics: Statistics
    profile: str = "table"
    method: str = "mse"
    wide: frozenset[str] = frozenset()
    correct_bias: bool = True
    folded: dict[Value, np.ndarray] = field(default_factory=dict)
    _ranges: dict[tuple[Value, int, bool], tuple[float, float]] = field(default_factory=dict)

    def range_of(self, value: Value, bits: int = 8, symmetric_codes: bool = False) -> tuple[float, float]:
        """The range of numbers that `value` should be quantized over."""
        value = source_of(value)
        if (data := constant(value)) is not None:
            array = data.numpy()
            return float(np.min(array, initial=0.0)), float(np.max(array, initial=0.0))
        if (factor := self.folded.get(value)) is not None:
            stats = self.statistics[value]
            if stats.channel_lo is not None and stats.channel_hi is not None:
                return float(np.min(stats.channel_lo / factor)), float(np.max(stats.channel_hi / factor))
        key = (value, bits, symmetric_codes)
        if key not in self._ranges:
            method = "minmax" if bits > 8 else self.method
            self._ranges[key] = value_range(self.statistics[value], method, bits, symmetric_codes)
        return self._ranges[key]

    def is_byte(self, value: Value) -> bool:
        """True for a cast of unsigned bytes: its codes are the bytes themselves."""
        node = value.node
        return node is not None and isinstance(node.op, ops.Cast) and node.inputs[0].tensor.dtype == dtypes.u8

    def operand(self, value: Value) -> Spec:
        """8-bit codes of the left operand of a product."""
        if self.is_byte(value):
            return Spec(dtypes.u8, 1.0)
        if self.profile == "ivit":
            return centred_unsigned(*self.range_of(value, 8, True))
        return asymmetric(*self.range_of(value))

    def right(self, value: Value) -> Spec:
        """8-bit codes of a right operand that isn't constant."""
        return symmetric(*self.range_of(value, 8, True), dtypes.i8)

    def stream(self, value: Value) -> Spec:
        """16-bit codes: residual stream, inputs of norms."""
        return symmetric(*self.range_of(value, 16, True), dtypes.i16)

    def table_input(self, value: Value, lo: float, hi: float) -> Spec:
        """8-bit codes of the argument of a function that is flat or linear enough outside [lo, hi]."""
        low, high = self.range_of(value)
        return asymmetric(max(low, lo), min(high, hi))
