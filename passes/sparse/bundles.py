"""Bundles: everything that has the same units, from the layers that make them to the layers that read them.

A bundle can be made narrower as a whole, with the same results, if each of its readers either has only zeros for what
is taken out or can take it, as a known constant, into its bias.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from planish.ir import ops, sparsity
from planish.ir.data import Data
from planish.ir.errors import VerifyError
from planish.ir.graph import Graph, Node, Value
from planish.ir.op import Const, Op, constant
from planish.ir.types import Sparsity
from planish.passes.sparse.unit_rules import CONVOLUTIONS, PRODUCTS, Entangled, Place, Slots, mixed, tied, value_at


@dataclass(frozen=True)
class Seed:
    """Where a bundle is looked for: units that a value may have. node: who asks."""

    value: Value
    place: Place
    units: int
    node: Node


@dataclass(frozen=True)
class Bundle:
    """Nodes with the same units, and where each of their operands and results has them.

    units: their number. slots: nodes in the order of the graph. places: of values that aren't constant.
    """

    units: int
    slots: Mapping[Node, Slots]
    places: Mapping[Value, Place]

    @property
    def sources(self) -> list[Node]:
        """Layers whose results the units are."""
        return [n for n, slots in self.slots.items() if _is_product(n) and 1 in slots and 0 not in slots]

    @property
    def sinks(self) -> list[Node]:
        """Layers that sum the units up."""
        return [n for n, slots in self.slots.items() if _is_product(n) and 1 in slots and -1 not in slots]

    @property
    def are_heads(self) -> bool:
        """True if a unit is several columns of each layer that makes it: a head, or heads that share keys."""
        return bool(self.sources) and all(self.slots[node][-1].inner > 1 for node in self.sources)

    def of_each(self, array: np.ndarray, place: Place) -> np.ndarray:
        """An array's elements as [units, the rest]."""
        moved = np.moveaxis(array, place.axis, 0)
        cut = moved.reshape(place.outer, self.units, place.inner, -1)
        return np.asarray(np.moveaxis(cut, 1, 0).reshape(self.units, -1))


def bundle_of(seed: Seed) -> Bundle:
    """All that has the units of the seed. Raises Entangled if something mixes them, or needs all of them."""
    places: dict[Value, Place] = {}
    slots: dict[Node, Slots] = {}
    work = [(seed.value, seed.place)]
    while work:
        value, place = work.pop()
        if constant(value) is not None:
            continue
        if value in places:
            if places[value] != place:
                raise Entangled("they meet under another order")
            continue
        places[value] = place
        if value.node is None:
            raise Entangled("they are an input of the model")
        for node, slot in [(value.node, -1 - value.index), *value.uses]:
            found = tied(node, slot, place, seed.units)
            known = slots.setdefault(node, found)
            if known != found:
                raise mixed(node, "maps them to themselves")
            if _is_product(node) and 1 in found and constant(node.operands[1]) is None:
                raise mixed(node, "has computed weights")
            work += [(value_at(node, other), there) for other, there in found.items()]
    return Bundle(seed.units, _in_order(slots), places)


def _is_product(node: Node) -> bool:
    return isinstance(node.op, PRODUCTS)


def _in_order(slots: Mapping[Node, Slots]) -> dict[Node, Slots]:
    """The nodes, those that others read first."""
    order: dict[Node, Slots] = {}
    stack = [(node, False) for node in reversed(list(slots))]
    while stack:
        node, ready = stack.pop()
        if node in order:
            continue
        if ready:
            order[node] = slots[node]
            continue
        stack.append((node, True))
        read = [v.node for slot, v in enumerate(node.operands) if v is not None and slot in slots[node]]
        stack += [(producer, False) for producer in read if producer is not None and producer in slots]
    return order


def narrow(graph: Graph, bundle: Bundle, kept: np.ndarray, constants: Mapping[Node, np.ndarray], by: str) -> None:
    """Take the units out that aren't kept (bool[units]).

    constants: for each sink what the units taken out are, float64[K] (codes less their zero point for integers), 0
    elsewhere; its bias takes their products. Raises Entangled, with the graph as it was, if an op doesn't allow it.
    """
    numbers = np.flatnonzero(kept)
    made: dict[Value, Value] = {}
    cut: dict[tuple[Value, Place], Value] = {}
    added: list[tuple[Node, Node]] = []  # a constant, and before what it goes
    twins: dict[Node, Node] = {}
    for node, slots in bundle.slots.items():
        loc = node.loc.made_by(by)
        operands: list[Value | None] = [v if v is None else made.get(v, v) for v in node.operands]
        for slot, place in slots.items():
            value = node.operands[slot] if slot >= 0 else None
            data = constant(value)
            if value is None or value.node is None or data is None:
                continue
            if (value, place) not in cut:
                fewer = Node(Const(_taken(data, place.axis, place.indices(bundle.units, numbers))), (), loc)
                fewer.result.hint = value.hint
                added.append((fewer, value.node))
                cut[value, place] = fewer.result
            operands[slot] = cut[value, place]
        if np.any(constants.get(node, 0)):
            bias = Node(Const(_folded(node, constants[node])), (), loc)
            bias.result.hint = operands[2].hint if len(operands) > 2 and operands[2] is not None else ""
            added.append((bias, node))
            operands[2:] = [bias.result]
        try:
            twin = Node(_narrowed(node, slots, bundle.units, len(numbers)), operands, loc)
        except VerifyError as error:
            raise mixed(node, f"can't do with fewer: {error.what}") from error
        for old, new in zip(node.results, twin.results, strict=True):
            if -1 - old.index not in slots and old.type.interface() != new.type.interface():
                raise mixed(node, "would give something else")
            new.hint = old.hint
            made[old] = new
        twins[node] = twin
    for each, place_before in (*added, *((twin, node) for node, twin in twins.items())):
        graph.insert(each, place_before)
    for node, twin in twins.items():
        for old, new in zip(node.results, twin.results, strict=True):
            if -1 - old.index not in bundle.slots[node]:
                graph.replace(old, new)
    graph.erase_dead(list(bundle.slots))


