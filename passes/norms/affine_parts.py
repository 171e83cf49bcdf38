"""Affine maps of channels that are spelled out: what they amount to, and how many ops they take.

Norms that were trained to be affine in inference come like that: Unified Normalization as x * a + d, BatchNorm, and
RepBN as BatchNorm(x) + eta * x (SLAB, arXiv 2405.11582), whose merge is a = gamma / sigma + eta, d = beta - mean *
gamma / sigma.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planish.ir import ops
from planish.ir.graph import Node, Value
from planish.ir.op import Const, constant
from planish.passes.raising.batch_norm import affine_of
from planish.passes.raising.parameters import channels, wide
from planish.passes.raising.weights import Affine
from planish.passes.rewrite import Rejection

_DEEPEST = 8  # ops in a row that are looked through: sums of sums, such as residual streams, are no norms
_ARITHMETIC = (ops.Mul, ops.Div, ops.Add, ops.Sub)


@dataclass(frozen=True)
class AffinePart:
    """value = affine(source), channel by channel along `axis`, computed by `nodes`."""

    source: Value
    axis: int
    affine: Affine
    nodes: frozenset[Node]


def affine_parts(value: Value) -> list[AffinePart]:
    """The affine maps of channels that end in `value`, one for each axis that channels may lie along, largest first."""
    if value.node is None or not value.tensor.dtype.is_float:
        return []
    extents = [(axis, count) for axis, count in enumerate(value.tensor.dims) if isinstance(count, int)]
    found = [_part(value, axis, count) for axis, count in extents]
    return sorted((part for part in found if part.nodes), key=lambda part: -len(part.nodes))


def _part(value: Value, axis: int, count: int, depth: int = _DEEPEST) -> AffinePart:
    """The map that ends in `value`, of at most `depth` ops in a row; the identity where its op is none."""
    identity = AffinePart(value, axis, Affine(np.ones(count), np.zeros(count)), frozenset())
    node = value.node
    if node is None or isinstance(node.op, Const) or depth == 0:
        return identity
    if isinstance(node.op, ops.BatchNorm) and axis == 1:
        return _batch_norm(node, count, depth) or identity
    if not isinstance(node.op, _ARITHMETIC):
        return identity
    left, right = node.inputs
    if constant(right) is not None:
        return _with_constant(node, left, right, axis, count, depth) or identity
    if constant(left) is not None:
        flipped = isinstance(node.op, ops.Mul | ops.Add | ops.Sub)
        return (_with_constant(node, right, left, axis, count, depth) if flipped else None) or identity
    return _sum(node, axis, count, depth) or identity


def _batch_norm(node: Node, count: int, depth: int) -> AffinePart | None:
    x, *parameters = node.inputs
    arrays = [constant(parameter) for parameter in parameters]
    if any(array is None for array in arrays):
        return None
    gamma, beta, mean, var = (array.numpy() for array in arrays if array is not None)
    assert isinstance(node.op, ops.BatchNorm)
    return _after(_part(x, 1, count, depth - 1), affine_of(gamma, beta, mean, var, node.op.eps), node)


def _with_constant(node: Node, x: Value, parameter: Value, axis: int, count: int, depth: int) -> AffinePart | None:
    """x with a constant multiplied, divided by, added or subtracted."""
    data = constant(parameter)
    if data is None or x.tensor.dims != node.result.tensor.dims:
        return None
    try:
        c = wide(channels(data.numpy(), len(x.tensor.dims), count, axis))
    except Rejection:
        return None
    ones, zeros = np.ones(count), np.zeros(count)
    with np.errstate(all="ignore"):
        match node.op:
            case ops.Mul():
                step = Affine(c, zeros)
            case ops.Div():
                step = Affine(1 / c, zeros)
            case ops.Add():
                step = Affine(ones, c)
            case _:
                step = Affine(ones, -c) if parameter is node.inputs[1] else Affine(-ones, c)
    return _after(_part(x, axis, count, depth - 1), step, node)


def _sum(node: Node, axis: int, count: int, depth: int) -> AffinePart | None:
    """The sum or difference of two affine maps of one tensor."""
    if not isinstance(node.op, ops.Add | ops.Sub):
        return None
    left, right = (_part(operand, axis, count, depth - 1) for operand in node.inputs)
    if left.source is not right.source or not (left.nodes or right.nodes):
        return None
    if any(v.tensor.dims != node.result.tensor.dims for v in (*node.inputs, left.source)):
        return None
    sign = 1 if isinstance(node.op, ops.Add) else -1
    total = Affine(left.affine.factor + sign * right.affine.factor, left.affine.shift + sign * right.affine.shift)
    return AffinePart(left.source, axis, total, left.nodes | right.nodes | {node})


def _after(inner: AffinePart, step: Affine, node: Node) -> AffinePart:
    """The map `inner` with `step` behind it: (a2, d2) o (a1, d1) = (a1 a2, a2 d1 + d2)."""
    affine = Affine(step.factor * inner.affine.factor, step.factor * inner.affine.shift + step.shift)
    return AffinePart(inner.source, inner.axis, affine, inner.nodes | {node})
