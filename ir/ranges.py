"""Interval analysis: bounds that every element of a value keeps, whatever the inputs.

Bounds of a result follow from bounds of the operands by interval arithmetic, op by op; an op without a line in the
table gets the range of its dtype. Sound for real arithmetic; floating-point rounding may exceed a bound by an ulp.
Bounds of quantized values are of stored codes, and exact integer arithmetic never exceeds them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from planish.ir import ops
from planish.ir.graph import Graph, Node, Value
from planish.ir.int_bounds import INT_BOUNDS
from planish.ir.interval import Bound as Bound
from planish.ir.interval import Interval as Interval
from planish.ir.interval import dtype_range as dtype_range
from planish.ir.op import Const, Op


def ranges(graph: Graph, inputs: Mapping[str, Interval] | None = None) -> dict[Value, Interval]:
    """Bounds of every tensor value. `inputs` narrows graph inputs by name, as calibration found them."""
    found: dict[Value, Interval] = {}
    for value in graph.inputs:
        found[value] = (inputs or {}).get(value.hint, dtype_range(value))
    for node in graph:
        operands = tuple(Interval() if v is None else found[v] for v in node.operands)
        bound = _BOUNDS.get(type(node.op))
        for result in node.results:
            natural = dtype_range(result)
            found[result] = natural if bound is None else bound(node, operands).meet(natural)
    return found


def _const(node: Node, _: tuple[Interval, ...]) -> Interval:
    op = node.op
    if (
        not isinstance(op, Const)
        or op.data.size == 0
        or not (op.data.type.dtype.is_float or op.data.type.dtype.is_integer)
    ):
        return Interval()
    array = op.data.numpy()
    return Interval.hull(float(np.min(array)), float(np.max(array)))


def _product(x: Interval, y: Interval) -> Interval:
    return Interval.hull(*(_times(a, b) for a in (x.lo, x.hi) for b in (y.lo, y.hi)))


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b  # a bound of zero stays zero against an unbounded operand


def _quotient(x: Interval, y: Interval) -> Interval:
    if y.lo <= 0 <= y.hi:
        return Interval()
    return Interval.hull(
        *(a / b if not (math.isinf(a) and math.isinf(b)) else math.nan for a in (x.lo, x.hi) for b in (y.lo, y.hi))
    )


def _linear(node: Node, operands: tuple[Interval, ...]) -> Interval:
    """Bound of x @ w + b from the signs of constant weights, column by column."""
    w = node.operands[1]
    op = None if w is None else w.op
    if not isinstance(op, Const) or not math.isfinite(operands[0].magnitude):
        return Interval()
    weight = op.data.numpy().astype(np.float64)
    positive, negative = np.maximum(weight, 0).sum(axis=-2), np.minimum(weight, 0).sum(axis=-2)
    lo = positive * operands[0].lo + negative * operands[0].hi
    hi = positive * operands[0].hi + negative * operands[0].lo
    bias = operands[2] if len(operands) > 2 and node.operands[2] is not None else Interval(0.0, 0.0)
    return Interval(float(lo.min()) + bias.lo, float(hi.max()) + bias.hi)


def _square_bound(x: Interval) -> Interval:
    low = 0.0 if x.lo <= 0 <= x.hi else min(x.lo * x.lo, x.hi * x.hi)
    return Interval(low, _times(x.magnitude, x.magnitude))


def _mul(node: Node, operands: tuple[Interval, ...]) -> Interval:
    x, y = operands
    return _square_bound(x) if node.operands[0] is node.operands[1] else _product(x, y)


def _clip(node: Node, operands: tuple[Interval, ...]) -> Interval:
    op = node.op
    if not isinstance(op, ops.Clip):
        return Interval()
    lo = -math.inf if op.lo is None else float(op.lo)
    hi = math.inf if op.hi is None else float(op.hi)
    return Interval(min(max(operands[0].lo, lo), hi), min(max(operands[0].hi, lo), hi))


def _max_pool(node: Node, operands: tuple[Interval, ...]) -> Interval:
    """Dilated taps may all fall into the padding, which counts as the lowest number."""
    op = node.op
    dilated = isinstance(op, ops.MaxPool) and any(d != 1 for d in op.dilations) and any(op.pads)
    return Interval(-math.inf, operands[0].hi) if dilated else operands[0]


def _average_pool(node: Node, operands: tuple[Interval, ...]) -> Interval:
    op = node.op
    zeros = isinstance(op, ops.AveragePool) and op.count_include_pad and any(op.pads)
    return operands[0].union(Interval(0.0, 0.0)) if zeros else operands[0]


def _same(_: Node, operands: tuple[Interval, ...]) -> Interval:
    return operands[0]


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf


_BOUNDS: Mapping[type[Op], Bound] = {
    Const: _const,
    **dict.fromkeys(
        (ops.Identity, ops.Reshape, ops.DynamicReshape, ops.Transpose, ops.Slice, ops.Split, ops.Squeeze, ops.Unsqueeze)
        + (ops.Gather, ops.Expand, ops.Tile, ops.ReduceMean, ops.ReduceMax, ops.ReduceMin),
        _same,
    ),
    ops.Concat: lambda _, xs: Interval(min(x.lo for x in xs), max(x.hi for x in xs)),
    ops.Add: lambda _, xs: Interval(xs[0].lo + xs[1].lo, xs[0].hi + xs[1].hi),
    ops.Sub: lambda _, xs: Interval(xs[0].lo - xs[1].hi, xs[0].hi - xs[1].lo),
    ops.Mul: _mul,
    ops.Div: lambda _, xs: _quotient(xs[0], xs[1]),
    ops.Neg: lambda _, xs: Interval(-xs[0].hi, -xs[0].lo),
    ops.Abs: lambda _, xs: Interval(
        0.0 if xs[0].lo <= 0 <= xs[0].hi else min(map(abs, (xs[0].lo, xs[0].hi))), xs[0].magnitude
    ),
    ops.Max: lambda _, xs: Interval(max(xs[0].lo, xs[1].lo), max(xs[0].hi, xs[1].hi)),
    ops.Min: lambda _, xs: Interval(min(xs[0].lo, xs[1].lo), min(xs[0].hi, xs[1].hi)),
    ops.Where: lambda _, xs: xs[1].union(xs[2]),
    ops.Binarize: lambda _, xs: Interval(-1.0, 1.0),
    ops.Relu: lambda _, xs: Interval(max(xs[0].lo, 0.0), max(xs[0].hi, 0.0)),
    ops.Sqrt: lambda _, xs: Interval(math.sqrt(max(xs[0].lo, 0.0)), math.sqrt(max(xs[0].hi, 0.0))),
    ops.Exp: lambda _, xs: xs[0].map(_exp),
    ops.Tanh: lambda _, xs: xs[0].map(math.tanh),
    ops.Erf: lambda _, xs: xs[0].map(math.erf),
    ops.Sigmoid: lambda _, xs: xs[0].map(lambda x: 1 / (1 + _exp(-x))),
    ops.Softmax: lambda _, xs: Interval(0.0, 1.0),
    ops.Sin: lambda _, xs: Interval(-1.0, 1.0),
    ops.Cos: lambda _, xs: Interval(-1.0, 1.0),
    ops.Gelu: lambda _, xs: Interval(max(-0.17004, min(xs[0].lo, 0.0)), max(xs[0].hi, 0.0)),
    ops.Clip: _clip,
    ops.Cast: lambda _, xs: xs[0],
    ops.Linear: _linear,
    ops.MatMul: _linear,
    ops.MaxPool: _max_pool,
    ops.AveragePool: _average_pool,
    **INT_BOUNDS,
}
