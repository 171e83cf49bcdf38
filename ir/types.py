"""Types of values: element type, shape, quantization and sparsity; frozen and hashable.

A small integer tensor that holds shape arithmetic also carries its contents (`known`), as dimensions. So shapes that an
exporter computes with Shape, Gather and Concat nodes are known while the graph is built, symbols included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from planish.ir import dims, dtypes
from planish.ir.dims import Dim
from planish.ir.dtypes import DType
from planish.ir.errors import VerifyError

SCALES_SHOWN = 4  # per-channel scales that are printed one by one
KNOWN_LIMIT = 64  # elements; shape tensors are far smaller
SHAPE_DTYPES = (dtypes.i64, dtypes.i32, dtypes.boolean)  # of tensors that take part in shape arithmetic


@dataclass(frozen=True, slots=True)
class Quant:
    """Affine quantization: real = scale * (stored - zero). One scale, or one per channel along `axis`.

    codebook: name of the `planish.ir.codebooks` entry that the codes of a weight are in, "" for any codes.
    """

    scale: tuple[float, ...]
    zero: int = 0
    axis: int | None = None
    codebook: str = ""

    @property
    def scales(self) -> np.ndarray:
        """The scales, float64[1] or float64[channels]."""
        return np.asarray(self.scale, np.float64)

    def along(self, rank: int) -> np.ndarray:
        """The scales in a shape that broadcasts against a tensor of `rank` axes."""
        return self.scales.reshape([-1 if i == self.axis else 1 for i in range(rank)])

    def times(self, factor: float) -> Quant:
        """The same codes for numbers that are `factor` times as large."""
        return replace(self, scale=tuple(s * factor for s in self.scale))


@dataclass(frozen=True, slots=True)
class Sparsity:
    """Structure of the zeros of a weight, see `planish.ir.sparsity`.

    kind: "unstructured"; "block": zeros come in runs of block[0] along `axis`, which start at multiples of it; "n:m":
    of each block[1] in a row along `axis`, likewise aligned, at most block[0] aren't 0.
    density: at most this share of the elements (of the blocks) isn't 0.
    """

    kind: str
    block: tuple[int, ...] = ()
    axis: int | None = None
    density: float = 1.0


@dataclass(frozen=True, slots=True)
class TensorType:
    """dtype and shape of a tensor; `shape` None means that not even the rank is known.

    known: the contents, row-major, of an integer tensor of rank 0 or 1 with at most 64 elements, where they follow
    from shapes and constants. Derived by `infer`, never printed.
    """

    dtype: DType
    shape: tuple[Dim, ...] | None
    quant: Quant | None = None
    sparsity: Sparsity | None = None
    known: tuple[Dim, ...] | None = None

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The shape. Raises VerifyError if the rank is unknown."""
        if self.shape is None:
            raise VerifyError("a tensor of known rank is needed here, but its rank is unknown")
        return self.shape

    @property
    def is_static(self) -> bool:
        return self.shape is not None and all(isinstance(dim, int) for dim in self.shape)

    @property
    def elements(self) -> Dim:
        """Number of elements, symbolic where the shape is."""
        return dims.product(self.dims)

    def with_shape(self, shape: tuple[Dim, ...] | None) -> TensorType:
        return TensorType(self.dtype, shape, self.quant)

    def interface(self) -> TensorType:
        """The type without the contents: what a reader of the value may rely on."""
        return replace(self, known=None) if self.known is not None else self

    def accepts(self, other: Type) -> bool:
        """True if a value of type `other` may stand where this type was: same dtype, no dimension contradicted."""
        if not isinstance(other, TensorType) or (self.dtype, self.quant) != (other.dtype, other.quant):
            return False
        if self.shape is None or other.shape is None:
            return True
        return len(self.shape) == len(other.shape) and all(
            dims.may_equal(a, b) for a, b in zip(self.shape, other.shape, strict=True)
        )

    def __str__(self) -> str:
        inside = "..." if self.shape is None else ", ".join(map(str, self.shape)) or "()"
        return f"{_head(self)}[{inside}]"

    __repr__ = __str__


@dataclass(frozen=True, slots=True)
class OtherType:
    """A value that isn't a tensor (sequence, optional, map, sparse tensor), or of unknown type; `spec` says what."""

    spec: str

    def interface(self) -> OtherType:
        return self

    def accepts(self, other: Type) -> bool:
        return isinstance(other, OtherType)

    def __str__(self) -> str:
        return f"other({self.spec!r})"

    __repr__ = __str__


Type = TensorType | OtherType


def tensor(dtype: DType, *shape: Dim) -> TensorType:
    """Short form: `tensor(f32, "batch", 197, 384)`."""
    return TensorType(dtype, shape)


def of_array(array: np.ndarray) -> TensorType:
    """The type of a constant, with its contents where they may take part in shape arithmetic."""
    dtype = dtypes.of(array)
    known = None
    if dtype in SHAPE_DTYPES and array.ndim <= 1 and array.size <= KNOWN_LIMIT:
        known = tuple(int(v) for v in array.reshape(-1))
    return TensorType(dtype, tuple(map(int, array.shape)), known=known)


def substitute(type_: Type, binding: Mapping[str, Dim]) -> Type:
    """`type_` with symbolic dimensions replaced."""
    if isinstance(type_, OtherType) or type_.shape is None:
        return type_
    return replace(type_, shape=tuple(dims.substitute(d, binding) for d in type_.shape), known=None)


def _head(type_: TensorType) -> str:
    text = type_.dtype.name
    if type_.quant is not None:
        scale = _scales(type_.quant)
        axis = "" if type_.quant.axis is None else f", axis={type_.quant.axis}"
        codebook = f", codebook={type_.quant.codebook!r}" if type_.quant.codebook else ""
        text = f"q({text}, {scale}, {type_.quant.zero}{axis}{codebook})"
    if type_.sparsity is not None:
        zeros = type_.sparsity
        density = f", density={zeros.density!r}" if zeros.density != 1 else ""
        text = f"sparse({text}, {zeros.kind!r}, {zeros.block!r}, axis={zeros.axis}{density})"
    return text


def _scales(quant: Quant) -> str:
    """The scales; more than a few of them by number and digest, as the text form wants to be read."""
    if quant.axis is None:
        return repr(quant.scale[0])
    if len(quant.scale) <= SCALES_SHOWN:
        return repr(quant.scale)
    digest = hashlib.sha256(quant.scales.astype("<f8").tobytes()).hexdigest()[:8]
    return f"scales({len(quant.scale)}, {digest!r})"
