"""Ops that pick, join and pad parts of tensors, with the index semantics of ONNX."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planish.ir import dims, dtypes
from planish.ir.dims import Dim
from planish.ir.errors import VerifyError
from planish.ir.op import Op, need
from planish.ir.ops.shape import check_axes, least, like, with_known
from planish.ir.types import TensorType

_FAR = 2**31 - 1  # a slice bound from here on means "to the end": no axis is that long

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "edge", "wrap": "wrap"}


class Concat(Op):
    """Join tensors along an axis.

    parts: any[...], at least one, of one type but for axis   y: same dtype.
    Exact. C1 0 <= axis < rank. C2 the other dimensions aren't provably different. Source: ONNX Concat-13.
    """

    axis: int

    def infer(self, *parts: TensorType) -> TensorType:
        need(bool(parts), "there is nothing to join")
        first = parts[0]
        check_axes((self.axis,), len(first.dims))
        shape = list(first.dims)
        for part in parts[1:]:
            need((part.dtype, part.quant) == (first.dtype, first.quant), f"{part} doesn't join {first}")
            need(len(part.dims) == len(shape), f"{part} doesn't join {first}")
            for i, dim in enumerate(part.dims):
                if i == self.axis:
                    shape[i] = dims.add(shape[i], dim)
                else:
                    need(dims.may_equal(shape[i], dim), f"{part} doesn't join {first} along axis {self.axis}")
                    shape[i] = dim if isinstance(dim, int) else shape[i]
        known: list[Dim] | None = []
        for part in parts:
            known = None if known is None or part.known is None else [*known, *part.known]
        return with_known(like(first, shape), known)

    def evaluate(self, *parts: np.ndarray) -> np.ndarray:
        return np.concatenate(parts, axis=self.axis)


class Split(Op):
    """Cut a tensor into parts of the given sizes along an axis.

    x: any[...]   one result per size, same dtype.
    Exact. C1 0 <= axis < rank. C2 sizes aren't negative and sum up to the extent. Source: ONNX Split-18.
    """

    axis: int
    sizes: tuple[int, ...]

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_axes((self.axis,), len(x.dims))
        need(bool(self.sizes) and min(self.sizes) >= 0, f"sizes {self.sizes} are empty or negative")
        extent = x.dims[self.axis]
        need(dims.may_equal(extent, sum(self.sizes)), f"sizes {self.sizes} don't sum up to {extent}")
        results, start = [], 0
        for size in self.sizes:
            shape = (*x.dims[: self.axis], size, *x.dims[self.axis + 1 :])
            known = None if x.known is None else x.known[start : start + size]
            results.append(with_known(like(x, shape), known))
            start += size
        return tuple(results)

    def evaluate(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(np.split(x, np.cumsum(self.sizes)[:-1], axis=self.axis))


class Slice(Op):
    """Every step-th element between two bounds, along some axes.

    x: any[...]   y: same dtype.
    Exact. Bounds below zero count from the end; all are then clamped, for a negative step to the last element.
    C1 `axes` are sorted, non-negative and in range; no step is 0. C2 the length follows from the extent: on a symbolic
    axis, bounds may lie at most one element inside, unless they mean the end. Source: ONNX Slice-13 with constant
    bounds.
    """

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    axes: tuple[int, ...]
    steps: tuple[int, ...]

    def infer(self, x: TensorType) -> TensorType:
        need(
            len(self.starts) == len(self.ends) == len(self.axes) == len(self.steps),
            "starts, ends, axes and steps differ in number",
        )
        check_axes(self.axes, len(x.dims))
        need(all(self.steps), "a step is 0")
        shape = list(x.dims)
        for start, end, axis, step in zip(self.starts, self.ends, self.axes, self.steps, strict=True):
            shape[axis] = _sliced(shape[axis], start, end, step)
        known = x.known
        if known is not None and self.axes:
            known = known[_clamped(len(known), self.starts[0], self.ends[0], self.steps[0])]
        return with_known(like(x, shape), known)

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        index = [slice(None)] * x.ndim
        for start, end, axis, step in zip(self.starts, self.ends, self.axes, self.steps, strict=True):
            index[axis] = _clamped(x.shape[axis], start, end, step)
        return x[tuple(index)]


class Gather(Op):
    """Pick slices along an axis by index.

    x: any[...], indices: i64|i32[...]   y: same dtype as x, axis replaced by the axes of indices.
    Exact; negative indices count from the end, one out of bounds raises IndexError. C1 0 <= axis < rank.
    Source: ONNX Gather-13.
    """

    axis: int

    def infer(self, x: TensorType, indices: TensorType) -> TensorType:
        check_axes((self.axis,), len(x.dims))
        need(indices.dtype in (dtypes.i64, dtypes.i32), f"indices are {indices}, not i64 or i32")
        result = _gathered(x, self.axis, indices.dims)
        picked = tuple(i for i in indices.known or () if isinstance(i, int))
        extent = x.dims[self.axis]
        if isinstance(extent, int):
            for i in picked:
                need(-extent <= i < extent, f"index {i} is out of bounds of extent {extent}")
        if x.known is None or x.rank != 1 or indices.known is None or len(picked) != len(indices.known):
            return result
        return with_known(result, [x.known[i] for i in picked])

    def evaluate(self, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
        return np.asarray(np.take(x, indices, axis=self.axis))


class Pad(Op):
    """Grow (or, by negative numbers, shrink) a tensor at the ends of its axes.

    x: any[...]   y: same dtype, axis i grows by pads[i] + pads[rank + i].
    Exact. mode: "constant" fills with `value`; "reflect" mirrors without repeating the border; "edge" repeats it;
    "wrap" goes round. Shrinking comes first. C1 two numbers per axis, begins then ends.
    Source: ONNX Pad-24 with constant pads over all axes.
    """

    pads: tuple[int, ...]
    mode: str = "constant"
    value: float | int = 0

    def infer(self, x: TensorType) -> TensorType:
        rank = len(x.dims)
        need(len(self.pads) == 2 * rank, f"{len(self.pads)} pads for rank {rank}")
        need(self.mode in _PAD_MODES, f"mode {self.mode!r} is none of {', '.join(_PAD_MODES)}")
        shape = [dims.add(x.dims[i], self.pads[i] + self.pads[rank + i]) for i in range(rank)]
        need(not any(isinstance(d, int) and d < 0 for d in shape), f"pads {self.pads} cut away more than {x} has")
        known = None
        if x.known is not None and rank == 1 and self.mode == "constant" and min(self.pads) >= 0:
            known = (int(self.value),) * self.pads[0] + x.known + (int(self.value),) * self.pads[1]
        return with_known(like(x, shape), known)

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        begins, ends = self.pads[: x.ndim], self.pads[x.ndim :]
        cut = tuple(slice(max(0, -b), n - max(0, -e)) for b, e, n in zip(begins, ends, x.shape, strict=True))
        widths = [(max(0, b), max(0, e)) for b, e in zip(begins, ends, strict=True)]
        if self.mode != "constant":
            return np.pad(x[cut], widths, mode=_PAD_MODES[self.mode])  # type: ignore[call-overload]
        result = np.full([n + b + e for n, (b, e) in zip(x[cut].shape, widths, strict=True)], self.value).astype(
            x.dtype
        )
        result[tuple(slice(b, n - e) for n, (b, e) in zip(result.shape, widths, strict=True))] = x[cut]
        return result


def _gathered(x: TensorType, axis: int, picked: tuple[Dim, ...]) -> TensorType:
    """Type of x with an axis replaced; scales along a later axis move with it."""
    shape = (*x.dims[:axis], *picked, *x.dims[axis + 1 :])
    quant = x.quant
    if quant is None or quant.axis is None:
        return like(x, shape)
    need(quant.axis != axis, "quantization per channel isn't tracked along the axis that is picked from")
    place = quant.axis + len(picked) - 1 if quant.axis > axis else quant.axis
    return TensorType(x.dtype, shape, replace(quant, axis=place))


def _clamped(extent: int, start: int, end: int, step: int) -> slice:
    """The Python slice that does what ONNX Slice does on an axis of the given extent."""
    start, end = (bound + extent if bound < 0 else bound for bound in (start, end))
    if step > 0:
        return slice(min(max(start, 0), extent), min(max(end, 0), extent), step)
    if extent == 0:
        return slice(0, 0, step)
    start, end = min(max(start, 0), extent - 1), min(max(end, -1), extent - 1)
    return slice(start, None if end == -1 else end, step)


def _sliced(extent: Dim, start: int, end: int, step: int) -> Dim:
    """Length of a slice. Raises VerifyError where it doesn't follow from a symbolic extent."""
    if isinstance(extent, int):
        return len(range(extent)[_clamped(extent, start, end, step)])
    if step < 0:
        if (start == -1 or start >= _FAR) and end <= -_FAR:
            return dims.ceildiv(extent, -step)
        raise VerifyError(f"slice {start}:{end}:{step} of extent {extent} has no known length")
    first, last = _bound(extent, start), _bound(extent, end)
    span = dims.sub(last, first)
    if isinstance(span, int):
        return dims.ceildiv(max(span, 0), step)
    removed = dims.sub(extent, span)
    need(
        isinstance(removed, int) and removed <= least(extent),
        f"slice {start}:{end}:{step} of extent {extent} has no known length",
    )
    return dims.ceildiv(span, step)


def _bound(extent: Dim, bound: int) -> Dim:
    """A slice bound, clamped to 0..extent, of a symbolic extent."""
    if bound >= _FAR:
        return extent
    if bound <= -_FAR:
        return 0
    need(abs(bound) <= least(extent), f"bound {bound} of extent {extent} may lie outside")
    return bound if bound >= 0 else dims.add(extent, bound)
