"""Norms and softmax in integers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from planish.ir import dtypes, fixedpoint, ops
from planish.ir.data import Data
from planish.ir.graph import Node, Value
from planish.ir.op import constant
from planish.ir.ops.int_norm import NORM_BITS
from planish.ir.ops.int_softmax import EXP_SCALE
from planish.ir.types import Quant
from planish.passes.integer.conversion import Conversion, Operand, Want
from planish.passes.integer.forms import Form, Spec, centred_unsigned
from planish.passes.integer.plan import Plan
from planish.passes.integer.tokens import counts_in

_GAMMA_BITS = 24  # of the largest gamma: with z of at most 26 bits and beta, everything stays far from 62


class NormConversion(Conversion):
    """LayerNorm or RMSNorm over the last axis -> IntLayerNorm or IntRMSNorm with 16-bit input."""

    heavy = True

    def refuses(self, node: Node, plan: Plan) -> str:
        if node.op.axis != -1:  # type: ignore[attr-defined]
            return "it normalises more than one axis"
        return "its gamma or beta is computed" if any(constant(v) is None for v in node.inputs[1:]) else ""

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        return [(0, plan.stream(node.inputs[0]))]

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Value:
        assert isinstance(form, Spec)
        x = operand(0, plan.stream(node.inputs[0]))
        channels = int(x.tensor.dims[-1])
        factor = plan.folded.get(node.result) if form.evened else None
        gamma, beta = (_vector(node, i, factor) for i in (1, 2))
        published = plan.profile == "ivit" and isinstance(node.op, ops.LayerNorm)
        unit = math.sqrt(channels) / 2.0**30 if published else 2.0**-NORM_BITS
        codes, step = norm_weight(np.ones(channels) if gamma is None else gamma, form.scale, unit)
        options = (form.scale, form.zero, form.dtype, node.op.eps)  # type: ignore[attr-defined]
        if isinstance(node.op, ops.RMSNorm):
            rms: Value = ops.IntRMSNorm(*options)(x, codes)
            return rms
        offset = None
        if beta is not None:
            offset = Data(fixedpoint.quantized(beta, dtypes.i64, step * unit), Quant((step * unit,)))
        kind = ops.ShiftLayerNorm if published else ops.IntLayerNorm
        normed: Value = kind(*options)(x, codes, offset)
        return normed


def norm_weight(gamma: np.ndarray, scale: float, unit: float) -> tuple[Data, float]:
    """Codes of gamma and their scale, with which gamma times z (of scale `unit`) has `scale` / 2**e, e an integer."""
    top = max(float(np.max(np.abs(gamma))), 1e-30)
    shift = min(_GAMMA_BITS + math.floor(math.log2(scale / (top * unit))), 61)
    step = scale / 2.0**shift / unit
    return Data(fixedpoint.quantized(gamma, dtypes.i32, step), Quant((step,))), step


def _vector(node: Node, index: int, factor: np.ndarray | None) -> np.ndarray | None:
    """gamma or beta, less the factor per channel that the readers of the norm take over."""
    data = constant(node.operands[index]) if len(node.operands) > index else None
    if data is None:
        return None if factor is None or index == 2 else 1 / factor
    array = data.numpy().astype(np.float64)
    return array if factor is None else array / factor


class SoftmaxConversion(Conversion):
    """Softmax over the last axis -> IntSoftmax with 15 bits, or Shiftmax in the profile `ivit`."""

    heavy = True
    sums = True

    def refuses(self, node: Node, plan: Plan) -> str:
        return "" if node.op.axis == -1 else "it isn't over the last axis"  # type: ignore[attr-defined]

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        return [(0, self._input(node, plan))]

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Value:
        x = operand(0, self._input(node, plan))
        y: Value = ops.Shiftmax()(x) if plan.profile == "ivit" else ops.IntSoftmax(32767, dtypes.u16)(x)
        return y

    def _input(self, node: Node, plan: Plan) -> Spec:
        if plan.profile == "ivit":
            return centred_unsigned(*plan.range_of(node.inputs[0], 8, True))
        return Spec(dtypes.i16, EXP_SCALE / 4)


def kept_places(mask: Value) -> Value | None:
    """The bool mask of places that take part, for one that is bool, or 0 there and hugely negative elsewhere.

    Understands Where(c, number, number) and (1 - m) * number with an integer or bool m of zeros and ones. A row
    without any place is uniform in floating point then, and zero in integers.
    """
    if mask.tensor.dtype == dtypes.boolean:
        return mask
    node = mask.node
    if node is not None and isinstance(node.op, ops.Where):
        condition, yes, no = node.inputs
        if _is_huge(yes) and _is_zero(no):
            negated: Value = ops.Not()(condition)
            return negated
        return condition if _is_zero(yes) and _is_huge(no) else None
    if node is not None and isinstance(node.op, ops.Mul):
        for inverted, factor in (node.inputs, node.inputs[::-1]):
            if _is_huge(factor) and (zeros := _ones_less(inverted)) is not None:
                flags: Value = ops.Cast(dtypes.boolean)(zeros)
                return flags
    return None


def _ones_less(value: Value) -> Value | None:
    """m for a value 1 - Cast(m)."""
    node = value.node
    if node is None or not isinstance(node.op, ops.Sub) or constant(node.operands[0]) is None:
        return None
    one, cast = constant(node.operands[0]), node.inputs[1]
    if one is None or one.size != 1 or float(one.numpy().item()) != 1.0:
        return None
    return cast.node.inputs[0] if cast.node is not None and isinstance(cast.op, ops.Cast) else None


def _is_huge(value: Value) -> bool:
    data = constant(value)
    return data is not None and data.size == 1 and float(data.numpy().item()) <= _MASKED


def _is_zero(value: Value) -> bool:
    data = constant(value)
    return data is not None and data.size == 1 and float(data.numpy().item()) == 0.0


_COUNTS = Spec(dtypes.i16, EXP_SCALE / 8)  # of the logarithm of token counts: 255 and more fit
_MASKED = -1e3  # scores below the row's greatest by that are nothing after exp


class AttentionConversion(Conversion):
    """Attention -> products of codes with exponentials by table; the sum divides after the second product."""

    heavy = True
    sums = True

    def refuses(self, node: Node, plan: Plan) -> str:
        op, mask = node.op, node.operands[3] if len(node.operands) > 3 else None
        assert isinstance(op, ops.Attention)
        if op.causal:
            return "it is causal"
        if mask is not None and kept_places(mask) is None and not counts_in(mask):
            return "its mask isn't one of places that take part or not"
        return "" if node.inputs[0].tensor.dims[1] == node.inputs[1].tensor.dims[1] else "its heads are grouped"

    def wants(self, node: Node, forms: Sequence[Form], plan: Plan) -> Iterable[Want]:
        q, k, v, *mask = node.inputs
        counts = [(3, _COUNTS)] if mask and counts_in(mask[0]) else []
        return [(0, plan.operand(q)), (1, plan.right(k)), (2, plan.right(v)), *counts]

    def build(self, node: Node, form: Form, operand: Operand, plan: Plan) -> Value:
        op = node.op
        assert isinstance(op, ops.Attention)
        (i, q), (j, k), (n, v), *counts = self.wants(node, (), plan)
        scores = ops.IntMatMul()(operand(i, q), ops.Transpose((0, 1, 3, 2))(operand(j, k)))
        logits = ops.ScaleBy(op.scale)(scores)
        mask = node.operands[3] if len(node.operands) > 3 else None
        keep = None
        if counts:
            logits = ops.IntAdd(EXP_SCALE, 0, dtypes.i16)(logits, operand(*counts[0]))
        else:
            keep = None if mask is None else kept_places(mask)
            logits = ops.Requantize(EXP_SCALE, 0, dtypes.i16)(logits)
        result: Value = ops.IntWeightedMean()(ops.IntExp()(logits, keep), operand(n, v))
        return result
