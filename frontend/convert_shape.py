"""Ops that rearrange: axes, bounds and shapes were attributes in old operator sets and are inputs in new ones."""

from __future__ import annotations

import numpy as np

from planish.frontend.call import INT64_MAX, Call, Converted, Converter, Refusal, apply, axes_of, axis_of, integers
from planish.frontend.contents import contents_of
from planish.ir import dims, ops
from planish.ir.data import Data
from planish.ir.dims import Dim
from planish.ir.graph import Value
from planish.ir.types import TensorType

_ZERO = Data(np.zeros(1, np.float32))
_INT32_MAX = 2**31 - 1  # bounds from here on mean "to the end" in every exporter


def resolved_target(x: TensorType, target: tuple[Dim, ...], allow_zero: bool) -> tuple[Dim, ...]:
    """The shape that a Reshape of `x` to `target` gives, with 0 and -1 replaced."""
    shape = x.dims
    found = list(target)
    for i, dim in enumerate(found):
        if dim == 0 and not allow_zero:
            if i >= len(shape):
                raise Refusal("a zero in the target shape has no dimension to copy")
            found[i] = shape[i]
    if found.count(-1) > 1:
        raise Refusal("the target shape leaves several dimensions open")
    if -1 in found:
        place = found.index(-1)
        others = dims.product(dim for i, dim in enumerate(found) if i != place)
        if others == 0:
            raise Refusal("the target shape leaves a dimension of an empty tensor open")
        found[place] = dims.floordiv(x.elements, others)
    return tuple(found)


def _reshape(call: Call) -> Converted:
    x, shape = call.arg(0), call.arg(1)
    allow_zero = call.version >= 14 and call.flag_attr("allowzero")
    target = contents_of(shape)
    if target is not None and x.tensor.shape is not None:
        op = ops.Reshape.to(x.tensor, resolved_target(x.tensor, target, allow_zero))
        if op is not None:
            return apply(op, x)
    return apply(ops.DynamicReshape(allow_zero), x, shape)


def _flatten(call: Call) -> Converted:
    x, shape = call.arg(0), call.dims(0)
    axis = call.int_attr("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    op = ops.Reshape.to(x.tensor, (dims.product(shape[:axis]), dims.product(shape[axis:])))
    if op is None:
        raise Refusal("flattening of symbolic extents")
    return apply(op, x)


def _transpose(call: Call) -> Converted:
    rank = len(call.dims(0))
    perm = call.ints_attr("perm")
    return apply(ops.Transpose(tuple(reversed(range(rank))) if perm is None else perm), call.arg(0))


def _concat(call: Call) -> Converted:
    return apply(ops.Concat(axis_of(call.int_attr("axis"), len(call.dims(0)))), *call.args())


def _split(call: Call) -> Converted:
    x, shape = call.arg(0), call.dims(0)
    axis = axis_of(call.int_attr("axis", 0), len(shape))
    sizes = call.ints_of(1) if call.version >= 13 else call.ints_attr("split")
    if sizes is None:
        extent, parts = shape[axis], call.results
        if not isinstance(extent, int):
            raise Refusal("equal split of a symbolic extent")
        size = -(-extent // parts)
        sizes = (*(size,) * (parts - 1), extent - size * (parts - 1))
    if len(sizes) != call.results:
        raise Refusal(f"{len(sizes)} sizes for {call.results} results")
    made = ops.Split(axis, sizes)(x)
    return (made,) if isinstance(made, Value) else made  # type: ignore[no-any-return]


def _slice(call: Call) -> Converted:
    shape = call.dims(0)
    starts: tuple[Dim, ...] | None
    ends: tuple[Dim, ...] | None
    if call.version < 10:
        starts, ends, axes, steps = call.ints_attr("starts"), call.ints_attr("ends"), call.ints_attr("axes"), None
    else:
        starts, ends, axes, steps = call.contents(1), call.contents(2), call.ints_of(3), call.ints_of(4)
    if starts is None or ends is None:
        raise Refusal("bounds are missing")
    axes = tuple(range(len(starts))) if axes is None else tuple(axis_of(axis, len(shape)) for axis in axes)
    steps = (1,) * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps) == len(set(axes)):
        raise Refusal("bounds, axes and steps differ in number")
    bounds = sorted(
        (axis, *_bounds(start, end, step, shape[axis]), step)
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True)
    )
    return apply(
        ops.Slice(
            tuple(start for _, start, _, _ in bounds),
            tuple(end for _, _, end, _ in bounds),
            tuple(axis for axis, _, _, _ in bounds),
            tuple(step for _, _, _, step in bounds),
        ),
        call.arg(0),
    )


