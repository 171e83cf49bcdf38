"""Interval analysis of integer ops: bounds of sums before they are stored, and of stored codes.

Bounds of operands and results are of codes as stored; zero points are taken off where the ops do. Sums are bounded
before any check for 32 bits, so that `planish.ir.int_ranges` can prove that the check never fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from planish.ir import dims, fixedpoint, ops
from planish.ir.dims import Dim
from planish.ir.graph import Node, Value
from planish.ir.interval import Bound, Interval, dtype_range
from planish.ir.op import Op, constant
from planish.ir.ops.int_norm import NORM_BITS
from planish.ir.ops.int_softmax import EXP_ENTRIES, EXP_LEVELS
from planish.ir.ops.quantize import quant_of

Binding = Mapping[str, Dim]
SumBound = Callable[[Node, tuple[Interval, ...], Binding], Interval]

_ULPS = 1e-6  # by which a float may exceed its bound, relative


def codes(value: Value | None, found: Interval) -> tuple[int, int]:
    """Least and greatest code of a value with these bounds."""
    if value is None:
        return 0, 0
    kept = found.meet(dtype_range(value))
    return math.ceil(kept.lo), math.floor(kept.hi)


def _centred(node: Node, operands: tuple[Interval, ...], index: int) -> tuple[int, int]:
    """Bounds of an operand less its zero point."""
    value = node.operands[index]
    lo, hi = codes(value, operands[index])
    zero = quant_of("operand", None if value is None else value.type).zero
    return lo - zero, hi - zero


def _hull(array: np.ndarray) -> Interval:
    return Interval(float(np.min(array)), float(np.max(array))) if array.size else Interval()


def _products(a: tuple[int, int], b: tuple[int, int]) -> Interval:
    return Interval.hull(*(float(x * y) for x in a for y in b))


def _times(one: Interval, extent: int | None) -> Interval:
    """Bound of the sum of so many terms; of any number of them for None."""
    if extent is not None:
        return Interval(one.lo * extent, one.hi * extent)
    return Interval(0.0 if one.lo >= 0 else -math.inf, 0.0 if one.hi <= 0 else math.inf)


def _extent(binding: Binding, *candidates: Dim) -> int | None:
    """The extent that one of the equal dimensions gives away, or None."""
    known = (dims.substitute(dim, binding) for dim in candidates)
    return next((dim for dim in known if isinstance(dim, int)), None)


# sums


def _bias(node: Node) -> Value | None:
    """What is added to the sums as integers: not the bias of IntLinearDequantize, which is real."""
    real = isinstance(node.op, ops.IntLinearDequantize) or len(node.operands) < 3
    return None if real else node.operands[2]


def _weighted(node: Node, operands: tuple[Interval, ...], x: tuple[int, int], axes: tuple[int, ...]) -> Interval | None:
    """Bound of a linear layer or convolution with constant weights: column by column, by the signs of the weights."""
    data = constant(node.operands[1])
    if data is None:
        return None
    weight = data.numpy().astype(np.int64)
    rising, falling = np.maximum(weight, 0).sum(axis=axes), np.minimum(weight, 0).sum(axis=axes)
    lo, hi = rising * x[0] + falling * x[1], rising * x[1] + falling * x[0]
    b = _bias(node)
    bias = constant(b)
    if bias is not None:
        shift = bias.numpy().astype(np.int64)
        lo, hi = lo + shift, hi + shift
    elif b is not None:
        least, most = codes(b, operands[2])
        lo, hi = lo + least, hi + most
    return _hull(np.stack([lo, hi]))


def _unweighted(node: Node, operands: tuple[Interval, ...], x: tuple[int, int], extent: int | None) -> Interval:
    """The same for weights that aren't constant."""
    total = _times(_products(x, codes(node.operands[1], operands[1])), extent)
    b = _bias(node)
    least, most = (0, 0) if b is None else codes(b, operands[2])
    return Interval(total.lo + least, total.hi + most)


def _linear(node: Node, operands: tuple[Interval, ...], binding: Binding) -> Interval:
    x = _centred(node, operands, 0)
    extent = _extent(binding, node.inputs[1].tensor.dims[0], node.inputs[0].tensor.dims[-1])
    return _weighted(node, operands, x, (0,)) or _unweighted(node, operands, x, extent)


def _conv(node: Node, operands: tuple[Interval, ...], binding: Binding) -> Interval:
    x = _centred(node, operands, 0)
    if isinstance(node.op, ops.IntConv) and any(node.op.pads):
        x = min(x[0], 0), max(x[1], 0)
    taps = node.inputs[1].tensor.dims[1:]
    constant_weights = _weighted(node, operands, x, tuple(range(1, len(taps) + 1)))
    return constant_weights or _unweighted(node, operands, x, _extent(binding, dims.product(taps)))


def _inner(node: Node, binding: Binding) -> int | None:
    """The extent that a matrix product sums over."""
    a, b = (value.tensor.dims for value in node.inputs)
    return _extent(binding, a[-1], b[-2] if len(b) > 1 else b[0])


