"""Ops in float32 that need whole rows: LayerNorm, RMSNorm, InstanceNorm, Softmax, LogSoftmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.epilogue import Context, Epilogue, chunks
from planish.backends.tvm.expressions import Reader, shape_of, unravelled
from planish.backends.tvm.float_expressions import larger
from planish.backends.tvm.float_math import exp_of_negative, let, log, real
from planish.backends.tvm.lanes import vector
from planish.backends.tvm.plain import loops, variable
from planish.backends.tvm.region import Region
from planish.backends.tvm.scope import Expr, Index, Kernel, Scope
from planish.ir import dtypes, ops

_ACROSS = 4  # vectors of sums under way at a time, to hide the latency of an addition


def filled(lanes: int, number: Expr, dtype: str = "float32") -> Expr:
    """A local array of one number."""
    array = T.alloc_buffer((lanes,), dtype, scope="global")
    with vector(lanes) as lane:
        T.buffer_store(array, number, [lane])
    return array


@dataclass(frozen=True)
class Fold:
    """A way to make one number of many: from `first` on, `combine` takes in one after the other."""

    first: Expr
    combine: Callable[[Expr, Expr], Expr]
    dtype: str = "float32"

    def __call__(self, element: Callable[[Index], Expr], extents: Sequence[int], lanes: int) -> Expr:
        """The fold of all elements, as an expression. Vectors run along the last axis."""
        *outer, last = extents
        width = min(_ACROSS * lanes, 1 << (max(last, 1).bit_length() - 1))
        total = filled(width, self.first, self.dtype)
        with ExitStack() as stack:
            index = tuple(stack.enter_context(T.serial(0, extent)) for extent in outer)
            for start, size in chunks(last, width):
                with vector(size) as lane:
                    T.buffer_store(total, self.combine(total[lane], element((*index, start + lane))), [lane])
        while width > 1:  # halves onto each other: a fixed order, so that results don't depend on the compiler
            width //= 2
            with vector(width) as lane:
                T.buffer_store(total, self.combine(total[lane], total[lane + width]), [lane])
        return total[0]


SUM = Fold(real(0), lambda a, b: a + b)
GREATEST = Fold(real(-math.inf), lambda a, b: larger(a, b, dtypes.f32))  # NaN if there is one


def normalised(region: Region, context: Context) -> Kernel:
    """LayerNorm, RMSNorm and InstanceNorm, row by row."""
    scope = Scope()
    row, outer_shape = normaliser(region, context, scope)
    with IRBuilder() as builder, T.seq_scope(), loops(outer_shape) as outer:
        row(outer)
    return scope.finish(builder, region.result)


def normaliser(region: Region, context: Context, scope: Scope) -> tuple[Callable[[Index], None], tuple[int, ...]]:
    """What writes a row: the mean, the mean square of what is left, then each element; and how many rows there are."""
    node = region.anchor
    assert node is not None
    op = node.op
    assert isinstance(op, ops.LayerNorm | ops.RMSNorm | ops.InstanceNorm)
    x, lanes, shape = node.inputs[0], context.isa.lanes, shape_of(node.inputs[0])
    gamma, beta = (*node.operands[1:], None, None)[:2]
    axes = len(shape) - 2 if isinstance(op, ops.InstanceNorm) else -op.axis
    inner = shape[len(shape) - axes :]
    count = math.prod(inner)
    reader = Reader(scope, context.stored, {})
    moments: dict[str, Expr] = {}

    def parameter(index: Index) -> Index:
        return (index[1],) if isinstance(op, ops.InstanceNorm) else index[len(index) - axes :]

    def element(index: Index) -> Expr:
        y = (reader.at(x, index) - moments["mean"][0]) * moments["factor"][0]
        if gamma is not None:
            y = y * reader.at(gamma, parameter(index))
        return y if beta is None else y + reader.at(beta, parameter(index))

    epilogue = Epilogue(scope, region, context, element)

    def row(outer: Index) -> None:
        def at(place: Expr) -> Index:
            return (*outer, *unravelled(place, inner))

        def off(place: Expr) -> Expr:
            return reader.at(x, at(place)) - moments["mean"][0]

        moments["mean"] = variable("float32", real(0))
        if not isinstance(op, ops.RMSNorm):
            total = SUM(lambda place: reader.at(x, at(place[0])), (count,), lanes)
            T.buffer_store(moments["mean"], total * real(1 / count), [0])
        mean_square = SUM(lambda place: let(off(place[0]), lambda v: v * v), (count,), lanes) * real(1 / count)
        moments["factor"] = variable("float32", real(1) / T.sqrt(mean_square + real(op.eps)))
        for start, width in chunks(count, 2 * lanes):
            epilogue.write_lanes(lambda lane, start=start: at(start + lane), width)  # type: ignore[misc]

    return row, shape[: len(shape) - axes]


def softmax(region: Region, context: Context) -> Kernel:
    """Softmax and LogSoftmax along any axis, from x less its maximum."""
    node = region.anchor
    assert node is not None
    op = node.op
    assert isinstance(op, ops.Softmax | ops.LogSoftmax)
    x, lanes, scope = node.inputs[0], context.isa.lanes, Scope()
    shape = shape_of(x)
    axis = len(shape) + op.axis
    reader = Reader(scope, context.stored, {})
    row: dict[str, Expr] = {}
    powers = None if isinstance(op, ops.LogSoftmax) else scope.scratch(shape, "float32")

    def below(index: Index) -> Expr:
        return reader.at(x, index) - row["greatest"][0]

    def element(index: Index) -> Expr:
        return below(index) - row["total"][0] if powers is None else powers[index] * row["total"][0]

    epilogue = Epilogue(scope, region, context, element)
    outer_shape = (*shape[:axis], *shape[axis + 1 :])
    with IRBuilder() as builder, T.seq_scope(), loops(outer_shape) as outer:

        def at(place: Expr) -> Index:
            return (*outer[:axis], place, *outer[axis:])

        row["greatest"] = variable("float32", GREATEST(lambda i: reader.at(x, at(i[0])), (shape[axis],), lanes))
        if powers is None:
            total = SUM(lambda i: exp_of_negative(below(at(i[0]))), (shape[axis],), lanes)
            row["total"] = variable("float32", log(total))
        else:
            for start, width in chunks(shape[axis], 2 * lanes):
                with vector(width) as lane:
                    place = at(start + lane)
                    T.buffer_store(powers, exp_of_negative(below(place)), list(place))
            row["total"] = variable("float32", real(1) / SUM(lambda i: powers[at(i[0])], (shape[axis],), lanes))
        for start, width in chunks(shape[axis], 2 * lanes):
            epilogue.write_lanes(lambda lane, start=start: at(start + lane), width)  # type: ignore[misc]
    return scope.finish(builder, region.result)
