"""Contents of small tensors that follow from constants and static shapes alone: sizes that an exporter computed."""

from __future__ import annotations

import numpy as np

from planish.ir.dims import Dim
from planish.ir.errors import VerifyError
from planish.ir.graph import Value
from planish.ir.op import constant
from planish.ir.ops import Opaque
from planish.ir.types import KNOWN_LIMIT, TensorType

_DEPTH = 32  # nodes from a size back to the constants it is computed from; exporters write five to ten


def contents_of(value: Value) -> tuple[Dim, ...] | None:
    """Elements of an integer tensor, row-major; None where they aren't known.

    What types know, and beyond that what float arithmetic on constants gives: `int(196 ** 0.5)` is a size, too.
    """
    type_ = value.type
    if not isinstance(type_, TensorType) or not type_.dtype.is_integer:
        return None
    if type_.known is not None:
        return type_.known
    array = static_array(value)
    return None if array is None else tuple(int(element) for element in array.reshape(-1))


def static_array(value: Value, depth: int = _DEPTH) -> np.ndarray | None:
    """The array of a small value that depends on no input; None for any other."""
    type_ = value.type
    if not isinstance(type_, TensorType) or type_.dtype.kind == "str" or not _small(type_):
        return None
    if (data := constant(value)) is not None:
        return data.numpy()
    if type_.known is not None and all(isinstance(dim, int) for dim in type_.known):
        return np.array(type_.known, type_.dtype.storage).reshape(type_.dims)  # type: ignore[arg-type]
    node = value.node
    if depth == 0 or node is None or isinstance(node.op, Opaque):
        return None
    operands = [None if operand is None else static_array(operand, depth - 1) for operand in node.operands]
    if any(array is None and operand is not None for array, operand in zip(operands, node.operands, strict=True)):
        return None
    try:
        computed = node.op.compute(operands, [None if v is None else v.type for v in node.operands])
    except VerifyError:
        return None
    array = computed[value.index] if isinstance(computed, tuple) else computed
    return np.asarray(array, type_.dtype.storage)


def _small(type_: TensorType) -> bool:
    elements = type_.elements if type_.shape is not None else None
    return isinstance(elements, int) and elements <= KNOWN_LIMIT
