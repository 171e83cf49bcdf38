"""Element types: name, width, value range and numpy storage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np

from planish.ir.errors import VerifyError

Kind = Literal["float", "int", "uint", "bool", "str", "complex"]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type. `storage` is the numpy dtype that holds it (sub-byte types are held one per byte)."""

    name: str
    kind: Kind
    bits: int
    storage: np.dtype[np.generic]

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")

    @property
    def min(self) -> int:
        """Smallest integer of the type. Raises VerifyError for types that aren't integers."""
        return -(1 << (self.bits - 1)) if self._integer() == "int" else 0

    @property
    def max(self) -> int:
        """Largest integer of the type. Raises VerifyError for types that aren't integers."""
        return (1 << (self.bits - 1)) - 1 if self._integer() == "int" else (1 << self.bits) - 1

    def holds(self, array: np.ndarray) -> bool:
        """True if `array` is stored as this type and, for integers, stays in its range."""
        if array.dtype != self.storage:
            return False
        if not self.is_integer or self.bits == 8 * self.storage.itemsize or array.size == 0:
            return True
        wide = array.astype(np.int64)
        return bool(wide.min() >= self.min and wide.max() <= self.max)

    def _integer(self) -> Kind:
        if not self.is_integer:
            raise VerifyError(f"{self.name} is no integer type and has no integer range")
        return self.kind

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__


def _dtype(name: str, kind: Kind, bits: int, storage: object) -> DType:
    return DType(name, kind, bits, np.dtype(storage))  # type: ignore[call-overload]


f64 = _dtype("f64", "float", 64, np.float64)
f32 = _dtype("f32", "float", 32, np.float32)
f16 = _dtype("f16", "float", 16, np.float16)
bf16 = _dtype("bf16", "float", 16, ml_dtypes.bfloat16)
f8e4m3fn = _dtype("f8e4m3fn", "float", 8, ml_dtypes.float8_e4m3fn)
f8e4m3fnuz = _dtype("f8e4m3fnuz", "float", 8, ml_dtypes.float8_e4m3fnuz)
f8e5m2 = _dtype("f8e5m2", "float", 8, ml_dtypes.float8_e5m2)
f8e5m2fnuz = _dtype("f8e5m2fnuz", "float", 8, ml_dtypes.float8_e5m2fnuz)
f8e8m0 = _dtype("f8e8m0", "float", 8, ml_dtypes.float8_e8m0fnu)
f4e2m1 = _dtype("f4e2m1", "float", 4, ml_dtypes.float4_e2m1fn)
i64 = _dtype("i64", "int", 64, np.int64)
i32 = _dtype("i32", "int", 32, np.int32)
i16 = _dtype("i16", "int", 16, np.int16)
i8 = _dtype("i8", "int", 8, np.int8)
i4 = _dtype("i4", "int", 4, ml_dtypes.int4)
i2 = _dtype("i2", "int", 2, ml_dtypes.int2)
u64 = _dtype("u64", "uint", 64, np.uint64)
u32 = _dtype("u32", "uint", 32, np.uint32)
u16 = _dtype("u16", "uint", 16, np.uint16)
u8 = _dtype("u8", "uint", 8, np.uint8)
u4 = _dtype("u4", "uint", 4, ml_dtypes.uint4)
u2 = _dtype("u2", "uint", 2, ml_dtypes.uint2)
boolean = _dtype("bool", "bool", 8, np.bool_)
string = _dtype("str", "str", 0, np.object_)
c64 = _dtype("c64", "complex", 64, np.complex64)
c128 = _dtype("c128", "complex", 128, np.complex128)

ALL: tuple[DType, ...] = (
    *(f64, f32, f16, bf16, f8e4m3fn, f8e4m3fnuz, f8e5m2, f8e5m2fnuz, f8e8m0, f4e2m1),
    *(i64, i32, i16, i8, i4, i2, u64, u32, u16, u8, u4, u2),
    *(boolean, string, c64, c128),
)
BY_NAME: dict[str, DType] = {dtype.name: dtype for dtype in ALL}
_BY_STORAGE: dict[np.dtype[np.generic], DType] = {dtype.storage: dtype for dtype in ALL}


def of(array: np.ndarray | np.dtype[np.generic]) -> DType:
    """The element type of a numpy array or dtype. Raises VerifyError for dtypes that ONNX doesn't have."""
    dtype = array.dtype if isinstance(array, np.ndarray) else np.dtype(array)
    if dtype.kind in "US":
        return string
    if (found := _BY_STORAGE.get(dtype)) is None:
        raise VerifyError(f"numpy dtype {dtype} has no element type in the IR")
    return found
