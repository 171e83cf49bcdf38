"""Model files: from bytes to a parsed model, and what can be wrong on the way."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from planish.ir.errors import FrontendError

OLDEST_OPSET = 7  # nodes of older models are carried through unmodelled
NEWEST_OPSET: int = onnx.defs.onnx_opset_version()
_PROTOBUF_LIMIT = 2**31 - 1
_EXPORT_AGAIN = "export the model again, or copy the file again"


def parsed(path: Path) -> onnx.ModelProto:
    """Read and parse a model file. Raises FrontendError with the file's name and a remedy."""
    size = _size(path)
    proto = onnx.ModelProto()
    try:
        # mapped, not read: parsing copies what it keeps, and one copy of the weights is enough
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
        ):
            proto.ParseFromString(view)
    except DecodeError as error:
        raise FrontendError(
            f"{path} is no ONNX model, or is cut off ({size} bytes)", where=str(path), remedy=_EXPORT_AGAIN
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if not proto.HasField("graph") or proto.ir_version < 1 or not (proto.graph.output or proto.graph.node):
        raise FrontendError(
            f"{path} holds no ONNX model",
            where=str(path),
            remedy="give an ONNX model file; a single tensor, weights alone or another protobuf can't be optimized",
        )
    return proto


def _size(path: Path) -> int:
    """Bytes of a file that can be an ONNX model."""
    if path.is_dir():
        models = sorted(p.name for p in path.glob("*.onnx"))[:3]
        remedy = f"give the model file in it, such as {path / models[0]}" if models else "give a model file"
        raise FrontendError(f"{path} is a folder, not a model file", where=str(path), remedy=remedy)
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise FrontendError(f"{path} doesn't exist", where=str(path), remedy="check the path") from None
    except OSError as error:
        raise _unreadable(path, error) from error
    if not size:
        raise FrontendError(f"{path} is empty", where=str(path), remedy=_EXPORT_AGAIN)
    if size > _PROTOBUF_LIMIT:
        raise FrontendError(
            f"{path} has {size} bytes, more than the 2 GiB that an ONNX file can hold",
            where=str(path),
            remedy="save the model with external data",
        )
    return size


def _unreadable(path: Path, error: OSError) -> FrontendError:
    return FrontendError(
        f"{path} can't be read: {error.strerror or error}", where=str(path), remedy="check the file and its permissions"
    )


def deserialized(proto: onnx.ModelProto, where: str) -> onnx_ir.Model:
    """The onnx_ir model. Sparse tensors, which onnx_ir can't hold, become dense ones. Raises FrontendError."""
    for sparse in proto.graph.sparse_initializer:
        proto.graph.initializer.append(_dense(sparse))
    del proto.graph.sparse_initializer[:]
    try:
        try:
            return onnx_ir.serde.deserialize_model(proto)
        except onnx_ir.serde.SerdeError:
            for node in proto.graph.node:
                _densify(node)
            return onnx_ir.serde.deserialize_model(proto)
    except (onnx_ir.serde.SerdeError, NotImplementedError, ValueError, TypeError, KeyError) as error:
        reason = error.__cause__ or error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        raise FrontendError(
            f"the model can't be read: {str(reason).splitlines()[0] if str(reason) else type(reason).__name__}",
            where=where,
            remedy="check it with onnx.checker and export it again",
        ) from error


def _densify(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.SPARSE_TENSOR and node.op_type == "Constant":
            dense = _dense(attribute.sparse_tensor)
            attribute.Clear()
            attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
            attribute.t.CopyFrom(dense)


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    array = np.zeros(tuple(sparse.dims), values.dtype)
    array[tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, array.shape)] = values
    return numpy_helper.from_array(array, sparse.values.name)


def check_model(model: onnx_ir.Model, where: str) -> None:
    """Raise FrontendError for IR versions and operator sets that can't be read."""
    if model.ir_version > onnx.IR_VERSION:
        raise FrontendError(
            f"the model has ONNX IR version {model.ir_version}; the installed onnx knows versions to {onnx.IR_VERSION}",
            where=where,
            remedy="install a newer onnx, or export the model for an older version",
        )
    opsets = model.opset_imports
    version = opsets.get("", opsets.get("ai.onnx"))
    if version is None:
        if all(node.domain != "" for node in model.graph):
            return
        version = 1  # what a model that says nothing means
    if version > NEWEST_OPSET:
        raise FrontendError(
            f"the model uses ONNX operator set {version}; the newest that the installed onnx knows is {NEWEST_OPSET}",
            where=where,
            remedy="install a newer onnx, or export the model for an older operator set",
        )
