"""Which integers the tensors of an ONNX graph can hold, where those are few: a forward analysis, for any inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data
from onnx.helper import tensor_dtype_to_np_dtype

from planish.tools.integer_only import tensor_types

Values = Mapping[str, frozenset[int]]
_MOST = 16  # values; beyond that nothing is said of a tensor
_BITS = frozenset((0, 1))

_FIRST, _ALL = slice(0, 1), slice(None)
_SOURCES: Mapping[str, slice] = {
    **dict.fromkeys(("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split"), _FIRST),
    **dict.fromkeys(("Expand", "Tile", "Identity", "Cast", "Gather", "GatherElements", "GatherND"), _FIRST),
    **dict.fromkeys(("Concat", "Max", "Min"), _ALL),
    "Where": slice(1, 3),
    **dict.fromkeys(("ScatterElements", "ScatterND"), slice(0, 3, 2)),
    "Pad": slice(0, 3, 2),
}
"""The operands from which ops take the elements of their results, as they are."""

_SUMS: Mapping[str, Callable[[int, int], int]] = {"Add": int.__add__, "Sub": int.__sub__}


def value_sets(graph: GraphProto, folder: Path) -> Values:
    """Integers that a tensor can hold, by name; tensors that can hold many, or of which nothing is known, are missing.

    folder: where data outside the file is looked for. An initializer that is an input, too, is what the caller says.
    """
    types = tensor_types(graph)
    inputs = {value.name for value in graph.input}
    found: dict[str, frozenset[int]] = {}
    for tensor in graph.initializer:
        if tensor.name not in inputs:
            _note(found, tensor.name, _contents(tensor, folder))
    for name in inputs:
        if types.get(name) == TensorProto.BOOL:
            found[name] = _BITS
    for node in graph.node:
        kept = _kept(node, found, types) if node.domain in ("", "ai.onnx") else None
        for name in node.output:
            _note(found, name, _BITS if types.get(name) == TensorProto.BOOL else kept)
    return found


def _note(found: dict[str, frozenset[int]], name: str, values: frozenset[int] | None) -> None:
    if name and values is not None and len(values) <= _MOST:
        found[name] = values


def _contents(tensor: TensorProto, folder: Path) -> frozenset[int] | None:
    """The integers of a constant, None where they can't be read."""
    if uses_external_data(tensor):
        try:
            load_external_data_for_tensor(tensor, str(folder))
        except Exception:  # onnx raises several unrelated types; what can't be read isn't known
            return None
    array = np.unique(numpy_helper.to_array(tensor)) if tensor.data_type != TensorProto.STRING else None
    if array is None or array.dtype.kind not in "iub" or array.size > _MOST:
        return None
    return frozenset(int(v) for v in array)


def _kept(node: NodeProto, found: Values, types: Mapping[str, int]) -> frozenset[int] | None:
    """What the results of a node can be."""
    if node.op_type in ("Constant", "ConstantOfShape"):
        tensors = [a.t for a in node.attribute if a.name == "value" and a.type == AttributeProto.TENSOR]
        return _contents(tensors[0], Path()) if tensors and not uses_external_data(tensors[0]) else None
    dtype = _dtype(types.get(node.output[0], 0))
    sources = [found.get(name) for name in node.input[_SOURCES.get(node.op_type, _ALL)] if name]
    if dtype is None or not sources or _reduces(node):
        return None
    if node.op_type == "Sign":
        return frozenset((-1, 0, 1))
    if node.op_type == "Pad" and len(sources) == 1:
        sources.append(frozenset((0,)))
    if any(source is None for source in sources):
        return None
    sets = [source for source in sources if source is not None]
    if node.op_type in _SUMS and len(sets) == 2:
        return _within(frozenset(_SUMS[node.op_type](a, b) for a, b in product(*sets)), dtype)
    return _within(frozenset().union(*sets), dtype) if node.op_type in _SOURCES else None


def _reduces(node: NodeProto) -> bool:
    """Whether a scatter combines what it brings with what was there."""
    return any(a.name == "reduction" and a.s not in (b"", b"none") for a in node.attribute)


def _dtype(number: int) -> np.dtype[np.generic] | None:
    """The numpy dtype of an integer or boolean element type."""
    if number in (TensorProto.UNDEFINED, TensorProto.STRING):
        return None
    dtype = np.dtype(tensor_dtype_to_np_dtype(number))
    return dtype if dtype.kind in "iub" else None


def _within(values: frozenset[int], dtype: np.dtype[np.generic]) -> frozenset[int] | None:
    """The values if none of them wraps around in `dtype`."""
    if dtype.kind == "b":
        low, high = 0, 1
    else:
        info = np.iinfo(dtype.str)
        low, high = int(info.min), int(info.max)
    return values if all(low <= value <= high for value in values) else None
