"""Ranks of tokens by their scores, and the choice of the highest ones."""

from __future__ import annotations

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.epilogue import Context, chunks
from planish.backends.tvm.expressions import Reader, shape_of
from planish.backends.tvm.float_math import is_nan, let, real
from planish.backends.tvm.lanes import vector
from planish.backends.tvm.plain import loops, variable
from planish.backends.tvm.region import Region
from planish.backends.tvm.scope import Expr, Kernel, Scope
from planish.ir import dtypes, ops
from planish.ir.dtypes import DType


def padded(extent: int, to: int) -> int:
    return -(-extent // to) * to


def rank(keys: Expr, ranks: Expr, sample: Expr, count: int, lanes: int) -> None:
    """ranks[sample, a] = how many of `count` keys are greater than keys[sample, a], or equal and earlier.

    A permutation of 0 .. count - 1, if no key is NaN. Rows of both arrays (keys any number, ranks int32) have whole
    vectors; ranks behind the last key mean nothing.
    """
    with T.serial(0, padded(count, lanes) // lanes) as block:
        first = block * lanes
        own = T.alloc_buffer((lanes,), keys.dtype, scope="global")
        above = T.alloc_buffer((lanes,), "int32", scope="global")
        with vector(lanes) as lane:
            T.buffer_store(own, keys[sample, first + lane], [lane])
        with vector(lanes) as lane:
            T.buffer_store(above, T.int32(0), [lane])

        def add(other: Expr, condition: Expr, lane: Expr) -> None:
            T.buffer_store(above, above[lane] + T.Select(condition, T.int32(1), T.int32(0)), [lane])

        with T.serial(0, first) as other, vector(lanes) as lane:
            add(other, keys[sample, other] >= own[lane], lane)
        with T.serial(first, T.min(first + lanes, count)) as other, vector(lanes) as lane:
            key = keys[sample, other]
            add(other, T.Or(key > own[lane], T.And(key >= own[lane], other < first + lane)), lane)
        with T.serial(first + lanes, T.max(first + lanes, count)) as other, vector(lanes) as lane:
            add(other, keys[sample, other] > own[lane], lane)
        with vector(lanes) as lane:
            T.buffer_store(ranks, above[lane], [sample, first + lane])


def ordered(score: Expr, dtype: DType) -> Expr:
    """A score as an integer of the same order, NaN below all; of 32 bits if that is enough."""
    if dtype.is_float:

        def of(x: Expr) -> Expr:
            bits = T.reinterpret("int32", T.Select(x == real(0), real(0), x))  # zero has two signs
            upwards = T.Select(bits < T.int32(0), bits ^ T.int32(0x7FFFFFFF), bits)
            return T.Select(is_nan(x), T.int32(dtypes.i32.min), upwards)

        return let(score, of)
    return T.cast(score, _key(dtype))


def _key(dtype: DType) -> str:
    return "int32" if dtype.is_float or dtype.max <= dtypes.i32.max else "int64"


def top(region: Region, context: Context) -> Kernel:
    """TopTokens: ranks of all that aren't protected, then each token goes to one list or the other."""
    node = region.anchor
    assert node is not None
    op, score = node.op, node.inputs[0]
    assert isinstance(op, ops.TopTokens)
    (batch, tokens), dtype = shape_of(score), score.tensor.dtype
    free, wanted, lanes = tokens - op.protected, op.count - op.protected, context.isa.lanes
    scope = Scope()
    reader = Reader(scope, context.stored, {})
    found = [scope.value(value) if value in region.results else None for value in node.results]
    shape = (batch, padded(max(free, 1), lanes))
    keys, ranks = scope.scratch(shape, _key(dtype)), scope.scratch(shape, "int32")
    with IRBuilder() as builder, T.seq_scope(), loops((batch,)) as (sample,):
        for start, width in chunks(free, lanes):
            with vector(width) as lane:
                element = reader.at(score, (sample, op.protected + start + lane))
                T.buffer_store(keys, ordered(element, dtype), [sample, start + lane])
        rank(keys, ranks, sample, free, lanes)
        _list(found[0], sample, 0, op.protected)
        kept = variable("int32", T.int32(op.protected))
        with T.serial(0, free) as i, T.If(ranks[sample, i] < T.int32(wanted)):
            with T.Then():
                _put(found[0], sample, kept[0], op.protected + i)
                T.buffer_store(kept, kept[0] + T.int32(1), [0])
            with T.Else():
                _put(found[1], sample, op.protected + i - kept[0], op.protected + i)
    return scope.finish(builder, region.result)


def _list(array: Expr, sample: Expr, first: int, count: int) -> None:
    if array is not None:
        with T.serial(0, count) as i:
            T.buffer_store(array, T.cast(first + i, "int64"), [sample, first + i])


def _put(array: Expr, sample: Expr, place: Expr, token: Expr) -> None:
    if array is not None:
        T.buffer_store(array, T.cast(token, "int64"), [sample, place])
    else:
        T.evaluate(T.int32(0))
