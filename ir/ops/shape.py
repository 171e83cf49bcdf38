"""Ops that change or compute shapes. Integer results that follow from shapes carry their contents in the type.

So `Reshape(x, Concat(Gather(Shape(x), 0), 197, -1))` is understood while the graph is built, symbols included. Where a
target shape isn't known, `infer` raises VerifyError, and the frontend carries the node as Opaque.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from planish.ir import dims, dtypes
from planish.ir.data import Data
from planish.ir.dims import Dim
from planish.ir.errors import VerifyError
from planish.ir.op import Op, need
from planish.ir.ops.contents import never_negative
from planish.ir.types import KNOWN_LIMIT, TensorType, tensor


class Shape(Op):
    """The shape of a tensor.

    x: any[...]   y: i64[rank(x)].  Exact; the contents are known. Source: ONNX Shape-24 without start and end.
    """

    def infer(self, x: TensorType) -> TensorType:
        return with_known(tensor(dtypes.i64, len(x.dims)), x.dims)

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        return np.array(x.shape, np.int64)


class Size(Op):
    """The number of elements of a tensor.

    x: any[...]   y: i64[()].  Exact; the contents are known. Source: ONNX Size-24.
    """

    def infer(self, x: TensorType) -> TensorType:
        return with_known(tensor(dtypes.i64), (x.elements,))

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        return np.array(x.size, np.int64)


class Reshape(Op):
    """The same elements in the same order under another shape.

    x: any[...]   y: same dtype, as many elements.
    Exact. C1 `shape` holds positive numbers, 0 (copy the dimension of x at this place) and at most one -1 (what is
    left). C2 the element counts agree, or aren't provably different. Source: ONNX Reshape-24 with constant shape.
    """

    shape: tuple[int, ...]

    @staticmethod
    def to(x: TensorType, target: Sequence[Dim]) -> Reshape | None:
        """The canonical Reshape from type `x` to the dimensions `target`; None if it can't be said.

        Static dimensions are spelled as they are, a symbolic one equal to the dimension of x at the same place as 0,
        at most one other as -1. A static dimension 0 can't be said.
        """
        spelled: list[int] = []
        for place, dim in enumerate(target):
            if isinstance(dim, int):
                spelled.append(dim if dim > 0 else -2)
            else:
                spelled.append(0 if place < len(x.dims) and x.dims[place] == dim else -1)
        if -2 in spelled or spelled.count(-1) > 1:
            return None
        op = Reshape(tuple(spelled))
        try:
            op.infer(x)
        except VerifyError:
            return None
        return op

    def infer(self, x: TensorType) -> TensorType:
        need(all(dim >= -1 for dim in self.shape), f"shape {self.shape} has a dimension below -1")
        return with_known(like(x, _resolve(x.dims, self.shape, allow_zero=False)), x.known)

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(_copy_dims(x.shape, self.shape))


class DynamicReshape(Op):
    """Reshape to a computed shape.

    x: any[...], shape: i64[rank]   y: same dtype, shape as the contents of `shape` say, with 0 and -1 as in Reshape.
    Exact. C1 the contents of `shape` are known. allow_zero: a 0 means an empty dimension, not a copied one.
    Source: ONNX Reshape-24.
    """

    allow_zero: bool = False

    def infer(self, x: TensorType, shape: TensorType) -> TensorType:
        return with_known(like(x, _resolve(x.dims, target_of(shape), self.allow_zero)), x.known)

    def evaluate(self, x: np.ndarray, shape: np.ndarray) -> np.ndarray:
        target = [int(dim) for dim in shape]
        return x.reshape(target if self.allow_zero else _copy_dims(x.shape, target))


class Transpose(Op):
    """Reorder axes: axis i of y is axis perm[i] of x.

    x: any[...]   y: same dtype.  Exact. C1 `perm` is a permutation of the axes of x. Source: ONNX Transpose-24.
    """

    perm: tuple[int, ...]

    def infer(self, x: TensorType) -> TensorType:
        rank = len(x.dims)
        need(sorted(self.perm) == list(range(rank)), f"perm {self.perm} is no permutation of {rank} axes")
        quant = x.quant
        if quant is not None and quant.axis is not None:
            quant = replace(quant, axis=self.perm.index(quant.axis % rank))
        return TensorType(x.dtype, tuple(x.dims[axis] for axis in self.perm), quant, known=x.known)

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        return np.transpose(x, self.perm)


class Squeeze(Op):
    """Remove axes of extent 1.

    x: any[...]   y: same dtype.  Exact. C1 `axes` are sorted, non-negative, in range, and not provably longer than 1.
    Source: ONNX Squeeze-24.
    """

    axes: tuple[int, ...]

    def infer(self, x: TensorType) -> TensorType:
        check_axes(self.axes, len(x.dims))
        for axis in self.axes:
            need(dims.may_equal(x.dims[axis], 1), f"axis {axis} has extent {x.dims[axis]}, not 1")
        return with_known(like(x, (d for i, d in enumerate(x.dims) if i not in self.axes)), x.known)

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        return np.squeeze(x, self.axes)


class Unsqueeze(Op):
    """Insert axes of extent 1, at the places `axes` of the result.

    x: any[...]   y: same dtype.  Exact. C1 `axes` are sorted, non-negative and in range. Source: ONNX Unsqueeze-24.
    """

    axes: tuple[int, ...]

    def infer(self, x: TensorType) -> TensorType:
        rank = len(x.dims) + len(self.axes)
        check_axes(self.axes, rank)
        rest = iter(x.dims)
        return with_known(like(x, (1 if i in self.axes else next(rest) for i in range(rank))), x.known)

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        return np.expand_dims(x, self.axes)


class Expand(Op):
    """Broadcast a tensor with a shape, in both directions.

    x: any[...], shape: i64[rank]   y: same dtype, numpy broadcast of x.shape and the contents of `shape`.
    Exact. C1 the contents of `shape` are known and broadcast with x. Source: ONNX Expand-13.
    """

    def infer(self, x: TensorType, shape: TensorType) -> TensorType:
        target = target_of(shape)
        need(all(dim != -1 for dim in target), f"shape {target} has a dimension -1")
        rank = max(len(x.dims), len(target))
        pairs = zip(_padded(x.dims, rank), _padded(target, rank), strict=True)
        result = like(x, (dims.broadcast(a, b) for a, b in pairs))
        known = x.known
        if known is not None and len(known) == 1 and isinstance(count := result.elements, int) and count <= KNOWN_LIMIT:
            known = known * count
        return with_known(result, known)

    def evaluate(self, x: np.ndarray, shape: np.ndarray) -> np.ndarray:
        target = tuple(int(dim) for dim in shape)
        return np.broadcast_to(x, np.broadcast_shapes(x.shape, target))


class Tile(Op):
    """Repeat a tensor along each axis.

    x: any[...]   y: same dtype, axis i is repeats[i] times as long.
    Exact. C1 one non-negative number per axis. Source: ONNX Tile-13 with constant repeats.
    """

    repeats: tuple[int, ...]

    def infer(self, x: TensorType) -> TensorType:
        need(len(self.repeats) == len(x.dims), f"{len(self.repeats)} repeats for rank {len(x.dims)}")
        need(all(count >= 0 for count in self.repeats), f"repeats {self.repeats} has a negative number")
        result = like(x, (dims.mul(d, count) for d, count in zip(x.dims, self.repeats, strict=True)))
        if x.known is None or not isinstance(count := result.elements, int) or count > KNOWN_LIMIT:
            return result
        return with_known(result, x.known * (self.repeats[0] if self.repeats else 1))

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        return np.tile(x, self.repeats)


class ConstantOfShape(Op):
    """A tensor filled with one value.

    shape: i64[rank]   y: dtype of `value`, shape as the contents of `shape` say.
    Exact. C1 `value` has one element. C2 the contents of `shape` are known and not negative.
    Source: ONNX ConstantOfShape-24.
    """

    value: Data

    def infer(self, shape: TensorType) -> TensorType:
        need(self.value.size == 1, f"value has {self.value.size} elements, not one")
        target = target_of(shape)
        need(not any(isinstance(d, int) and d < 0 for d in target), f"shape {target} has a negative dimension")
        result = TensorType(self.value.type.dtype, target)
        known = self.value.type.known
        if known is None or not isinstance(count := result.elements, int) or count > KNOWN_LIMIT:
            return result
        return with_known(result, known * count)

    def evaluate(self, shape: np.ndarray) -> np.ndarray:
        value = self.value.numpy().reshape(())
        return np.full(tuple(int(dim) for dim in shape), value, value.dtype)


class Range(Op):
    """start, start + delta, ... up to and without limit.

    start, limit, delta: one dtype, scalars   y: same dtype, [max(0, ceil((limit - start) / delta))].
    Exact for integers; element i of a float range is start + i * delta, rounded twice.
    C1 the contents of the operands are known, `delta` as a number that isn't zero, and the length isn't possibly
    negative. Source: ONNX Range-11.
    """

    def infer(self, start: TensorType, limit: TensorType, delta: TensorType) -> TensorType:
        need(start.dtype == limit.dtype == delta.dtype, "the operands differ in dtype")
        first, last, step = (self._number(operand) for operand in (start, limit, delta))
        need(isinstance(step, int) and step != 0, f"delta {step} is no number other than 0")
        sign = 1 if isinstance(step, int) and step > 0 else -1
        span = dims.mul(dims.sub(last, first), sign)
        if not isinstance(span, int):
            need(never_negative(span), f"range from {first} to {last} may have a negative length")
        length = dims.ceildiv(max(span, 0) if isinstance(span, int) else span, dims.mul(step, sign))
        result = TensorType(start.dtype, (length,))
        if not isinstance(length, int) or length > KNOWN_LIMIT:
            return result
        return with_known(result, [dims.add(first, dims.mul(step, i)) for i in range(length)])

    def evaluate(self, start: np.ndarray, limit: np.ndarray, delta: np.ndarray) -> np.ndarray:
        first, last, step = (operand.reshape(()) for operand in (start, limit, delta))
        if first.dtype.kind in "iu":
            return np.array(range(int(first), int(last), int(step)), first.dtype)
        length = max(0, int(np.ceil((float(last) - float(first)) / float(step))))
        result: np.ndarray = first + np.arange(length).astype(first.dtype) * step
        return result.astype(first.dtype)

    @staticmethod
    def _number(operand: TensorType) -> Dim:
        need(operand.known is not None and len(operand.known) == 1, "an operand isn't a known integer")
        return operand.known[0] if operand.known else 0


def with_known(type_: TensorType, known: Sequence[Dim] | None) -> TensorType:
    """`type_` with its contents, where they may take part in shape arithmetic; else `type_` without."""
    if known is None or type_.dtype not in (dtypes.i64, dtypes.i32, dtypes.boolean) or len(known) > KNOWN_LIMIT:
        return type_
    if type_.shape not in ((), (len(known),)):
        return type_
    return replace(type_, known=tuple(known))


def like(x: TensorType, shape: Iterable[Dim]) -> TensorType:
    """The type of elements of `x` under another shape. Raises VerifyError for quantization per channel."""
    need(x.quant is None or x.quant.axis is None, "quantization per channel isn't tracked through this op")
    return TensorType(x.dtype, tuple(shape), x.quant)


def target_of(shape: TensorType) -> tuple[Dim, ...]:
    """The contents of a shape operand. Raises VerifyError if they aren't known."""
    need(shape.rank == 1, f"a shape is a vector, not {shape}")
    if shape.known is None:
        raise VerifyError("the contents of the shape operand aren't known")
    return shape.known


