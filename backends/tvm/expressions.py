"""Ops that give each element of their result from few elements of their operands, as expressions of TIR.

Those on codes and the movement that can be undone are here; plain numbers and other movement have files of their own.
Integer ops state the formulas of `planish.ir.fixedpoint`; products of 64 bits have factors of 32, which is fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.float_expressions import FLOAT_POINTWISE
from planish.backends.tvm.float_math import is_nan
from planish.backends.tvm.moves import MOVES, part
from planish.backends.tvm.scope import Expr, Index, Scope, extents
from planish.backends.tvm.shift_gelu import shift_gelu
from planish.ir import ops
from planish.ir.graph import Node, Value
from planish.ir.op import Op, constant
from planish.ir.ops.quantize import _ToCodes, quant_of, rescaling
from planish.ir.types import TensorType


@dataclass
class Reader:
    """Elements of values: loaded where they are stored, given by the kernel, or computed on the spot.

    given: values that the kernel holds itself, as functions of the index.
    rescaled: operands, by node and position, that the kernel has brought to the scale of the result (int32).
    """

    scope: Scope
    stored: frozenset[Value]
    given: Mapping[Value, Callable[[Index], Expr]]
    rescaled: Mapping[tuple[Node, int], Callable[[Index], Expr]] = field(default_factory=dict)

    def at(self, value: Value, index: Index) -> Expr:
        """The element of `value` at `index`, in its storage dtype."""
        if value in self.given:
            return self.given[value](index)
        node = value.node
        if node is None or value in self.stored or constant(value) is not None:
            return self.scope.value(value)[index or (0,)]
        if isinstance(node.op, ops.Split):
            return self.at(node.inputs[0], part(value, index))
        return EXPRESSIONS[type(node.op)](node, self, index)

    def operand(self, node: Node, position: int, index: Index) -> Expr:
        """The element of an operand that broadcasts to the result of `node`."""
        value = node.operands[position]
        assert value is not None
        return self.at(value, broadcast(index, extents(value.tensor)))


Expression = Callable[[Node, Reader, Index], Expr]


def broadcast(index: Index, shape: tuple[int, ...]) -> Index:
    """Where an array of `shape` is read for `index` of a result that it broadcasts to."""
    tail = index[len(index) - len(shape) :]
    return tuple(0 if extent == 1 else i for i, extent in zip(tail, shape, strict=True))


def unravelled(flat: Expr, shape: Sequence[int]) -> Index:
    """The index of an element of an array of that shape, from its number in order."""
    index: list[Expr] = []
    long = [axis for axis, extent in enumerate(shape) if extent > 1]
    for axis in range(len(shape)):
        if axis not in long:
            index.append(0)
            continue
        step = math.prod(shape[axis + 1 :])
        place = flat if step == 1 else T.floordiv(flat, step)
        index.append(place if axis == long[0] else T.floormod(place, shape[axis]))
    return tuple(index)


def shape_of(value: Value) -> tuple[int, ...]:
    return extents(value.tensor, value.hint)


def identity(node: Node, reader: Reader, index: Index) -> Expr:
    return reader.at(node.inputs[0], index)


# codes


def rescaled(node: Node, position: int, reader: Reader, index: Index) -> tuple[Expr, float]:
    """An operand on the scale of the result, without zero point, and how large it can be at most."""
    value, scope = node.inputs[position], reader.scope
    type_: TensorType = value.tensor
    own = broadcast(index, shape_of(value))
    if (node, position) in reader.rescaled:
        return reader.rescaled[node, position](own), largest(node, position)
    zero, axis = quant_of("x", type_).zero, quant_of("x", type_).axis
    code = reader.at(value, own)
    wide = T.cast(T.cast(code, "int32"), "int64")
    if zero and type_.dtype.bits < 32:
        wide = T.cast(centred(node, position, code, scope), "int64")
    elif zero:
        wide = wide - scope.number((node, position, "zero"), zero)
    multiplier, half, shift = dyadic(node, position, scope)
    factor = T.cast(multiplier if axis is None else multiplier[own[axis]], "int64")
    return (wide * factor + half) >> shift, largest(node, position)


def dyadic(node: Node, position: int, scope: Scope, zero: int = 0) -> tuple[Expr, Expr, Expr]:
    """Multiplier (int32, or an array of one per channel), addend and shift (int64) of an operand's rescaling.

    The addend is half a unit, and `zero` units.
    """
    assert isinstance(node.op, _ToCodes)
    type_ = node.inputs[position].tensor
    factor = rescaling(type_, node.op.scale)
    multipliers = factor.multiplier.reshape(-1)
    if quant_of("x", type_).axis is None:
        multiplier = T.cast(scope.number((node, position, "multiplier"), multipliers[0]), "int32")
    else:
        multiplier = scope.constant((node, position, "multiplier"), multipliers.astype(np.int32))
    half = scope.number((node, position, "half", zero), (1 << (factor.shift - 1)) + (zero << factor.shift))
    return multiplier, half, scope.number((node, position, "shift"), factor.shift)


def largest(node: Node, position: int) -> float:
    """A bound of an operand on the scale of the result."""
    assert isinstance(node.op, _ToCodes)
    type_ = node.inputs[position].tensor
    zero, factor = quant_of("x", type_).zero, rescaling(type_, node.op.scale)
    return (
        max(type_.dtype.max - zero, zero - type_.dtype.min) * float(np.max(factor.multiplier)) / 2.0**factor.shift + 1
    )


def finished(node: Node, q: Expr, bound: float, scope: Scope) -> Expr:
    """An int64 code without zero point, given it and saturated; in 32 bits where |q| <= bound allows it."""
    op = node.op
    assert isinstance(op, _ToCodes)
    width = "int32" if bound + abs(op.zero) < 2**31 else "int64"
    with_zero = T.cast(q, width)  # an operand that the kernel rescaled is int32, since its bound allowed it
    if op.zero:
        with_zero = with_zero + T.cast(scope.number((node, "zero"), op.zero), width)
    clipped = T.min(T.max(with_zero, T.Cast(width, op.to.min)), T.Cast(width, op.to.max))
    return T.cast(clipped, str(op.to.storage))


def requantize(node: Node, reader: Reader, index: Index) -> Expr:
    return finished(node, *rescaled(node, 0, reader, index), reader.scope)


def int_add(node: Node, reader: Reader, index: Index) -> Expr:
    (a, most_a), (b, most_b) = rescaled(node, 0, reader, index), rescaled(node, 1, reader, index)
    width = "int32" if most_a + most_b < 2**31 else "int64"
    a, b = T.cast(a, width), T.cast(b, width)
    return finished(node, a + b, most_a + most_b, reader.scope)


def int_table(node: Node, reader: Reader, index: Index) -> Expr:
    x, table = node.inputs
    return reader.at(table, (T.cast(reader.operand(node, 0, index), "int32") - x.tensor.dtype.min,))


def int_mul(node: Node, reader: Reader, index: Index) -> Expr:
    a, b = (centred(node, i, reader.operand(node, i, index), reader.scope) for i in (0, 1))
    return a * b


def centred(node: Node, position: int, code: Expr, scope: Scope) -> Expr:
    """A code of an operand less its zero point, as int32; for operands of at most 16 bits."""
    zero = quant_of("x", node.inputs[position].type).zero
    wide = T.cast(code, "int32")
    return wide - T.cast(scope.number((node, position, "zero"), zero), "int32") if zero else wide


def quantize(node: Node, reader: Reader, index: Index) -> Expr:
    op = node.op
    assert isinstance(op, ops.Quantize)
    rounded = T.nearbyint(reader.operand(node, 0, index) / T.float32(float(np.float32(op.scale))))
    low, high = T.float32(op.to.min - op.zero), T.float32(op.to.max - op.zero)
    real = T.Select(is_nan(rounded), T.float32(0), T.min(T.max(rounded, low), high))
    return T.cast(T.cast(real, "int32") + op.zero, str(op.to.storage))


def dequantize(node: Node, reader: Reader, index: Index) -> Expr:
    quant = quant_of("x", node.inputs[0].type)
    if quant.axis is None:
        scale = T.float32(float(np.float32(quant.scale[0])))
    else:
        scale = reader.scope.constant((node, "scale"), quant.scales.astype(np.float32))[index[quant.axis]]
    return T.cast(centred(node, 0, reader.operand(node, 0, index), reader.scope), "float32") * scale


# movement


def reshaped(index: Index, source: tuple[int, ...], target: tuple[int, ...]) -> Index:
    """Where the element of an array of shape `source` at `index` lies in the same array of shape `target`."""
    same = 0
    while same < min(len(source), len(target)) and source[same] == target[same]:
        same += 1
    flat: Expr = 0
    for extent, i in zip(source[same:], index[same:], strict=True):
        flat = flat * extent + i
    inner: list[Expr] = []
    for axis in reversed(range(same, len(target))):
        step = math.prod(target[axis + 1 :])
        place = flat if step == 1 else T.floordiv(flat, step)
        inner.append(place if axis == same else T.floormod(place, target[axis]))
    return (*index[:same], *reversed(inner))


def reshape(node: Node, reader: Reader, index: Index) -> Expr:
    return reader.at(node.inputs[0], reshaped(index, shape_of(node.result), shape_of(node.inputs[0])))


def transpose(node: Node, reader: Reader, index: Index) -> Expr:
    assert isinstance(node.op, ops.Transpose)
    place: list[Expr] = [0] * len(index)
    for i, axis in enumerate(node.op.perm):
        place[axis] = index[i]
    return reader.at(node.inputs[0], tuple(place))


def squeeze(node: Node, reader: Reader, index: Index) -> Expr:
    assert isinstance(node.op, ops.Squeeze)
    place = list(index)
    for axis in node.op.axes:
        place.insert(axis, 0)
    return reader.at(node.inputs[0], tuple(place))


def unsqueeze(node: Node, reader: Reader, index: Index) -> Expr:
    assert isinstance(node.op, ops.Unsqueeze)
    axes = node.op.axes
    return reader.at(node.inputs[0], tuple(i for axis, i in enumerate(index) if axis not in axes))


def expand(node: Node, reader: Reader, index: Index) -> Expr:
    return reader.operand(node, 0, index)


def gather(node: Node, reader: Reader, index: Index) -> Expr:
    assert isinstance(node.op, ops.Gather)
    data, places = node.inputs
    axis, rank = node.op.axis % len(shape_of(data)), len(shape_of(places))
    place = T.cast(reader.at(places, index[axis : axis + rank]), "int32")
    place = T.Select(place < 0, place + shape_of(data)[axis], place)
    return reader.at(data, (*index[:axis], place, *index[axis + rank :]))


def moved(node: Node, index: Index) -> Index:
    """Where an element of the operand of a bijective movement op goes to."""
    op, target = node.op, shape_of(node.result)
    if isinstance(op, ops.Transpose):
        return tuple(index[axis] for axis in op.perm)
    if isinstance(op, ops.Squeeze):
        return tuple(i for axis, i in enumerate(index) if axis not in op.axes)
    if isinstance(op, ops.Unsqueeze):
        place = list(index)
        for axis in op.axes:
            place.insert(axis, 0)
        return tuple(place)
    assert isinstance(op, ops.Reshape)
    return reshaped(index, shape_of(node.inputs[0]), target)


BIJECTIONS = (ops.Reshape, ops.Transpose, ops.Squeeze, ops.Unsqueeze)

POINTWISE: Mapping[type[Op], Expression] = {
    ops.Requantize: requantize,
    ops.IntAdd: int_add,
    ops.IntTable: int_table,
    ops.IntMul: int_mul,
    ops.ShiftGelu: shift_gelu,
    ops.Quantize: quantize,
    ops.Dequantize: dequantize,
    **FLOAT_POINTWISE,
}
"""Ops that compute: done once, so a value with several readers is stored."""

RENAMING: Mapping[type[Op], Expression] = {
    ops.ScaleBy: identity,
    ops.FromCodes: identity,
    ops.ToCodes: identity,
    ops.Identity: identity,
}
"""Ops that leave all bits as they are."""

MOVEMENT: Mapping[type[Op], Expression] = {
    ops.Reshape: reshape,
    ops.DynamicReshape: reshape,
    ops.Transpose: transpose,
    ops.Squeeze: squeeze,
    ops.Unsqueeze: unsqueeze,
    ops.Expand: expand,
    ops.Gather: gather,
    **MOVES,
}
"""Ops that only say where elements lie: their readers look there."""

MOVING: tuple[type[Op], ...] = (*MOVEMENT, ops.Split)
"""The same with Split, which has several results and so no expression of one."""

EXPRESSIONS: Mapping[type[Op], Expression] = {**POINTWISE, **RENAMING, **MOVEMENT}
