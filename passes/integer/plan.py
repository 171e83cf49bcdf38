"""What is decided before a graph is rewritten: which codes each value gets, and what stays in floating point."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from planish.ir import dtypes, ops
from planish.ir.graph import Node, Value
from planish.ir.op import constant
from planish.ir.types import TensorType
from planish.passes.calibration import Statistics, value_range
from planish.passes.integer.forms import Spec, asymmetric, centred_unsigned, symmetric

SAME_RANGE = (ops.Reshape, ops.DynamicReshape, ops.Transpose, ops.Squeeze, ops.Unsqueeze, ops.Expand, ops.Tile,
              ops.Identity, ops.TakeTokens, ops.MergeTokens)  # fmt: skip
"""Ops whose first result holds the same numbers as their first operand, some of them, or means of them."""


def is_real(value: Value | None) -> bool:
    """True if the value is a float tensor."""
    return value is not None and isinstance(value.type, TensorType) and value.type.dtype.is_float


def source_of(value: Value) -> Value:
    """The value whose numbers `value` holds in another shape."""
    while value.node is not None and isinstance(value.op, SAME_RANGE) and value.index == 0:
        if value.node.operands[0] is None:
            break
        value = value.node.operands[0]
    return value


def key_of(node: Node) -> str:
    """The name under which a node is reported and can be chosen: its first source."""
    return node.loc.sources[0] if node.loc.sources else node.op.name


@dataclass
class Plan:
    """Choices of codes, from calibration statistics and options.

    profile: "table" or "ivit". method: how ranges are found (see `value_range`).
    wide: keys of products that get 16-bit activations. wide_below: signal-to-noise ratio in dB that 8-bit codes of an
    activation have to reach, or it gets 16 bits. folded: factor per channel (last axis) by which a norm's
    output is smaller for linear layers, and their weights are larger, than in the float model.
    """

    statistics: Statistics
    profile: str = "table"
    method: str = "mse"
    wide: frozenset[str] = frozenset()
    wide_below: float = 0.0
    correct_bias: bool = True
    folded: dict[Value, np.ndarray] = field(default_factory=dict)
    _ranges: dict[tuple[Value, int, bool], tuple[float, float]] = field(default_factory=dict)

    def range_of(self, value: Value, bits: int = 8, symmetric_codes: bool = False) -> tuple[float, float]:
        """The range of numbers that `value` should be quantized over."""
        value = source_of(value)
        if (data := constant(value)) is not None:
            array = data.numpy()
            return float(np.min(array, initial=0.0)), float(np.max(array, initial=0.0))
        key = (value, bits, symmetric_codes)
        if key not in self._ranges:
            method = "minmax" if bits > 8 else self.method
            self._ranges[key] = value_range(self.statistics[value], method, bits, symmetric_codes)
        return self._ranges[key]

    def is_byte(self, value: Value) -> bool:
        """True for a cast of unsigned bytes: its codes are the bytes themselves."""
        node = value.node
        return node is not None and isinstance(node.op, ops.Cast) and node.inputs[0].tensor.dtype == dtypes.u8

    def is_count(self, value: Value) -> bool:
        """True for how many tokens each one stands for: its codes are the numbers, cut at 255."""
        return isinstance(value.op, ops.MergeTokens) and value.index == 1

    def evened(self, value: Value) -> Spec | None:
        """8-bit codes of a norm's result for a linear layer, less the factors per channel; None if there are none."""
        factor = self.folded.get(value)
        if factor is None:
            return None
        stats = self.statistics[value]
        if stats.channel_lo is None or stats.channel_hi is None:
            return None
        plain = asymmetric(float(np.min(stats.channel_lo / factor)), float(np.max(stats.channel_hi / factor)))
        return Spec(plain.dtype, plain.scale, plain.zero, evened=True)

    def operand(self, value: Value) -> Spec:
        """8-bit codes of the left operand of a product."""
        if self.is_byte(value):
            return Spec(dtypes.u8, 1.0)
        if self.profile == "ivit":
            return centred_unsigned(*self.range_of(value, 8, True))
        return asymmetric(*self.range_of(value))

    def is_wide(self, node: Node) -> bool:
        """True if the product's activations get 16 bits: by name, or because 8 would be too noisy."""
        if key_of(node) in self.wide:
            return True
        x = node.inputs[0]
        return self.evened(x) is None and not self.is_byte(x) and self.sqnr(x, self.operand(x)) < self.wide_below

    def sqnr(self, value: Value, spec: Spec) -> float:
        """Expected signal-to-noise ratio of a value in codes, dB, over the calibration histogram."""
        value = source_of(value)
        if value not in self.statistics:
            return math.inf
        histogram = self.statistics[value].histogram
        x, weight = histogram.centres, histogram.counts.astype(np.float64)
        step = np.minimum(spec.scale**2 / 12, x**2)  # a number below half a step becomes 0
        error = np.where((x >= spec.lo) & (x <= spec.hi), step, (x - np.clip(x, spec.lo, spec.hi)) ** 2)
        noise, signal = float(weight @ error), float(weight @ x**2)
        return math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)

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