def check_axes(axes: Sequence[int], rank: int) -> None:
    """Raises VerifyError unless `axes` are sorted, without repeats, non-negative and below `rank`."""
    need(list(axes) == sorted(set(axes)), f"axes {tuple(axes)} aren't sorted, or repeat")
    need(all(0 <= axis < rank for axis in axes), f"axes {tuple(axes)} don't fit rank {rank}")


def least(dim: Dim) -> int:
    """A lower bound of a dimension: a symbolic sum without minus signs is taken to be at least 1, else it is 0."""
    if isinstance(dim, int):
        return dim
    return 0 if "-" in dim or "//" in dim else 1


def _resolve(x: tuple[Dim, ...], target: Sequence[Dim], allow_zero: bool) -> tuple[Dim, ...]:
    """Dimensions that ONNX Reshape gives for `target`, with 0 and -1 replaced."""
    result: list[Dim] = []
    for place, dim in enumerate(target):
        if dim == 0 and not allow_zero:
            need(place < len(x), f"shape {tuple(target)} copies axis {place} of rank {len(x)}")
            dim = x[place]
        result.append(dim)
    need(result.count(-1) <= 1, f"shape {tuple(target)} has several dimensions -1")
    need(not any(isinstance(d, int) and d < -1 for d in result), f"shape {tuple(target)} has a dimension below -1")
    if -1 in result:
        result[result.index(-1)] = _quotient(x, [dim for dim in result if dim != -1])
    before, after = dims.product(x), dims.product(result)
    need(dims.may_equal(before, after), f"{before} elements don't fill shape {tuple(result)}")
    return tuple(result)


def _quotient(x: Sequence[Dim], others: Sequence[Dim]) -> Dim:
    """Product of `x` over product of `others`. Equal dimensions cancel first, so that sums needn't be divided."""
    above, below = list(x), []
    for dim in others:
        if dim in above and dim != 0:
            above.remove(dim)
        else:
            below.append(dim)
    divisor = dims.product(below)
    need(divisor != 0, "-1 stands beside an empty dimension")
    return dims.floordiv(dims.product(above), divisor)


def _copy_dims(x: Sequence[int], target: Sequence[int]) -> list[int]:
    return [x[i] if dim == 0 else dim for i, dim in enumerate(target)]


def _padded(shape: Sequence[Dim], rank: int) -> tuple[Dim, ...]:
    return (*[1] * (rank - len(shape)), *shape)
