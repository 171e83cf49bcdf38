"""Feeds of a model (input name -> array) and the checks that they fit its inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.ir.errors import CalibrationError

Feeds = dict[str, np.ndarray]

LABELS = "labels"


@dataclass(frozen=True)
class InputSpec:
    """What a model input accepts: `shape` holds sizes and names of symbolic dimensions; None means unknown rank."""

    dtype: np.dtype
    shape: tuple[int | str, ...] | None

    def __str__(self) -> str:
        dims = "any rank" if self.shape is None else ", ".join(map(str, self.shape))
        return f"{self.dtype}[{dims}]"


def check_keys(found: Collection[str], inputs: Mapping[str, InputSpec], where: str) -> None:
    """Refuse missing inputs and unknown keys. Raises CalibrationError."""
    if missing := [name for name in inputs if name not in found]:
        raise CalibrationError(
            f"no data for input {', '.join(map(repr, missing))}; found {', '.join(map(repr, found)) or 'nothing'}",
            where=where,
            remedy="name the arrays like the model's inputs",
        )
    if unknown := [name for name in found if name not in inputs and name != LABELS]:
        raise CalibrationError(
            f"the model has no input {', '.join(map(repr, unknown))}; its inputs are {', '.join(map(repr, inputs))}",
            where=where,
            remedy="rename or remove the extra array (only 'labels' may be extra)",
        )


def checked_array(name: str, array: np.ndarray, spec: InputSpec, where: str) -> np.ndarray:
    """The array where its dtype, shape and values fit the input, never cast. Raises CalibrationError."""
    if spec.dtype.kind == "O" and array.dtype.kind in "US":
        array = array.astype(object)
    if array.dtype.kind == "V" and array.dtype.names is None and array.dtype.itemsize == spec.dtype.itemsize:
        array = array.view(spec.dtype)  # numpy files keep the bits of bfloat16 and float8, not their names
    if array.dtype != spec.dtype:
        raise CalibrationError(
            f"input '{name}' has dtype {array.dtype}, expected {spec.dtype}",
            where=where,
            remedy=f"save it with {name}.astype(numpy.{spec.dtype}) after the model's own preprocessing",
        )
    expected = array.shape if spec.shape is None else spec.shape
    if len(array.shape) != len(expected) or any(
        isinstance(dim, int) and dim != size for dim, size in zip(expected, array.shape, strict=True)
    ):
        raise shape_error(name, array.shape, spec, where)
    if is_float(spec.dtype) and not (finite := np.isfinite(array)).all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise CalibrationError(
            f"input '{name}' has {int(finite.size - finite.sum())} NaN or infinite values, the first at {index}",
            where=where,
            remedy="remove these samples or repair their preprocessing",
        )
    return array


def shape_error(
    name: str, found: tuple[int, ...], spec: InputSpec, where: str, *, samples_first: bool = False
) -> CalibrationError:
    """The error for an array of the wrong shape."""
    remedy = "reshape the data, or bind the model's dimensions with --shape"
    if spec.shape is not None and len(found) == len(spec.shape) - 1:
        remedy = "add the missing axis, for instance with array[None] for a single sample"
    what = "axis 0 = samples" if samples_first else "one batch"
    return CalibrationError(f"input '{name}' has shape {found}, expected {spec} ({what})", where=where, remedy=remedy)


def checked_labels(labels: np.ndarray, where: str) -> np.ndarray:
    """Class numbers of one feed as int64. Raises CalibrationError."""
    labels = np.atleast_1d(labels)
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise CalibrationError(
            f"key 'labels' is {labels.dtype}{list(labels.shape)}, expected integers with one axis",
            where=where,
            remedy="give class numbers",
        )
    return labels.astype(np.int64)


def is_float(dtype: np.dtype) -> bool:
    """Whether values of this dtype can be NaN, including bfloat16 and the 8-bit floats."""
    return dtype.kind in "fc" or dtype.name.startswith(("bfloat", "float"))


def update_digest(sha: Any, name: str, array: np.ndarray) -> None:
    """Add name, type and content of an array to a running hash."""
    sha.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
    if array.dtype.kind == "O":
        for item in array.ravel():
            data = item if isinstance(item, bytes) else str(item).encode()
            sha.update(f"{len(data)}:".encode() + data)
    else:
        sha.update(np.ascontiguousarray(array).tobytes())
