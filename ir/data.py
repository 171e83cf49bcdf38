"""Payload of constants: an array, or a promise of one, so that large weights stay on disk until somebody looks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np

from planish.ir.types import KNOWN_LIMIT, SHAPE_DTYPES, Quant, Sparsity, TensorType, of_array

_SAMPLE = 64  # elements that take part in the hash


class Data:
    """Contents of a constant. Immutable; equal when type and bytes are equal; lazily loaded where it comes from a file.

    origin: the object that the frontend read it from, for a writer that can pass it on without loading; or None.
    quant: what the integers stand for, if they are codes; then they take no part in shape arithmetic. sparsity: the
    structure of the zeros of a weight, which the verifier checks.
    """

    __slots__ = ("_array", "_digest", "_hash", "_load", "origin", "type")

    def __init__(self, array: np.ndarray, quant: Quant | None = None, sparsity: Sparsity | None = None):
        if array.dtype.kind in "US":
            array = array.astype(object)  # the storage of strings
        self._array: np.ndarray | None = array
        self._load: Callable[[], np.ndarray] | None = None
        self.type = of_array(array)
        if quant is not None or sparsity is not None:
            self.type = TensorType(self.type.dtype, self.type.shape, quant, sparsity)
        self.origin: object | None = None
        self._hash: int | None = None
        self._digest: str | None = None

    @staticmethod
    def lazy(type_: TensorType, load: Callable[[], np.ndarray], origin: object | None = None) -> Data:
        """A constant of the given type whose array `load` returns when it is first needed; it is not kept."""
        small = type_.shape is None or (isinstance(n := type_.elements, int) and n <= KNOWN_LIMIT)
        if type_.shape is None or (small and type_.dtype in SHAPE_DTYPES):
            return Data(load())  # takes part in shape arithmetic
        data = Data.__new__(Data)
        data._array, data._load, data.type, data.origin = None, load, type_, origin
        data._hash, data._digest = None, None
        return data

    def numpy(self) -> np.ndarray:
        """The array; not to be written to. Raises whatever the loader raises."""
        if self._array is not None:
            return self._array
        if self._load is None:
            raise ValueError("constant has neither array nor loader")
        return self._load()

    @property
    def loaded(self) -> np.ndarray | None:
        """The array if it is in memory; None if looking at it would have to load it."""
        return self._array

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(int(dim) for dim in self.type.dims)

    @property
    def nbytes(self) -> int:
        """Bytes as stored in a file: sub-byte types are packed."""
        return (self.size * self.type.dtype.bits + 7) // 8

    @property
    def digest(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of dtype, shape and bytes."""
        if self._digest is None:
            sha = hashlib.sha256(str(self.type).encode())
            array = self.numpy()
            sha.update(repr(array.tolist()).encode() if array.dtype == object else _bytes(array).data)
            self._digest = sha.hexdigest()[:16]
        return self._digest

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Data) or self.type != other.type or hash(self) != hash(other):
            return False
        a, b = self.numpy(), other.numpy()
        if a.dtype == object:
            return bool(np.array_equal(a, b))
        return bool(np.array_equal(_bytes(a), _bytes(b)))  # by bits: NaN equals itself, 0.0 differs from -0.0

    def __hash__(self) -> int:
        if self._hash is None:
            flat = self.numpy().reshape(-1)
            sample = flat[:: max(1, flat.size // _SAMPLE)]
            content = tuple(sample.tolist()) if sample.dtype == object else sample.tobytes()
            self._hash = hash((str(self.type), content))
        return self._hash

    def __repr__(self) -> str:
        return f"Data({self.type})"


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
