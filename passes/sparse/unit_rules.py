"""How ops keep units apart: where the units of one operand or result are in the others.

A unit is what vanishes as a whole: a channel, the channels of an attention head, a group of heads that share keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planish.ir import ops
from planish.ir.dims import Dim
from planish.ir.graph import Node, Value
from planish.ir.op import Op

PRODUCTS = (ops.Linear, ops.IntLinear, ops.IntLinearDequantize, ops.Conv, ops.IntConv)
"""Ops whose second operand is a weight that units can be taken out of; a third one is the bias."""

CONVOLUTIONS = (ops.Conv, ops.IntConv)


@dataclass(frozen=True)
class Place:
    """Where units lie in a tensor: its axis is [outer, units, inner], with the units in the middle."""

    axis: int
    outer: int = 1
    inner: int = 1

    def indices(self, units: int, kept: np.ndarray) -> np.ndarray:
        """The places along the axis that the kept units (numbers, ascending) have."""
        return np.arange(self.outer * units * self.inner).reshape(self.outer, units, self.inner)[:, kept].reshape(-1)

    def moved(self, axis: int) -> Place:
        """The same along another axis."""
        return Place(axis, self.outer, self.inner)


class Entangled(Exception):
    """Units can't be told apart; the message says at what."""


Slots = dict[int, Place]
"""Places by operand number; results are -1, -2, .. from the first."""

Tie = Callable[[Node, int, Place, int], Slots]
"""From a node, a slot of it, the units' place there, and their number, to all slots that have these units.

Raises Entangled if the node doesn't keep them apart.
"""


def tied(node: Node, slot: int, place: Place, units: int) -> Slots:
    """All slots of a node that have the units which one slot has. Raises Entangled."""
    rule = RULES.get(type(node.op)) or (_broadcast if node.op.pointwise else None)
    if rule is None:
        raise Entangled("they are results of the model" if node.op.is_return else f"{node.op.name} reads them")
    return rule(node, slot, place, units)


def value_at(node: Node, slot: int) -> Value:
    """The operand or result of a slot."""
    value = node.operands[slot] if slot >= 0 else node.results[-1 - slot]
    assert value is not None
    return value


def dims_at(node: Node, slot: int) -> tuple[Dim, ...]:
    return value_at(node, slot).tensor.dims


def mixed(node: Node, how: str = "mixes them") -> Entangled:
    """The error of a node that doesn't keep units apart."""
    return Entangled(f"{node.op.name} {how}")


def _broadcast(node: Node, slot: int, place: Place, units: int) -> Slots:
    """Elementwise, with axes aligned from the last: operands that are broadcast along the axis don't have the units."""
    back = place.axis - len(dims_at(node, slot))
    extent = place.outer * units * place.inner
    slots = {}
    for other in (*(i for i, v in enumerate(node.operands) if v is not None), -1):
        shape = dims_at(node, other)
        if len(shape) < -back or shape[back] == 1 != extent:
            continue
        if shape[back] != extent:
            raise mixed(node, f"combines extents {extent} and {shape[back]}")
        slots[other] = place.moved(len(shape) + back)
    if -1 not in slots:
        raise mixed(node)
    return slots


def _same(node: Node, slot: int, place: Place, units: int) -> Slots:
    """One operand and one result, axis by axis; further operands have none of the units."""
    if slot > 0:
        raise mixed(node, "looks things up in them")
    return {0: place, -1: place}


def _linear(node: Node, slot: int, place: Place, units: int) -> Slots:
    """Columns of the weight and results have units, or its rows and what is multiplied; or rows of x, by themselves."""
    last, biased = len(dims_at(node, 0)) - 1, len(node.operands) > 2
    if slot in (0, -1) and place.axis < last:
        return {0: place, -1: place}
    if slot == 0 or (slot == 1 and place.axis == 0):
        return {0: place.moved(last), 1: place.moved(0)}
    return {-1: place.moved(last), 1: place.moved(1), **({2: place.moved(0)} if biased else {})}


