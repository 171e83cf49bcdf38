"""Element types and shapes of the IR in onnx_ir's terms."""

from __future__ import annotations

import onnx_ir as onnx

from planish.ir.dtypes import DType
from planish.ir.types import TensorType

_NAMES = {
    "f64": "DOUBLE", "f32": "FLOAT", "f16": "FLOAT16", "bf16": "BFLOAT16",
    "f8e4m3fn": "FLOAT8E4M3FN", "f8e4m3fnuz": "FLOAT8E4M3FNUZ", "f8e5m2": "FLOAT8E5M2", "f8e5m2fnuz": "FLOAT8E5M2FNUZ",
    "f8e8m0": "FLOAT8E8M0", "f4e2m1": "FLOAT4E2M1",
    "i64": "INT64", "i32": "INT32", "i16": "INT16", "i8": "INT8", "i4": "INT4", "i2": "INT2",
    "u64": "UINT64", "u32": "UINT32", "u16": "UINT16", "u8": "UINT8", "u4": "UINT4", "u2": "UINT2",
    "bool": "BOOL", "str": "STRING", "c64": "COMPLEX64", "c128": "COMPLEX128",
}  # fmt: skip

TYPE_TEXT = {name: f"tensor({text.lower()})" for name, text in _NAMES.items()}
"""Element type name to the spelling of ONNX schemas: "f32" to "tensor(float)"."""


def onnx_dtype(dtype: DType) -> onnx.DataType:
    """The ONNX element type."""
    return onnx.DataType[_NAMES[dtype.name]]


def onnx_shape(type_: TensorType, dim_params: dict[str, str]) -> onnx.Shape | None:
    """The ONNX shape; a symbolic dimension is written as the source spelled it."""
    if type_.shape is None:
        return None
    return onnx.Shape([dim if isinstance(dim, int) else dim_params.get(dim, dim) for dim in type_.shape])
