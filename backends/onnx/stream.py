"""Writes a model file tensor by tensor: the memory needed is that of one weight, not of two copies of the model."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir

from planish.ir.errors import LoweringError

_STREAMED = 1 << 16  # bytes; smaller tensors take the ordinary way
_LIMIT = 2**31 - 1  # bytes; what protobuf can hold in one message

# Field numbers of onnx.proto
_MODEL_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_GRAPH_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_TENSOR_RAW_DATA = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number


def save(model: onnx_ir.Model, path: Path) -> None:
    """Write a self-contained model file. The model is used up: its large initializers are taken out.

    Raises LoweringError if the file would be larger than protobuf allows.
    """
    graph = model.graph
    inputs = {value.name for value in graph.inputs}
    large = [value for value in graph.initializers.values() if value.name not in inputs and _is_streamed(value)]
    for value in large:
        del graph.initializers[str(value.name)]
    proto = onnx_ir.to_proto(model)
    body = proto.graph.SerializeToString()
    proto.ClearField("graph")
    head = proto.SerializeToString()
    entries = [(_entry(value), value) for value in large]
    size = len(body) + sum(len(prefix) + _tensor(value).nbytes for prefix, value in entries)
    if len(head) + size + 16 > _LIMIT:
        raise LoweringError(
            f"the model needs {size} bytes, and one ONNX file holds at most {_LIMIT}",
            where=str(path),
            remedy="keep the weights beside the model",
        )
    with path.open("wb") as file:
        file.write(head + _prefix(_MODEL_GRAPH, size) + body)
        for prefix, value in entries:
            file.write(prefix)
            _write_bytes(_tensor(value), file)


def _is_streamed(value: onnx_ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and tensor.dtype != onnx_ir.DataType.STRING and tensor.nbytes >= _STREAMED


def _tensor(value: onnx_ir.Value) -> onnx_ir.TensorProtocol:
    if value.const_value is None:
        raise LoweringError(f"initializer {value.name!r} has no contents")
    return value.const_value


def _entry(value: onnx_ir.Value) -> bytes:
    """Everything of an initializer's field but its bytes, which are the end of it."""
    tensor = _tensor(value)
    shape = list(tensor.shape.numpy())
    meta = onnx.TensorProto(name=value.name, data_type=int(tensor.dtype), dims=shape).SerializeToString()
    meta += _prefix(_TENSOR_RAW_DATA, tensor.nbytes)
    return _prefix(_GRAPH_INITIALIZER, len(meta) + tensor.nbytes) + meta


def _write_bytes(tensor: onnx_ir.TensorProtocol, file: BinaryIO) -> None:
    start = file.tell()
    file.write(tensor.tobytes())
    if file.tell() - start != tensor.nbytes:
        raise LoweringError(f"tensor {tensor.name!r} has {file.tell() - start} bytes, not {tensor.nbytes}")


def _prefix(field: int, length: int) -> bytes:
    """Tag and length of a length-delimited protobuf field."""
    return _varint(field << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    groups = []
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])
