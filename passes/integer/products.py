"""Linear layers, convolutions and matrix products as sums of products of codes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from planish.ir import dtypes, fixedpoint, ops
from planish.ir.data import Data
from planish.ir.graph import Node, Value
from planish.ir.op import constant
from planish.ir.types import Quant
from planish.passes.integer.conversion import Conversion, Operand, Want
from planish.passes.integer.forms import SUM, Form, Spec, column_scales, operand_bits, symmetric
from planish.passes.integer.plan import Plan

BIAS_ROOM = 2.0**30  # codes that a bias may take of the 2**31 of a sum


def _array(value: Value | None) -> np.ndarray | None:
    data = constant(value)
    return None if data is None else data.numpy().astype(np.float64)


class LinearConversion(Conversion):
    """Linear -> IntLinear: weights per column, the bias corrected for the mean error of rounded weights."""

    heavy = True
    sums = True

    def refuses(self, node: Node, plan: Plan) -> str:
        w = _array(node.operands[1])
        if w is None or (len(node.operands) > 2 and node.operands[2] is not None and _array(node.operands[2]) is None):
            return "its weights are computed"
        return "" if np.all(np.isfinite(w)) else "its weights hold NaN or infinity"

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        return [(0, self._input(node, plan))]

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Value:
        spec = self._input(node, plan)
        w, b = self._weight(node, plan), _array(node.operands[2]) if len(node.operands) > 2 else None
        codes, bias = quantized_weight(w, b, 1, spec.scale, self._mean(node, plan))
        result: Value = ops.IntLinear()(operand(0, spec), codes, bias)
        return result

    def _input(self, node: Node, plan: Plan) -> Spec:
        x = node.inputs[0]
        if not plan.is_wide(node):
            return plan.evened(x) or plan.operand(x)
        w = self._weight(node, plan)
        return wide_input(x, fixedpoint.quantized(w, dtypes.i8, column_scales(w, 1)), plan)

    def _weight(self, node: Node, plan: Plan) -> np.ndarray:
        w = _array(node.operands[1])
        assert w is not None
        factor = self._factor(node, plan)
        return w if factor is None else w * factor[:, None]

    def _factor(self, node: Node, plan: Plan) -> np.ndarray | None:
        """What each input channel was divided by, if this node reads evened codes."""
        return None if plan.is_wide(node) else plan.folded.get(node.inputs[0])

    def _mean(self, node: Node, plan: Plan) -> np.ndarray | None:
        """Mean of each input channel, for bias correction."""
        if not plan.correct_bias:
            return None
        mean = plan.statistics[node.inputs[0]].channel_mean
        factor = self._factor(node, plan)
        return mean if mean is None or factor is None else mean / factor


class ConvConversion(Conversion):
    """Conv -> IntConv: weights per filter, the bias corrected as for Linear where nothing is padded."""

    heavy = True
    sums = True

    def refuses(self, node: Node, plan: Plan) -> str:
        w = _array(node.operands[1])
        if w is None or (len(node.operands) > 2 and node.operands[2] is not None and _array(node.operands[2]) is None):
            return "its weights are computed"
        return "" if np.all(np.isfinite(w)) else "its weights hold NaN or infinity"

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        return [(0, plan.operand(node.inputs[0]))]

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Value:
        op = node.op
        assert isinstance(op, ops.Conv)
        spec = plan.operand(node.inputs[0])
        w, b = _array(node.operands[1]), _array(node.operands[2]) if len(node.operands) > 2 else None
        assert w is not None
        codes, bias = quantized_weight(w, b, 0, spec.scale, self._mean(node, plan))
        result: Value = ops.IntConv(op.strides, op.pads, op.dilations, op.group)(operand(0, spec), codes, bias)
        return result

    def _mean(self, node: Node, plan: Plan) -> np.ndarray | None:
        op = node.op
        assert isinstance(op, ops.Conv)
        if not plan.correct_bias or any(op.pads):
            return None
        return plan.statistics[node.inputs[0]].channel_mean


def quantized_weight(
    w: np.ndarray, b: np.ndarray | None, axis: int, input_scale: float, mean: np.ndarray | None
) -> tuple[Data, Data | None]:
    """Weight codes (i8, one scale per index of `axis`), and the bias in codes of the sums (i32).

    mean: of each input channel: what rounded weights make of it on average is taken off the bias (Nagel et al. 2019,
    bias correction). A channel whose bias is large against its weights gets a coarser scale, so that the bias fits.
    """
    floor = np.zeros(w.shape[axis]) if b is None else np.abs(b) / (input_scale * BIAS_ROOM)
    scales = column_scales(w, axis, floor)
    spread = [-1 if i == axis else 1 for i in range(w.ndim)]
    codes = fixedpoint.quantized(w, dtypes.i8, scales.reshape(spread))
    if mean is not None:
        error = w - codes * scales.reshape(spread)
        b = (np.zeros(w.shape[axis]) if b is None else b) + _mean_effect(error, axis, mean)
    quant = Quant(tuple(scales.tolist()), 0, axis)
    return Data(codes, quant), None if b is None else bias_codes(b, quant, input_scale)


def bias_codes(b: np.ndarray, weight: Quant, input_scale: float) -> Data:
    """A bias in codes of the sums that it is added to (i32)."""
    sums = weight.times(input_scale)
    codes = fixedpoint.quantized(b, dtypes.i32, sums.scales)
    return Data(codes, Quant(sums.scale, 0, None if sums.axis is None else 0))


def wide_input(x: Value, codes: np.ndarray, plan: Plan) -> Spec:
    """Codes of as many bits, at most 16, as sums of products by code columns [K, N] provably have room for."""
    return symmetric(*plan.range_of(x, 16, True), dtypes.i16, operand_bits(codes, 30))


def _mean_effect(error: np.ndarray, axis: int, mean: np.ndarray) -> np.ndarray:
    """What an input of the given mean makes of a weight error: [K, N] (axis 1) or [F, C / group, ...] (axis 0)."""
    if axis == 1:
        return np.asarray(mean @ error)
    taps = error.reshape(error.shape[0], error.shape[1], -1).sum(axis=2)  # [F, C / group]
    groups = mean.reshape(-1, error.shape[1])  # [groups, C / group]
    return np.asarray(np.sum(taps * np.repeat(groups, error.shape[0] // len(groups), axis=0), axis=1))


class MatMulConversion(Conversion):
    """MatMul -> IntMatMul: 8 bits each; after a softmax as many as that has."""

    heavy = True
    sums = True

    def refuses(self, node: Node, plan: Plan) -> str:
        return "an operand is a vector" if min(len(v.tensor.dims) for v in node.inputs) < 2 else ""

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        return [(0, self._left(node, plan)), (1, self._right(node, plan))]

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Value:
        left, right = self._left(node, plan), self._right(node, plan)
        result: Value = ops.IntMatMul()(operand(0, left), operand(1, right))
        return result

    def _left(self, node: Node, plan: Plan) -> Form:
        return SUM if isinstance(node.inputs[0].op, ops.Softmax) else plan.operand(node.inputs[0])

    def _right(self, node: Node, plan: Plan) -> Form:
        return SUM if isinstance(node.inputs[1].op, ops.Softmax) else plan.right(node.inputs[1])


class MulConversion(Conversion):
    """Mul -> another scale for a positive constant, IntMul otherwise."""

    sums = True

    def refuses(self, node: Node, plan: Plan) -> str:
        return ""

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        factor = positive_factor(node)
        if factor is not None:
            return [(factor[0], SUM)]
        return [(i, plan.operand(v)) for i, v in enumerate(node.inputs)]

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Value:
        factor = positive_factor(node)
        if factor is not None:
            scaled: Value = ops.ScaleBy(factor[1])(operand(factor[0], SUM))
            return scaled
        a, b = (operand(i, plan.operand(v)) for i, v in enumerate(node.inputs))
        product: Value = ops.IntMul()(a, b)
        return product


def positive_factor(node: Node) -> tuple[int, float] | None:
    """The operand that isn't constant and the positive number that it is multiplied by, if the node does only that."""
    for i, other in ((0, 1), (1, 0)) if isinstance(node.op, ops.Mul) else ((0, 1),):
        array = _array(node.operands[other])
        rank = len(node.inputs[i].tensor.dims)
        if array is not None and array.size == 1 and array.ndim <= rank and 0 < float(array.item()) < np.inf:
            number = float(array.item())
            return i, number if isinstance(node.op, ops.Mul) else 1 / number
    return None