def _mat_mul(node: Node, operands: tuple[Interval, ...], binding: Binding) -> Interval:
    a, b = _centred(node, operands, 0), _centred(node, operands, 1)
    total = _times(_products(a, b), _inner(node, binding))
    return total if (rows := _row_sum(node.inputs[0], binding)) is None else _averaged(total, rows, b)


def _add_mat_mul(node: Node, operands: tuple[Interval, ...], binding: Binding) -> Interval:
    return _times(_products((-1, 1), _centred(node, operands, 1)), _inner(node, binding))


def _signs(node: Node, _: tuple[Interval, ...], binding: Binding) -> Interval:
    return _times(Interval(-1.0, 1.0), _inner(node, binding))


def _averaged(total: Interval, rows: int, b: tuple[int, int]) -> Interval:
    """`total`, tightened by what weights that aren't negative and sum up to at most `rows` make of values in b."""
    return Interval(max(total.lo, float(rows * min(b[0], 0))), min(total.hi, float(rows * max(b[1], 0))))


def _row_sum(value: Value, binding: Binding) -> int | None:
    """The greatest sum of a row of probabilities with zero point 0; None for other values.

    Shiftmax floors parts of 2**31 - 1. IntSoftmax rounds each probability, which adds at most a half, and at most
    doubles those that aren't zero.
    """
    while isinstance(value.op, ops.Identity | ops.ScaleBy) and value.node is not None:
        value = value.node.inputs[0]
    op = value.op
    if isinstance(op, ops.Shiftmax):
        return (2**31 - 1) >> (32 - op.bits)
    if isinstance(op, ops.IntSoftmax):
        extent = _extent(binding, value.tensor.dims[-1])
        return 2 * op.levels if extent is None else min(2 * op.levels, op.levels + extent // 2)
    return None


def _mul(node: Node, operands: tuple[Interval, ...], binding: Binding) -> Interval:
    a, b = _centred(node, operands, 0), _centred(node, operands, 1)
    product = _products(a, b)
    if node.operands[0] is not node.operands[1]:
        return product
    return Interval(0.0 if a[0] <= 0 <= a[1] else float(min(a[0] ** 2, a[1] ** 2)), product.hi)


def _reduce_sum(node: Node, operands: tuple[Interval, ...], binding: Binding) -> Interval:
    lo, hi = _centred(node, operands, 0)
    op = node.op
    reduced = [node.inputs[0].tensor.dims[axis] for axis in op.axes] if isinstance(op, ops.IntReduceSum) else []
    return _times(Interval(float(lo), float(hi)), _extent(binding, dims.product(reduced)))


def _every_code(node: Node, operands: tuple[Interval, ...], _: Binding) -> Interval:
    """Bound of a pointwise op of one operand of at most 16 bits, by what it makes of each code."""
    x = node.inputs[0].tensor
    lo, hi = codes(node.operands[0], operands[0])
    every = np.arange(lo, hi + 1, dtype=np.int64).astype(x.dtype.storage)
    return _hull(np.asarray(node.op.compute([every], [x])))


SUMS: Mapping[type[Op], SumBound] = {
    ops.IntLinear: _linear,
    ops.IntLinearDequantize: _linear,
    ops.IntConv: _conv,
    ops.IntMatMul: _mat_mul,
    ops.IntAddMatMul: _add_mat_mul,
    ops.IntBinaryMatMul: _signs,
    ops.IntWeightedMean: _mat_mul,
    ops.IntMul: _mul,
    ops.IntReduceSum: _reduce_sum,
    ops.ShiftGelu: _every_code,
}
"""Bounds of the sums that ops keep in 32 bits."""


# results


def _summed(node: Node, operands: tuple[Interval, ...]) -> Interval:
    return SUMS[type(node.op)](node, operands, {})


def _mean(node: Node, operands: tuple[Interval, ...]) -> Interval:
    """A mean lies among what it is of, and is 0 where no weight is."""
    op = node.op
    lo, hi = _centred(node, operands, 1)
    factor = 2.0**op.bits if isinstance(op, ops.IntWeightedMean) else 1.0
    return Interval(min(lo, 0) * factor, max(hi, 0) * factor)


def _rescaled(node: Node, operands: tuple[Interval, ...], index: int) -> tuple[int, int]:
    """Bounds of an operand on the scale of the result, over all channels."""
    value, op = node.inputs[index], node.op
    assert isinstance(op, ops.Requantize | ops.IntAdd)
    factor = fixedpoint.dyadic(quant_of("x", value.type).scales / op.scale)
    q = factor.times(np.array(_centred(node, operands, index), np.int64)[:, None])
    return int(q.min()), int(q.max())


def _requantize(node: Node, operands: tuple[Interval, ...]) -> Interval:
    op = node.op
    assert isinstance(op, ops.Requantize | ops.IntAdd)
    parts = [_rescaled(node, operands, i) for i in range(len(node.operands))]
    lo, hi = (sum(bounds) for bounds in zip(*parts, strict=True))
    return _hull(op.finished(np.array([lo, hi], np.int64)))


def _quantize(node: Node, operands: tuple[Interval, ...]) -> Interval:
    op, x = node.op, operands[0]
    assert isinstance(op, ops.Quantize)
    ends = [x.lo - _ULPS * abs(x.lo), x.hi + _ULPS * abs(x.hi)]
    if any(map(math.isnan, ends)):
        return Interval()
    with np.errstate(over="ignore"):
        return _hull(op.evaluate(np.array(ends).astype(np.float32)))


def _dequantize(node: Node, operands: tuple[Interval, ...]) -> Interval:
    lo, hi = (np.float32(end) for end in _centred(node, operands, 0))
    scale = quant_of("x", node.inputs[0].type).scales.astype(np.float32)
    return _hull(np.stack([lo * scale, hi * scale]))


def _table(node: Node, operands: tuple[Interval, ...]) -> Interval:
    """What stands in the table between the bounds of the code that is looked up."""
    data = constant(node.operands[1])
    if data is None:
        return operands[1]
    least = node.inputs[0].tensor.dtype.min
    lo, hi = codes(node.operands[0], operands[0])
    return _hull(data.numpy()[lo - least : hi - least + 1])


def _norm(node: Node, operands: tuple[Interval, ...]) -> Interval:
    """The greatest normalised value, through constant gamma and beta, channel by channel."""
    op, types = node.op, [None if v is None else v.tensor for v in node.operands]
    assert isinstance(op, ops.IntLayerNorm | ops.IntRMSNorm | ops.ShiftLayerNorm)
    gamma, b = constant(node.operands[1]), node.operands[2] if len(node.operands) > 2 else None
    x, weight, beta = types[0], types[1], constant(b)
    if gamma is None or (b is not None and beta is None) or x is None or weight is None:
        return Interval()
    top, shift = _normalised(op, int(x.dims[-1])), op.shift(x, weight)
    scaled = np.array([[-top], [top]], object) * gamma.numpy().astype(object)  # Python's integers
    scaled = scaled + (0 if beta is None else beta.numpy().astype(object)) + (1 << (shift - 1))
    within = [min(max(int(v) >> shift, -(2**40)), 2**40) for v in scaled.reshape(-1)]
    return _hull(op.finished(np.array(within, np.int64)))


def _normalised(op: Op, channels: int) -> int:
    """A bound of |z|. With d what is normalised (C * x - sum, or C * x), |d| <= sqrt(V * n) for n = C - 1, or C.

    V is what the root r is taken of, without epsilon. Integers that aren't all equal have V >= C - 1 (not all zero:
    C), so that r >= isqrt(n + 1) = k, and sqrt(V) < r + 1 <= r * (k + 1) / k. ShiftLayerNorm: |d| <= isqrt(V).
    """
    if isinstance(op, ops.ShiftLayerNorm):
        return 1 << 30
    n = channels if isinstance(op, ops.IntRMSNorm) else channels - 1
    root = math.isqrt(n + 1)
    return (math.isqrt(n << (2 * NORM_BITS)) + 1) * (root + 1) // root + 2


def _exp(node: Node, operands: tuple[Interval, ...]) -> Interval:
    """From the table's entry for the greatest distance within a row, or 0 where places may be left out, to 255."""
    op = node.op
    assert isinstance(op, ops.IntExp)
    if len(node.inputs) > 1:
        return Interval(0.0, float(EXP_LEVELS))
    lo, hi = codes(node.operands[0], operands[0])
    return Interval(float(op.table(node.inputs[0].tensor)[min(hi - lo, EXP_ENTRIES - 1)]), float(EXP_LEVELS))


def _softmax(node: Node, _: tuple[Interval, ...]) -> Interval:
    return Interval(0.0, float(node.op.levels)) if isinstance(node.op, ops.IntSoftmax) else Interval()


def _shiftmax(node: Node, _: tuple[Interval, ...]) -> Interval:
    return Interval(0.0, float(_row_sum(node.result, {}) or 0))


def _same(_: Node, operands: tuple[Interval, ...]) -> Interval:
    return operands[0]


INT_BOUNDS: Mapping[type[Op], Bound] = {
    **dict.fromkeys((k for k in SUMS if k not in (ops.IntWeightedMean, ops.IntLinearDequantize)), _summed),
    ops.IntWeightedMean: _mean,
    **dict.fromkeys((ops.Requantize, ops.IntAdd), _requantize),
    **dict.fromkeys((ops.ScaleBy, ops.FromCodes, ops.ToCodes), _same),
    ops.Quantize: _quantize,
    ops.Dequantize: _dequantize,
    ops.IntTable: _table,
    **dict.fromkeys((ops.IntLayerNorm, ops.IntRMSNorm, ops.ShiftLayerNorm), _norm),
    ops.IntExp: _exp,
    ops.IntSoftmax: _softmax,
    ops.Shiftmax: _shiftmax,
}
"""Bounds of the results of integer ops, for the table of `planish.ir.ranges`."""
