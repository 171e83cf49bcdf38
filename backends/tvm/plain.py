"""Ops that add up or compare many elements, in plain loops: right for every shape and CPU; templates replace them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.epilogue import WIDEST, Context, Epilogue, chunks
from planish.backends.tvm.expressions import Reader, broadcast, centred, shape_of
from planish.backends.tvm.region import Region
from planish.backends.tvm.scope import Expr, Index, Kernel, Scope
from planish.ir import ops
from planish.ir.graph import Node, Value
from planish.ir.op import Op
from planish.ir.ops.int_softmax import EXP_ENTRIES


@contextmanager
def loops(shape: Sequence[int]) -> Iterator[Index]:
    """Nested loops over all indices of a shape, the outermost long axis in parallel."""
    with ExitStack() as stack:
        index: list[Expr] = []
        split = False
        for extent in shape:
            if extent == 1:
                index.append(0)
                continue
            kind = T.serial if split else T.parallel
            split = True
            index.append(stack.enter_context(kind(0, extent)))
        yield tuple(index)


def variable(dtype: str, value: Expr) -> Expr:
    """A local variable, as an array of one element, with a first value."""
    array = T.alloc_buffer((1,), dtype, scope="global")
    T.buffer_store(array, value, [0])
    return array


Emitter = Callable[[Region, Context], Kernel]
"""Writes the kernel of a region."""


def pointwise(region: Region, context: Context) -> Kernel:
    """A region without a reduction: every element by its expression."""
    scope = Scope()
    epilogue = Epilogue(scope, region, context)
    shape = shape_of(region.value)
    with IRBuilder() as builder, T.seq_scope(), loops(shape[:-1]) as outer:
        epilogue.write_row(outer, shape[-1], widest_vector(region, context)) if shape else epilogue.write(())
    return scope.finish(builder, region.result)


def widest_vector(region: Region, context: Context) -> int:
    """How many elements of a pointwise result are computed at a time."""
    node = region.value.node
    assert node is not None
    floats = any(value.tensor.dtype.is_float for value in (*node.inputs, region.value))
    return 2 * context.isa.lanes if floats else WIDEST


def concat(region: Region, context: Context) -> Kernel:
    """Operands one after the other along an axis."""
    node = region.anchor
    assert node is not None
    assert isinstance(node.op, ops.Concat)
    scope, start = Scope(), 0
    axis = node.op.axis % len(shape_of(node.result))
    with IRBuilder() as builder, T.seq_scope():
        for operand in node.inputs:
            shape, reader = shape_of(operand), Reader(scope, context.stored, {})

            def part(index: Index, operand: Value = operand, reader: Reader = reader, start: int = start) -> Expr:
                return reader.at(operand, tuple(i - start if a == axis else i for a, i in enumerate(index)))

            epilogue = Epilogue(scope, region, context, part)
            with loops(shape[:-1]) as outer:
                for first, lanes in chunks(shape[-1], WIDEST):

                    def at(lane: Expr, outer: Index = outer, first: Expr = first, start: int = start) -> Index:
                        index = (*outer, first + lane)
                        return tuple(i + start if a == axis else i for a, i in enumerate(index))

                    epilogue.write_lanes(at, lanes)
            start += shape[axis]
    return scope.finish(builder, region.result)


def summed(terms: Callable[[Node, Reader, Index], tuple[Expr, Sequence[int], Callable[[Index], Expr]]]) -> Emitter:
    """Kernel of a sum of products: `terms` gives the first value, the extents summed over, and each term (int32)."""

    def emit(region: Region, context: Context) -> Kernel:
        node, scope = region.anchor, Scope()
        assert node is not None
        total: list[Expr] = []
        epilogue = Epilogue(scope, region, context, lambda index: total[0][0])
        with IRBuilder() as builder, T.seq_scope(), loops(shape_of(node.result)) as index:
            first, extents, term = terms(node, Reader(scope, context.stored, {}), index)
            total.append(variable("int32", first))
            with ExitStack() as stack:
                inner = tuple(stack.enter_context(T.serial(0, extent)) for extent in extents)
                T.buffer_store(total[0], total[0][0] + term(inner), [0])
            epilogue.write(index)
        return scope.finish(builder, region.result)

    return emit


def linear_terms(node: Node, reader: Reader, index: Index):  # type: ignore[no-untyped-def]
    x, w, *b = node.inputs
    first = reader.at(b[0], index[-1:]) if b else T.int32(0)

    def term(inner: Index) -> Expr:
        code = centred(node, 0, reader.at(x, (*index[:-1], inner[0])), reader.scope)
        return code * T.cast(reader.at(w, (inner[0], index[-1])), "int32")

    return first, shape_of(w)[:1], term


def matmul_terms(node: Node, reader: Reader, index: Index):  # type: ignore[no-untyped-def]
    a, b = node.inputs

    def term(inner: Index) -> Expr:
        left = broadcast((*index[:-1], inner[0]), shape_of(a))
        right = broadcast((*index[:-2], inner[0], index[-1]), shape_of(b))
        return centred(node, 0, reader.at(a, left), reader.scope) * centred(node, 1, reader.at(b, right), reader.scope)

    return T.int32(0), shape_of(a)[-1:], term


def conv_terms(node: Node, reader: Reader, index: Index):  # type: ignore[no-untyped-def]
    op = node.op
    assert isinstance(op, ops.IntConv)
    x, w, *b = node.inputs
    source, (filters, depth, *window) = shape_of(x), shape_of(w)
    first = reader.at(b[0], (index[1],)) if b else T.int32(0)
    group = T.floordiv(index[1], filters // op.group) if op.group > 1 else 0

    def term(inner: Index) -> Expr:
        channel, *taps = inner
        place = [
            i * s + t * d - p for i, s, t, d, p in zip(index[2:], op.strides, taps, op.dilations, op.pads, strict=False)
        ]
        inside = [T.And(p >= 0, p < e) for p, e in zip(place, source[2:], strict=True)]
        code = centred(node, 0, reader.at(x, (index[0], group * depth + channel, *place)), reader.scope)
        product = code * T.cast(reader.at(w, (index[1], channel, *taps)), "int32")
        if not any(op.pads):
            return product
        condition = inside[0]
        for other in inside[1:]:
            condition = T.And(condition, other)
        return T.if_then_else(condition, product, T.int32(0))

    return first, (depth, *window), term


def sum_terms(node: Node, reader: Reader, index: Index):  # type: ignore[no-untyped-def]
    op, shape = node.op, shape_of(node.inputs[0])
    assert isinstance(op, ops.IntReduceSum)
    axes = sorted(axis % len(shape) for axis in op.axes)

    def term(inner: Index) -> Expr:
        place = list(index)
        for axis, i in zip(axes, inner, strict=True):
            if op.keepdims:
                place[axis] = i
            else:
                place.insert(axis, i)
        return centred(node, 0, reader.at(node.inputs[0], tuple(place)), reader.scope)

    return T.int32(0), [shape[axis] for axis in axes], term


def exponentials(region: Region, context: Context) -> Kernel:
    """IntExp: the greatest code of each row, then a table of distances from it."""
    node = region.anchor
    assert node is not None
    assert isinstance(node.op, ops.IntExp)
    op = node.op
    x, *keep = node.inputs
    scope, shape = Scope(), shape_of(x)
    table = scope.constant("exp", op.table(x.tensor).astype(np.uint8))
    least = T.int32(x.tensor.dtype.min)

    reader = Reader(scope, context.stored, {})

    def code(index: Index) -> Expr:
        c = T.cast(reader.at(x, index), "int32")
        return T.Select(reader.operand(node, 1, index), c, least) if keep else c

    greatest: list[Expr] = []

    def element(index: Index) -> Expr:
        y = table[T.min(greatest[0][0] - code(index), EXP_ENTRIES - 1)]
        return T.Select(reader.operand(node, 1, index), y, T.uint8(0)) if keep else y

    epilogue = Epilogue(scope, region, context, element)
    with IRBuilder() as builder, T.seq_scope(), loops(shape[:-1]) as outer:
        greatest.append(variable("int32", least))
        with T.serial(0, shape[-1]) as m:
            T.buffer_store(greatest[0], T.max(greatest[0][0], code((*outer, m))), [0])
        with T.serial(0, shape[-1]) as m:
            epilogue.write((*outer, m))
    return scope.finish(builder, region.result)


def weighted_mean(region: Region, context: Context) -> Kernel:
    """IntWeightedMean: the sum of weights of each row, then each weighted sum and its rounded quotient."""
    node = region.anchor
    assert node is not None
    assert isinstance(node.op, ops.IntWeightedMean)
    op = node.op
    e, v = node.inputs
    scope, shape, rows = Scope(), shape_of(node.result), shape_of(e)[-1]
    parts: dict[str, Expr] = {}

    def element(index: Index) -> Expr:
        divisor = T.cast(parts["weight"][0], "int64")
        total = T.cast(parts["total"][0], "int64") << T.int64(op.bits)
        return T.cast(T.floordiv(total + (divisor >> T.int64(1)), divisor), "int32")

    reader = Reader(scope, context.stored, {})
    epilogue = Epilogue(scope, region, context, element)
    with IRBuilder() as builder, T.seq_scope(), loops(shape[:-1]) as outer:
        parts["weight"] = variable("int32", T.int32(0))

        def weight(m: Expr) -> Expr:
            return T.cast(reader.at(e, broadcast((*outer, m), shape_of(e))), "int32")

        with T.serial(0, rows) as m:
            T.buffer_store(parts["weight"], parts["weight"][0] + weight(m), [0])
        T.buffer_store(parts["weight"], T.max(parts["weight"][0], 1), [0])
        with T.serial(0, shape[-1]) as column:
            parts["total"] = variable("int32", T.int32(0))
            with T.serial(0, rows) as m:
                place = broadcast((*outer[:-1], m, column), shape_of(v))
                product = weight(m) * T.cast(reader.at(v, place), "int32")
                T.buffer_store(parts["total"], parts["total"][0] + product, [0])
            epilogue.write((*outer, column))
    return scope.finish(builder, region.result)


PLAIN: Mapping[type[Op], Emitter] = {
    ops.IntLinear: summed(linear_terms),
    **dict.fromkeys((ops.IntMatMul, ops.IntAddMatMul, ops.IntBinaryMatMul), summed(matmul_terms)),
    ops.IntConv: summed(conv_terms),
    ops.IntReduceSum: summed(sum_terms),
    ops.IntExp: exponentials,
    ops.IntWeightedMean: weighted_mean,
    ops.Concat: concat,
}
