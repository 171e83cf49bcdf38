"""Ops that move elements without computing: those that do nothing, undo each other, or can be said in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.ir.dims import Dim
from planish.ir.graph import Value
from planish.ir.op import constant
from planish.ir.ops import (
    Add,
    And,
    Div,
    DynamicReshape,
    Equal,
    Expand,
    Gather,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
    Max,
    Min,
    Mod,
    Mul,
    Or,
    Pad,
    Pow,
    Reshape,
    Slice,
    Squeeze,
    Sub,
    Tile,
    Transpose,
    Unsqueeze,
    Where,
    Xor,
)
from planish.ir.types import TensorType
from planish.passes.base import RulePass
from planish.passes.cleanup.numbers import same_shape
from planish.passes.pattern import attr, either
from planish.passes.rewrite import Rule, reject, rule

_RESHAPES = (Reshape, DynamicReshape, Squeeze, Unsqueeze)


@rule(lambda x: Transpose(perm=attr("perm"))(x))
def drop_transpose(x: Value, perm: tuple[int, ...]) -> object:
    """Transpose(perm=(0, 1, ..))(x) -> x"""
    if perm != tuple(range(len(perm))):
        reject(f"perm {perm} moves axes")
    return x


@rule(lambda x: Transpose(perm=attr("outer"))(Transpose(perm=attr("inner"))(x)), shared=True)
def merge_transposes(x: Value, outer: tuple[int, ...], inner: tuple[int, ...]) -> object:
    """Transpose(perm=q)(Transpose(perm=p)(x)) -> Transpose(perm=p[q])(x), or x"""
    perm = tuple(inner[axis] for axis in outer)
    return x if perm == tuple(range(len(perm))) else Transpose(perm=perm)(x)


def _transpose_of_merged(y: Value) -> object:
    return Reshape(shape=attr("after"))(Transpose(perm=attr("perm"))(y))


@rule(_transpose_of_merged)
def transpose_unmerged(y: Value, perm: tuple[int, ...], root: Value, **_: object) -> object:
    """Reshape(Transpose(Reshape(x))) -> Transpose(Reshape(x)), or Transpose(x): leading axes are one meanwhile"""
    if y.node is None or not isinstance(y.op, Reshape):
        reject("no reshape before it")
    x = y.node.inputs[0]
    before, between, after = x.tensor.dims, y.tensor.dims, root.tensor.dims
    rest = len(perm) - 1  # axes that move
    lead = len(after) - rest
    if rest < 1 or perm[0] != 0 or lead < 2:
        reject("no leading axes are one meanwhile and stay first")
    if between[1:] != before[len(before) - rest :] or after[lead:] != tuple(between[axis] for axis in perm[1:]):
        reject("the reshapes change other axes too")
    dims = (*after[:lead], *between[1:])
    split = None if dims == before else Reshape.to(x.tensor, dims)
    if dims != before and split is None:
        reject(f"{before} to {dims} can't be said by one Reshape with constants")
    return Transpose(perm=(*range(lead), *(axis + lead - 1 for axis in perm[1:])))(x if split is None else split(x))


@rule(lambda x: Transpose(perm=attr("perm"))(x))
def reshape_instead_of_transpose(x: Value, perm: tuple[int, ...], root: Value) -> object:
    """Transpose(perm=p)(x) -> Reshape(x), where p moves only axes of extent 1, beside another reshape"""
    moved = [axis for axis in perm if x.tensor.dims[axis] != 1]
    if moved != sorted(moved):
        reject(f"perm {perm} moves axes that are longer than 1")
    if not isinstance(x.op, _RESHAPES) and not any(isinstance(user.op, _RESHAPES) for user in root.users):
        reject("no reshape before or after it would take it in")
    return _reshape(x, root)


@rule(
    lambda x, y: either(
        Reshape(shape=attr("shape"))(x), Squeeze(axes=attr("axes"))(x), DynamicReshape(allow_zero=attr("zero"))(x, y)
    )
)
def drop_reshape(x: Value, root: Value, **_: object) -> object:
    """Reshape(x) -> x, where the shape stays"""
    same_shape(x, root)
    return x


@rule(lambda x, shape: DynamicReshape(allow_zero=attr("zero"))(x, shape))
def fix_reshape(x: Value, shape: Value, zero: bool, root: Value) -> object:
    """DynamicReshape(x, shape) -> Reshape(shape=..)(x), where the contents of `shape` can be said with 0 and one -1"""
    return _reshape(x, root)


@rule(lambda x: Reshape(shape=attr("shape"))(x))
def spell_reshape(x: Value, shape: tuple[int, ...], root: Value) -> object:
    """Reshape(x) -> Reshape(x), spelled with numbers where they are known, then 0, then -1"""
    new = Reshape.to(x.tensor, root.tensor.dims)
    if new is None or new.shape == shape:
        reject(f"{shape} is spelled as it should be")
    return new(x)


def _outer(y: Value) -> object:
    return either(Reshape(shape=attr("shape"))(y), Squeeze(axes=attr("axes"))(y), Unsqueeze(axes=attr("axes"))(y))


@rule(_outer)
def merge_reshapes(y: Value, root: Value, **_: object) -> object:
    """Reshape(Reshape(x)) -> Reshape(x), or x; also for Squeeze and Unsqueeze"""
    if y.node is None or not isinstance(y.op, _RESHAPES):
        reject("its operand is no reshape")
    x = y.node.inputs[0]
    if x.tensor.dims == root.tensor.dims:
        return x
    inner, outer = y.op, root.op
    if isinstance(outer, Unsqueeze) and isinstance(inner, Unsqueeze):
        old = [axis for axis in range(len(root.tensor.dims)) if axis not in outer.axes]
        return Unsqueeze(axes=tuple(sorted((*outer.axes, *(old[axis] for axis in inner.axes)))))(x)
    if isinstance(outer, Squeeze) and isinstance(inner, Squeeze):
        old = [axis for axis in range(len(x.tensor.dims)) if axis not in inner.axes]
        return Squeeze(axes=tuple(sorted((*inner.axes, *(old[axis] for axis in outer.axes)))))(x)
    return _reshape(x, root)


@rule(lambda x, shape: Expand()(x, shape))
def drop_expand(x: Value, shape: Value, root: Value) -> object:
    """Expand(x, shape) -> x, where the shape stays"""
    same_shape(x, root)
    return x


_BINARY = (Add(), Sub(), Mul(), Div(), Pow(), Max(), Min(), Mod(fmod=attr("fmod")), And(), Or(), Xor())
_COMPARISONS = (Equal(), Less(), LessOrEqual(), Greater(), GreaterOrEqual())


def broadcasting(x: Value, y: Value, z: Value) -> object:
    return either(*(op(x, y) for op in (*_BINARY, *_COMPARISONS)), Where()(x, y, z))


@rule(broadcasting)
def let_broadcast(x: Value, y: Value, z: Value | None, root: Value, **_: object) -> object:
    """op(Expand(x, shape), y) -> op(x, y) for elementwise ops that broadcast x to the same shape"""
    node = root.node
    operands = [] if node is None else list(node.operands)
    found = False
    for place, operand in enumerate(operands):
        if operand is None or operand.node is None or not isinstance(operand.op, Expand):
            continue
        trial = [*operands[:place], operand.node.operands[0], *operands[place + 1 :]]
        if node is not None and _shapes(node.op.infer_types(trial)) == _shapes((root.type,)):
            operands, found = trial, True
    if node is None or not found:
        reject("no operand is an Expand that broadcasting could do as well")
    return node.op(*operands)


@rule(lambda x: Slice(starts=attr("starts"), ends=attr("ends"), axes=attr("axes"), steps=attr("steps"))(x))
def drop_slice(x: Value, root: Value, axes: tuple[int, ...], steps: tuple[int, ...], **_: object) -> object:
    """Slice(x) -> x, where all is taken in order"""
    same_shape(x, root)
    for axis, step in zip(axes, steps, strict=True):
        if step != 1 and x.tensor.dims[axis] not in (0, 1):
            reject(f"step {step} along axis {axis}")
    return x


@rule(lambda x: Slice(starts=attr("starts"), ends=attr("ends"), axes=attr("axes"), steps=attr("steps"))(x))
def spell_slice(x: Value, root: Value, **_: object) -> object:
    """Slice(x) -> Slice(x), without axes that it takes whole, and with bounds between 0 and a static extent"""
    op, dims = root.op, x.tensor.dims
    if not isinstance(op, Slice):
        return None
    bounds = []
    for start, end, axis, step in zip(op.starts, op.ends, op.axes, op.steps, strict=True):
        extent = dims[axis]
        if step == 1 and root.tensor.dims[axis] == extent:
            continue
        if isinstance(extent, int) and step > 0:
            start, end = _spelled(range(*slice(start, end, step).indices(extent)))
        bounds.append((start, end, axis, step))
    new = _slice(bounds)
    if new is None or new == op:
        reject("it is spelled as it should be")
    return new(x)


def _two_slices(x: Value) -> object:
    inner = Slice(starts=attr("first"), ends=attr("last"), axes=attr("along"), steps=attr("every"))(x)
    return Slice(starts=attr("starts"), ends=attr("ends"), axes=attr("axes"), steps=attr("steps"))(inner)


@rule(_two_slices, shared=True)
def merge_slices(
    x: Value,
    first: tuple[int, ...],
    last: tuple[int, ...],
    along: tuple[int, ...],
    every: tuple[int, ...],
    starts: tuple[int, ...],
    ends: tuple[int, ...],
    axes: tuple[int, ...],
    steps: tuple[int, ...],
) -> object:
    """Slice(Slice(x)) -> Slice(x), with positive steps and static extents along axes that both cut"""
    bounds = {axis: (a, b, axis, s) for a, b, axis, s in zip(first, last, along, every, strict=True)}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if axis not in bounds:
            bounds[axis] = (start, end, axis, step)
            continue
        inner_start, inner_end, _, inner_step = bounds[axis]
        extent = x.tensor.dims[axis]
        if not isinstance(extent, int):
            reject(f"axis {axis} has the symbolic extent {extent}")
        if step < 0 or inner_step < 0:
            reject(f"a step along axis {axis} is negative")
        taken = range(*slice(inner_start, inner_end, inner_step).indices(extent))
        taken = taken[slice(start, end, step)]
        bounds[axis] = (*_spelled(taken), axis, taken.step)
    merged = _slice([bounds[axis] for axis in sorted(bounds)])
    return None if merged is None else merged(x)


@rule(lambda x, indices: Gather(axis=attr("axis"))(x, indices))
def drop_gather(x: Value, indices: Value, axis: int, root: Value) -> object:
    """Gather(axis)(x, [0, 1, .., extent - 1]) -> x"""
    same_shape(x, root)
    data = constant(indices)
    if data is None or len(data.type.dims) != 1:
        reject("the indices are no constant vector")
    if not np.array_equal(data.numpy(), np.arange(data.size)):
        reject("the indices aren't 0, 1, .. in order")
    return x


@rule(lambda x: Tile(repeats=attr("repeats"))(x))
def drop_tile(x: Value, repeats: tuple[int, ...]) -> object:
    """Tile(repeats=(1, 1, ..))(x) -> x"""
    if any(count != 1 for count in repeats):
        reject(f"repeats {repeats} aren't all 1")
    return x


@rule(lambda x: Pad(pads=attr("pads"), mode=attr("mode"), value=attr("value"))(x))
def drop_pad(x: Value, pads: tuple[int, ...], **_: object) -> object:
    """Pad(pads=(0, 0, ..))(x) -> x"""
    if any(pads):
        reject(f"pads {pads} aren't all 0")
    return x


def _reshape(x: Value, root: Value) -> object:
    """x under the shape of root, by the canonical Reshape. Rejects if there is none."""
    if x.tensor.dims == root.tensor.dims:
        return x
    new = Reshape.to(x.tensor, root.tensor.dims)
    if new is None:
        reject(f"{x.type} to {root.type} can't be said by one Reshape with constants")
    return new(x)


def _shapes(types: Sequence[object]) -> list[tuple[Dim, ...] | None]:
    return [type_.shape if isinstance(type_, TensorType) else None for type_ in types]


def _spelled(taken: range) -> tuple[int, int]:
    """Bounds of a slice that takes the same, with the least end."""
    return (taken[0], taken[-1] + 1) if taken else (0, 0)


def _slice(bounds: Sequence[tuple[int, int, int, int]]) -> Slice | None:
    """The Slice of the given (start, end, axis, step); None if there are none."""
    if not bounds:
        return None
    starts, ends, axes, steps = zip(*bounds, strict=True)
    return Slice(starts=starts, ends=ends, axes=axes, steps=steps)


_RULES: tuple[Rule, ...] = (
    drop_transpose,
    merge_transposes,
    transpose_unmerged,
    reshape_instead_of_transpose,
    drop_reshape,
    fix_reshape,
    merge_reshapes,
    spell_reshape,
    drop_expand,
    let_broadcast,
    drop_slice,
    spell_slice,
    merge_slices,
    drop_gather,
    drop_tile,
    drop_pad,
)


@dataclass(frozen=True)
class SimplifyLayout(RulePass):
    """Drop reshapes, transposes, slices and expansions that do nothing; merge those that follow each other."""

    name: ClassVar[str] = "simplify-layout"
    rule_set: ClassVar[tuple[Rule, ...]] = _RULES
