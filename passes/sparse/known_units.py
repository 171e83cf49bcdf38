"""What the units of a bundle are where that doesn't depend on inputs: values of zero weights, and what follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planish.ir import dims, ops
from planish.ir.errors import VerifyError
from planish.ir.graph import Node, Value
from planish.ir.op import constant
from planish.passes.sparse.bundles import Bundle
from planish.passes.sparse.unit_rules import CONVOLUTIONS, PRODUCTS, Place, Slots

_COUNTING = (
    *(ops.ReduceSum, ops.IntReduceSum, ops.Softmax, ops.LogSoftmax, ops.IntSoftmax, ops.Shiftmax, ops.MatMul),
    *(ops.IntMatMul, ops.IntWeightedMean, ops.AveragePool, *CONVOLUTIONS),
)


@dataclass(frozen=True)
class Known:
    """A value for one sample, right where its units are known: bool[units]. Symbolic dimensions are 1."""

    array: np.ndarray
    units: np.ndarray


def known_units(bundle: Bundle) -> Mapping[Value, Known]:
    """The values of the bundle that have known units, for inputs that are finite."""
    found: dict[Value, Known] = {}
    for node, slots in bundle.slots.items():
        if len(node.results) != 1 or -1 not in slots:
            continue
        made = _source(bundle, node, slots) if node in bundle.sources else _computed(bundle, node, slots, found)
        if made is not None and made.units.any():
            found[node.result] = made
    return found


def removable(bundle: Bundle) -> tuple[np.ndarray, dict[Node, np.ndarray]]:
    """The units that no reader needs, bool[units], and what each sink would have read: float64[K], 0 for the others.

    Integers are codes less their zero point.
    """
    zero = {sink: ~np.any(bundle.of_each(_weight(sink), bundle.slots[sink][1]), axis=1) for sink in bundle.sinks}
    known: Mapping[Value, Known] = {}
    if not all(mask.all() for mask in zero.values()):
        known = known_units(bundle)
    free = np.ones(bundle.units, np.bool_)
    constants = {}
    for sink in bundle.sinks:
        same, values = _constants(bundle, sink, known.get(sink.inputs[0]))
        free &= zero[sink] | same
        constants[sink] = values
    for sink, values in constants.items():
        place = bundle.slots[sink][1]
        out = np.zeros(len(values), np.bool_)
        out[place.indices(bundle.units, np.flatnonzero(free & ~zero[sink]))] = True
        constants[sink] = np.where(out, values, 0.0)
    return free, constants


def _weight(node: Node) -> np.ndarray:
    data = constant(node.operands[1])
    assert data is not None
    return data.numpy()


def _constants(bundle: Bundle, sink: Node, known: Known | None) -> tuple[np.ndarray, np.ndarray]:
    """Which units a sink can take into its bias, and the values it reads, float64[K]."""
    place = bundle.slots[sink][0]
    extent = place.outer * bundle.units * place.inner
    if known is None or (len(sink.operands) > 2 and constant(sink.operands[2]) is None):
        return np.zeros(bundle.units, np.bool_), np.zeros(extent)
    rows = np.moveaxis(known.array, place.axis, -1).reshape(-1, extent).astype(np.float64)
    quant = sink.inputs[0].tensor.quant
    values = rows[0] - (0 if quant is None else quant.zero)
    fits = np.all(rows == rows[0], axis=0) & np.isfinite(values)
    if isinstance(sink.op, CONVOLUTIONS) and any(sink.op.pads):
        fits &= values == 0  # the border reads zeros in place of a constant
    same = known.units & np.all(bundle.of_each(fits, Place(0, place.outer, place.inner)), axis=1)
    return same, np.where(np.isfinite(values), values, 0.0)


def _source(bundle: Bundle, node: Node, slots: Slots) -> Known | None:
    """Results of zero columns are the bias."""
    mask = ~np.any(bundle.of_each(_weight(node), slots[1]), axis=1)
    bias = constant(node.operands[2]) if len(node.operands) > 2 else None
    if not mask.any() or (bias is None and len(node.operands) > 2):
        return None
    shape, place = _shape(node.result), slots[-1]
    if shape is None:
        return None
    storage = node.result.tensor.dtype.storage
    row = np.zeros(shape[place.axis], storage) if bias is None else bias.numpy()
    spread = [-1 if i == place.axis else 1 for i in range(len(shape))]
    return Known(np.broadcast_to(row.reshape(spread), shape), mask)


def _computed(bundle: Bundle, node: Node, slots: Slots, found: Mapping[Value, Known]) -> Known | None:
    """What an op makes of units that it keeps apart."""
    op = node.op
    if isinstance(op, ops.Attention):
        return _attended(bundle, node, slots, found)
    counts = _counts(node)
    masks: list[np.ndarray] = []
    arrays: list[np.ndarray | None] = []
    for slot, value in enumerate(node.operands):
        data, known = constant(value), None if value is None else found.get(value)
        if value is None or data is not None:
            array, mask = None if data is None else data.numpy(), np.ones(bundle.units, np.bool_)
        elif known is not None and not counts:
            array, mask = known.array, known.units
        else:
            shape = _shape(value) if slot in slots else None
            if shape is None:
                return None
            array, mask = np.zeros(shape, value.tensor.dtype.storage), np.zeros(bundle.units, np.bool_)
        arrays.append(array)
        masks.append(mask)
    mask = np.logical_and.reduce(masks)
    if isinstance(op, PRODUCTS) and 1 in slots:  # a convolution by channels: zero weights give the bias
        mask = mask | ~np.any(bundle.of_each(_weight(node), slots[1]), axis=1)
    elif isinstance(op, ops.Mul):
        for slot, array, own in zip(range(2), arrays, masks, strict=True):
            if array is not None and slot in slots:
                mask = mask | (own & ~np.any(bundle.of_each(array, slots[slot]), axis=1))
    if not mask.any():
        return None
    try:
        result = op.compute(arrays, [None if v is None else v.type for v in node.operands])
    except (VerifyError, ValueError, IndexError):
        return None  # sums of what isn't known may leave 32 bits; shapes may not fit one sample
    return Known(result, mask) if np.shape(result) == _shape(node.result) else None


def _counts(node: Node) -> bool:
    """True if what an op makes of constants depends on an extent that isn't known: of sums, and of what is padded."""
    if not isinstance(node.op, _COUNTING):
        return False
    unknown = [dim for value in node.inputs for dim in value.tensor.dims[1:] if not isinstance(dim, int)]
    if isinstance(node.op, (*CONVOLUTIONS, ops.AveragePool)):
        return bool(unknown)
    rank = len(node.inputs[0].tensor.dims)
    axes = getattr(node.op, "axes", (getattr(node.op, "axis", -1),))
    first = [axis for axis in axes if axis % rank == 0]
    if len(node.inputs) > 1 and len(node.inputs[1].tensor.dims) == 2:
        first = [0]  # the rows of a second factor
    return bool(unknown) or (bool(first) and not all(isinstance(v.tensor.dims[0], int) for v in node.inputs))


def _attended(bundle: Bundle, node: Node, slots: Slots, found: Mapping[Value, Known]) -> Known | None:
    """Means of equal rows are that row, whatever the weights."""
    known, shape = found.get(node.inputs[2]), _shape(node.result)
    if known is None or shape is None:
        return None
    v = known.array
    same = np.all(bundle.of_each(v == v[:, :, :1], slots[2]), axis=1)
    rows = np.repeat(v[:, :, :1], shape[1] // v.shape[1], axis=1)
    return Known(np.broadcast_to(rows, shape), known.units & same)


def _shape(value: Value) -> tuple[int, ...] | None:
    """The shape for one sample; None if it isn't known."""
    shape: Sequence[dims.Dim] = value.tensor.shape or ()
    try:
        bound = [dims.substitute(dim, dict.fromkeys(dims.symbols(dim), 1)) for dim in shape]
    except VerifyError:
        return None
    return tuple(int(dim) for dim in bound) if all(isinstance(dim, int) for dim in bound) else None