def _bounds(start: Dim, end: Dim, step: int, extent: Dim) -> tuple[int, int]:
    """Bounds in one spelling: within a static extent, counted from the front; an open end is the largest integer."""
    if step > 0 and end == extent:
        end = INT64_MAX
    first, last = integers((start, end))
    if step > 0 and isinstance(extent, int):
        first, last = (min(max(b + extent if b < 0 else b, 0), extent) for b in (first, last))
        return first, max(first, last)
    return first, INT64_MAX if step > 0 and last >= _INT32_MAX else last


def _gather(call: Call) -> Converted:
    return apply(ops.Gather(axis_of(call.int_attr("axis", 0), len(call.dims(0)))), call.arg(0), call.arg(1))


def _squeeze(call: Call) -> Converted:
    shape = call.dims(0)
    axes = call.ints_of(1) if call.version >= 13 else call.ints_attr("axes")
    if axes is None:
        integers(shape)  # a symbolic dimension may be one
        axes = tuple(i for i, dim in enumerate(shape) if dim == 1)
    return apply(ops.Squeeze(axes_of(axes, len(shape))), call.arg(0))


def _unsqueeze(call: Call) -> Converted:
    axes = call.ints_of(1) if call.version >= 13 else call.ints_attr("axes")
    if axes is None:
        raise Refusal("axes are missing")
    return apply(ops.Unsqueeze(axes_of(axes, len(call.dims(0)) + len(axes))), call.arg(0))


def _tile(call: Call) -> Converted:
    repeats = call.ints_of(1)
    if repeats is None:
        raise Refusal("repeats are missing")
    return apply(ops.Tile(repeats), call.arg(0))


def _shape(call: Call) -> Converted:
    rank = len(call.dims(0))
    whole = apply(ops.Shape(), call.arg(0))
    first, last = call.int_attr("start", 0), call.int_attr("end", rank)
    first, last = (min(max(b + rank if b < 0 else b, 0), rank) for b in (first, last))
    if (first, last) == (0, rank):
        return whole
    return apply(ops.Slice((first,), (max(first, last),), (0,), (1,)), whole)


def _size(call: Call) -> Converted:
    return apply(ops.Size(), call.arg(0))


def _expand(call: Call) -> Converted:
    return apply(ops.Expand(), call.arg(0), call.arg(1))


def _range(call: Call) -> Converted:
    return apply(ops.Range(), *(call.arg(i) for i in range(3)))


def _constant_of_shape(call: Call) -> Converted:
    value = call.attrs.get("value", _ZERO)
    if not isinstance(value, Data):
        raise Refusal("attribute value is no tensor")
    return apply(ops.ConstantOfShape(value), call.arg(0))


def _pad(call: Call) -> Converted:
    x, shape = call.arg(0), call.dims(0)
    value: float | int | None
    if call.version < 11:
        pads, value = call.ints_attr("pads"), call.float_attr("value", 0.0)
    else:
        pads, value = call.ints_of(1), call.number(2)
    if pads is None:
        raise Refusal("pads are missing")
    axes = call.ints_of(3) if call.version >= 18 else None
    if axes is not None:
        pads = _spread(pads, tuple(axis_of(axis, len(shape)) for axis in axes), len(shape))
    if value is None:
        value = 0.0 if x.tensor.dtype.is_float else 0
    return apply(ops.Pad(pads, call.text_attr("mode", "constant"), value), x)


def _spread(pads: tuple[int, ...], axes: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Pads of some axes as pads of all."""
    full = [0] * (2 * rank)
    for i, axis in enumerate(axes):
        full[axis], full[rank + axis] = pads[i], pads[len(axes) + i]
    return tuple(full)


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "Reshape"): _reshape,
    ("", "Flatten"): _flatten,
    ("", "Transpose"): _transpose,
    ("", "Concat"): _concat,
    ("", "Split"): _split,
    ("", "Slice"): _slice,
    ("", "Gather"): _gather,
    ("", "Squeeze"): _squeeze,
    ("", "Unsqueeze"): _unsqueeze,
    ("", "Tile"): _tile,
    ("", "Shape"): _shape,
    ("", "Size"): _size,
    ("", "Expand"): _expand,
    ("", "Range"): _range,
    ("", "ConstantOfShape"): _constant_of_shape,
    ("", "Pad"): _pad,
}