def _narrowed(node: Node, slots: Slots, units: int, kept: int) -> Op:
    """The op for so many units."""
    op = node.op
    if isinstance(op, ops.Reshape):
        before, after = slots[0], slots[-1]
        shape = list(op.shape)
        if shape[before.axis : before.axis + 1] == [0] and before.axis != after.axis:
            shape[before.axis] = int(node.result.tensor.dims[before.axis])
        if shape[after.axis] != -1:
            shape[after.axis] = after.outer * kept * after.inner
        return ops.Reshape(tuple(shape))
    if isinstance(op, CONVOLUTIONS) and op.group > 1 and 1 in slots:
        return replace(op, group=op.group * kept // units)
    if isinstance(op, ops.Split) and op.axis == slots[0].axis:
        return replace(op, sizes=tuple(size * kept // units for size in op.sizes))
    if isinstance(op, ops.Slice) and slots[0].axis in op.axes:
        number = op.axes.index(slots[0].axis)
        extent = int(node.inputs[0].tensor.dims[slots[0].axis])
        start, end, _ = slice(op.starts[number], op.ends[number]).indices(extent)
        starts, ends = list(op.starts), list(op.ends)
        starts[number], ends[number] = start * kept // units, end * kept // units
        return replace(op, starts=tuple(starts), ends=tuple(ends))
    return op


def _folded(node: Node, known: np.ndarray) -> Data:
    """The bias of a layer together with what it makes of constants [K] that it doesn't read any more."""
    w, b = (constant(v) for v in (node.operands[1], node.operands[2] if len(node.operands) > 2 else None))
    assert w is not None
    weights = w.numpy().astype(np.float64)
    if isinstance(node.op, CONVOLUTIONS):
        more = np.tensordot(known, weights.sum(axis=tuple(range(2, weights.ndim))), axes=([0], [1]))
    else:
        more = known @ weights
    if isinstance(node.op, ops.IntLinearDequantize):
        x, quant = node.inputs[0].tensor.quant, w.type.quant
        assert x is not None
        assert quant is not None
        more = more * (x.scales * quant.scales)
    old = np.zeros(len(more)) if b is None else b.numpy().astype(np.float64)
    if isinstance(node.op, ops.IntLinear | ops.IntConv):
        if np.max(np.abs(old + more), initial=0) >= 2**31:
            raise mixed(node, "can't hold them in a bias of 32 bits")
        sums = node.result.tensor.quant
        assert sums is not None
        return Data((old + more).astype(np.int32), replace(sums, axis=None if sums.axis is None else 0))
    return Data((old + more).astype(node.result.tensor.dtype.storage))


def _taken(data: Data, axis: int, places: np.ndarray) -> Data:
    """Some slices of a constant."""
    array = np.ascontiguousarray(np.take(data.numpy(), places, axis=axis))
    quant, zeros = data.type.quant, data.type.sparsity
    if quant is not None and quant.axis == axis:
        quant = replace(quant, scale=tuple(quant.scale[i] for i in places))
    return Data(array, quant, None if zeros is None else _zeros_of(array, zeros))


def _zeros_of(array: np.ndarray, wanted: Sparsity) -> Sparsity | None:
    """The structure of zeros with the density that is left; None where blocks aren't aligned any more."""
    plain = replace(wanted, density=1.0)
    if sparsity.fault(array, plain):
        return None
    return replace(plain, density=min(1.0, round(sparsity.density(array, plain) + 5e-7, 6)))


def seeds(graph: Graph) -> Iterable[Seed]:
    """Units that there may be: channels of layers, heads of attention."""
    for node in graph:
        if node.graph is not graph:
            continue
        if isinstance(node.op, PRODUCTS):
            for value in (node.result, node.inputs[0]):
                axis = 1 if isinstance(node.op, CONVOLUTIONS) else len(value.tensor.dims) - 1
                extent = value.tensor.dims[axis]
                if isinstance(extent, int):
                    yield Seed(value, Place(axis), extent, node)
        elif isinstance(node.op, ops.Attention) and isinstance(node.inputs[1].tensor.dims[1], int):
            yield Seed(node.inputs[1], Place(1), node.inputs[1].tensor.dims[1], node)
        elif isinstance(node.op, ops.Reshape):
            yield from _merged(node)


def _merged(node: Node) -> Iterable[Seed]:
    """Axes that a Reshape makes the channels of a layer of: heads are among them, whatever computes them."""
    readers = [u for u, slot in node.result.uses if slot == 0 and isinstance(u.op, PRODUCTS)]
    before, after = node.inputs[0].tensor.dims, node.result.tensor.dims
    if not readers or len(before) <= len(after):
        return
    for axis in range(len(after) - 1, len(before) - 1):
        extent = before[axis]
        if isinstance(extent, int) and isinstance(after[-1], int) and 1 < extent < after[-1]:
            yield Seed(node.inputs[0], Place(axis), extent, node)