def _conv(node: Node, slot: int, place: Place, units: int) -> Slots:
    op = node.op
    assert isinstance(op, CONVOLUTIONS)
    if slot in (0, -1) and place.axis == 0:
        return {0: place, -1: place}
    if (slot in (0, -1) and place.axis > 1) or (slot == 1 and place.axis > 1):
        raise mixed(node)
    results = slot in (-1, 2) or (slot == 1 and place.axis == 0)
    if op.group == 1:
        if not results:
            return {0: place.moved(1), 1: place.moved(1)}
        return {-1: place.moved(1), 1: place.moved(0), **({2: place.moved(0)} if len(node.operands) > 2 else {})}
    depth, filters = dims_at(node, 1)[1], dims_at(node, 1)[0]
    if not isinstance(depth, int) or not isinstance(filters, int) or (slot == 1 and place.axis == 1):
        raise mixed(node)
    each = filters // op.group  # results of one group
    mine, other = (each, depth) if results else (depth, each)
    if place.inner % mine:
        raise mixed(node, "would get groups of unequal sizes")
    there = Place(1, place.outer, place.inner // mine * other)
    x, y = (there, place) if results else (place, there)
    return {
        0: x.moved(1), 1: y.moved(0), -1: y.moved(1), **({2: y.moved(0)} if len(node.operands) > 2 else {})
    }  # fmt: skip


def _per_channel(node: Node, slot: int, place: Place, units: int) -> Slots:
    """BatchNorm and InstanceNorm: parameters for each channel."""
    if slot > 0:
        return _per_channel(node, 0, place.moved(1), units)
    if place.axis == 0 or (place.axis > 1 and isinstance(node.op, ops.BatchNorm)):
        return {0: place, -1: place}
    if place.axis > 1:
        raise mixed(node)
    return {0: place, -1: place, **{i: place.moved(0) for i in range(1, len(node.operands))}}


def _over_last(node: Node, slot: int, place: Place, units: int) -> Slots:
    """Ops that combine what lies along the axes from `axis` (default: the last) on."""
    first = len(dims_at(node, 0)) + int(getattr(node.op, "axis", -1))
    last = len(dims_at(node, 0)) if isinstance(node.op, ops.LayerNorm | ops.RMSNorm) else first + 1
    if slot > 0 or first <= place.axis < last:
        raise mixed(node)
    return {0: place, -1: place}


def _masked(node: Node, slot: int, place: Place, units: int) -> Slots:
    """IntExp: combines what lies along the last axis; its mask broadcasts."""
    if place.axis == len(dims_at(node, slot)) - 1:
        raise mixed(node)
    return _broadcast(node, slot, place, units)


def _reduce(node: Node, slot: int, place: Place, units: int) -> Slots:
    op, rank = node.op, len(dims_at(node, 0))
    axes = sorted(a % rank for a in getattr(op, "axes", ()))
    keeps = bool(getattr(op, "keepdims", True))
    kept = [axis for axis in range(rank) if keeps or axis not in axes]  # axes of x that y has, in order
    axis = place.axis if slot == 0 else kept[place.axis]
    if axis in axes:
        raise mixed(node)
    return {0: place.moved(axis), -1: place.moved(kept.index(axis))}


def _pool(node: Node, slot: int, place: Place, units: int) -> Slots:
    if place.axis > 1:
        raise mixed(node)
    return {0: place, -1: place}


def _transpose(node: Node, slot: int, place: Place, units: int) -> Slots:
    assert isinstance(node.op, ops.Transpose)
    axis = place.axis if slot == 0 else node.op.perm[place.axis]
    return {0: place.moved(axis), -1: place.moved(node.op.perm.index(axis))}


def _squeeze(node: Node, slot: int, place: Place, units: int) -> Slots:
    """Squeeze, and Unsqueeze the other way round."""
    op = node.op
    assert isinstance(op, ops.Squeeze | ops.Unsqueeze)
    wide, narrow = (0, -1) if isinstance(op, ops.Squeeze) else (-1, 0)
    kept = [axis for axis in range(len(dims_at(node, wide))) if axis not in op.axes]
    axis = place.axis if slot == wide else kept[place.axis]
    if axis not in kept:
        raise mixed(node)
    return {wide: place.moved(axis), narrow: place.moved(kept.index(axis))}


def _reshape(node: Node, slot: int, place: Place, units: int) -> Slots:
    """Units stay units if one axis on the other side holds all of them, counted from the last axis."""
    here, there = dims_at(node, slot), dims_at(node, -1 if slot == 0 else 0)
    stride = _elements(here[place.axis + 1 :])
    if stride is None:
        raise mixed(node)
    stride *= place.inner  # elements of one unit, which repeat every stride * units
    after = 1
    for axis in range(len(there) - 1, -1, -1):
        extent = there[axis]
        if stride % after or not isinstance(extent, int):
            break
        whole = after * extent
        if whole % (stride * units) == 0 and whole > 0:
            found = Place(axis, whole // (stride * units), stride // after)
            return {slot: place, (-1 if slot == 0 else 0): found}
        after = whole
    raise mixed(node, "cuts them up")


def _elements(shape: Sequence[Dim]) -> int | None:
    total = 1
    for dim in shape:
        if not isinstance(dim, int):
            return None
        total *= dim
    return total


def _cut(node: Node, slot: int, place: Place, units: int) -> Slots:
    """Slice and Split: along another axis, or into whole sets of the units."""
    op = node.op
    cut = op.axes if isinstance(op, ops.Slice) else (op.axis,) if isinstance(op, ops.Split) else ()
    slots = (0, *(-1 - i for i in range(len(node.results))))
    if place.axis not in cut:
        return dict.fromkeys(slots, place)
    block = units * place.inner
    found = {}
    for each in slots:
        extent = dims_at(node, each)[place.axis]
        if not isinstance(extent, int) or extent % block:
            raise mixed(node, "cuts them up")
        found[each] = Place(place.axis, extent // block, place.inner)
    if isinstance(op, ops.Slice):
        number = op.axes.index(place.axis)
        extent = dims_at(node, 0)[place.axis]
        assert isinstance(extent, int)
        start, _, step = slice(op.starts[number], op.ends[number], op.steps[number]).indices(extent)
        if step != 1 or start % block:
            raise mixed(node, "cuts them up")
    return found


def _gather(node: Node, slot: int, place: Place, units: int) -> Slots:
    assert isinstance(node.op, ops.Gather)
    along, more = node.op.axis, len(dims_at(node, 1)) - 1
    if slot == 0:
        if place.axis == along:
            raise mixed(node, "picks some of them")
        return {0: place, -1: place if place.axis < along else place.moved(place.axis + more)}
    if slot > 0 or along <= place.axis <= along + more:
        raise mixed(node, "picks some of them")
    return {0: place if place.axis < along else place.moved(place.axis - more), -1: place}


def _concat(node: Node, slot: int, place: Place, units: int) -> Slots:
    assert isinstance(node.op, ops.Concat)
    if place.axis == node.op.axis:
        raise mixed(node, "joins them with others")
    return dict.fromkeys((*range(len(node.operands)), -1), place)


def _matmul(node: Node, slot: int, place: Place, units: int) -> Slots:
    """Leading axes broadcast; rows of a and columns of b stay apart."""
    back = place.axis - len(dims_at(node, slot))
    if back < -2:
        return _broadcast(node, slot, place, units)
    side = {(0, -2): 0, (1, -1): 1, (-1, -2): 0, (-1, -1): 1}.get((slot, back))
    if side is None or min(len(dims_at(node, i)) for i in (0, 1)) < 2:
        raise mixed(node)
    return {side: place.moved(len(dims_at(node, side)) + back), -1: place.moved(len(dims_at(node, -1)) + back)}


def _attention(node: Node, slot: int, place: Place, units: int) -> Slots:
    """Heads, or groups of them that share keys and values; the batch."""
    if place.axis == 0 and slot < 3:
        if len(node.operands) > 3:
            raise mixed(node)
        return dict.fromkeys((0, 1, 2, -1), place)
    if (len(dims_at(node, slot)) - place.axis) != 3:
        raise mixed(node, "needs the same of each head")
    heads, shared = dims_at(node, 0)[1], dims_at(node, 1)[1]
    if not isinstance(heads, int) or not isinstance(shared, int):
        raise mixed(node)
    group = heads // shared
    of_queries = place if slot not in (1, 2) else Place(1, place.outer, place.inner * group)
    if of_queries.inner % group:
        raise mixed(node, "shares keys and values among several heads")
    of_keys = Place(1, of_queries.outer, of_queries.inner // group)
    slots = {0: of_queries.moved(1), 1: of_keys, 2: of_keys, -1: of_queries.moved(1)}
    if len(node.operands) > 3:
        mask = dims_at(node, 3)
        if len(mask) >= 3 and mask[-3] != 1:
            slots[3] = of_queries.moved(len(mask) - 3)
    return slots


def _rotary(node: Node, slot: int, place: Place, units: int) -> Slots:
    if slot not in (0, -1) or place.axis != 1:
        raise mixed(node)
    return {0: place, -1: place}


RULES: Mapping[type[Op], Tie] = {
    **dict.fromkeys((ops.Linear, ops.IntLinear, ops.IntLinearDequantize), _linear),
    **dict.fromkeys(CONVOLUTIONS, _conv),
    **dict.fromkeys((ops.BatchNorm, ops.InstanceNorm), _per_channel),
    **dict.fromkeys((ops.LayerNorm, ops.RMSNorm, ops.Softmax, ops.LogSoftmax), _over_last),
    **dict.fromkeys((ops.ReduceMean, ops.ReduceSum, ops.ReduceMax, ops.ReduceMin, ops.IntReduceSum), _reduce),
    **dict.fromkeys((ops.MaxPool, ops.AveragePool), _pool),
    **dict.fromkeys((ops.MatMul, ops.IntMatMul, ops.IntWeightedMean), _matmul),
    **dict.fromkeys((ops.Squeeze, ops.Unsqueeze), _squeeze),
    **dict.fromkeys((ops.Slice, ops.Split), _cut),
    **dict.fromkeys((ops.Quantize, ops.Dequantize, ops.Requantize, ops.ScaleBy, ops.IntTable, ops.ShiftGelu), _same),
    **dict.fromkeys((ops.IntSoftmax, ops.Shiftmax), _over_last),
    ops.Transpose: _transpose,
    ops.Reshape: _reshape,
    ops.Gather: _gather,
    ops.Concat: _concat,
    ops.IntExp: _masked,
    ops.Attention: _attention,
    ops.RotaryEmbedding: _rotary,
}
"""Ops beyond the pointwise ones, whose operands broadcast."""
