"""Tensors of a model as constants: weights stay in the file until somebody looks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir

from planish.frontend.declared import DTYPES
from planish.ir.data import Data
from planish.ir.errors import FrontendError
from planish.ir.types import TensorType

_EAGER = 512  # bytes; smaller tensors are looked at often, and loading them costs more than keeping them


def data_of(tensor: onnx_ir.TensorProtocol) -> Data:
    """The constant of an onnx_ir tensor. Raises FrontendError if its contents don't fit what it declares."""
    dtype = DTYPES.get(int(tensor.dtype))
    if dtype is None:
        raise FrontendError(
            f"tensor {tensor.name!r} has element type {tensor.dtype}, which can't be read",
            remedy="convert the tensor to a wider type",
        )
    type_ = TensorType(dtype, tuple(tensor.shape.numpy()))
    elements = type_.elements
    if not isinstance(elements, int) or any(dim < 0 for dim in type_.dims):  # type: ignore[operator]
        raise FrontendError(f"tensor {tensor.name!r} has no definite shape: {type_}")
    size = (elements * dtype.bits + 7) // 8
    if dtype.kind != "str" and size > _EAGER:
        return Data.lazy(type_, lambda: _load(tensor, type_), origin=tensor)
    data = Data(_load(tensor, type_))
    data.origin = tensor
    return data


def _load(tensor: onnx_ir.TensorProtocol, type_: TensorType) -> np.ndarray:
    try:
        array = tensor.numpy()
    except (ValueError, OSError, TypeError) as error:
        raise FrontendError(f"the contents of tensor {tensor.name!r} can't be read: {error}") from error
    if type_.dtype.kind == "str":
        return np.array([_text(item) for item in array.reshape(-1).tolist()], object).reshape(type_.dims)  # type: ignore[arg-type]
    return array if array.dtype == type_.dtype.storage else array.view(type_.dtype.storage)


def _text(item: object) -> object:
    if isinstance(item, bytes):
        try:
            return item.decode()
        except UnicodeDecodeError:
            return item
    return item


def names_external(graph: onnx.GraphProto) -> bool:
    """True if a tensor of the graph, or of one inside, lives in another file. A look at the message is cheap."""
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.initializer):
        return True
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                if attribute.t.data_location == onnx.TensorProto.EXTERNAL:
                    return True
            elif attribute.type == onnx.AttributeProto.GRAPH and names_external(attribute.g):
                return True
    return False


def check_external(tensors: Iterable[onnx_ir.ExternalTensor], where: str) -> None:
    """Raise FrontendError if a file that holds weights is missing, outside the model's folder, or too short."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        path = tensor.path
        if path not in sizes:
            sizes[path] = _size(tensor, where)
        end = (tensor.offset or 0) + tensor.nbytes
        if tensor.length is not None and tensor.length != tensor.nbytes:
            raise FrontendError(
                f"initializer {tensor.name!r} needs {tensor.nbytes} bytes, but declares {tensor.length} in {path}",
                where=where,
                remedy="export the model again: the weights don't fit the model",
            )
        if end > sizes[path]:
            raise FrontendError(
                f"external data file {path} has {sizes[path]} bytes, but initializer {tensor.name!r} ends at {end}",
                where=where,
                remedy="copy the data file again, or export the model again",
            )


def external_tensors(graph: onnx_ir.Graph) -> Iterator[onnx_ir.ExternalTensor]:
    """The tensors of the graph, and of graphs inside, that live in other files."""
    for value in graph.initializers.values():
        if isinstance(value.const_value, onnx_ir.ExternalTensor):
            yield value.const_value
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == onnx_ir.AttributeType.TENSOR and isinstance(attribute.value, onnx_ir.ExternalTensor):
                yield attribute.value
            elif attribute.type == onnx_ir.AttributeType.GRAPH and not attribute.is_ref():
                yield from external_tensors(attribute.as_graph())


def _size(tensor: onnx_ir.ExternalTensor, where: str) -> int:
    base = Path(os.path.abspath(tensor.base_dir or "."))
    path = Path(os.path.abspath(base / tensor.location))
    if not path.is_relative_to(base):
        raise FrontendError(
            f"initializer {tensor.name!r} wants data from {tensor.location}, outside the model's folder",
            where=where,
            remedy="put the data file beside the model and name it relative to the model",
        )
    if not path.is_file():
        raise FrontendError(
            f"external data file {path} is missing",
            where=where,
            remedy="copy the data file that belongs to the model into the same folder",
        )
    return path.stat().st_size
