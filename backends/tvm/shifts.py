"""I-ViT's softmax, GELU and layer normalisation by shifts, and the softmax by table, in plain loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.epilogue import Context, Epilogue
from planish.backends.tvm.expressions import Reader, centred, finished, shape_of
from planish.backends.tvm.norms import square_root
from planish.backends.tvm.plain import loops, variable
from planish.backends.tvm.region import Region
from planish.backends.tvm.scope import Expr, Index, Kernel, Scope
from planish.backends.tvm.shift_gelu import shift_exp
from planish.ir import ops
from planish.ir.ops.int_softmax import SHIFT_STEPS

_MOST = 2**31 - 1


def softmax(region: Region, context: Context) -> Kernel:
    """Shiftmax and IntSoftmax: the greatest code of a row, the sum of its exponentials, then each share of it."""
    node = region.anchor
    assert node is not None
    op, (x,) = node.op, node.inputs
    assert isinstance(op, ops.Shiftmax | ops.IntSoftmax)
    scope, shape = Scope(), shape_of(x)
    reader = Reader(scope, context.stored, {})
    table = scope.constant("exp", op.table(x.tensor).astype(np.int64)) if isinstance(op, ops.IntSoftmax) else None

    def exponential(distance: Expr) -> Expr:
        if isinstance(op, ops.Shiftmax):
            return shift_exp(distance, op.unit(x.tensor), SHIFT_STEPS)
        assert table is not None
        return table[T.min(distance, T.int64(table.shape[0] - 1))]

    def share(e: Expr, total: Expr) -> Expr:
        if isinstance(op, ops.Shiftmax):
            return (e * T.truncdiv(T.int64(_MOST), total)) >> T.int64(32 - op.bits)
        return T.truncdiv(e * T.int64(op.levels) + (total >> T.int64(1)), total)

    def code(index: Index) -> Expr:
        return T.cast(centred(node, 0, reader.at(x, index), scope), "int64")

    row: dict[str, Expr] = {}

    def element(index: Index) -> Expr:
        e = exponential(row["greatest"][0] - code(index))
        return T.cast(share(e, row["total"][0]), str(node.result.tensor.dtype.storage))

    epilogue = Epilogue(scope, region, context, element)
    with IRBuilder() as builder, T.seq_scope(), loops(shape[:-1]) as outer:
        row["greatest"] = _over(shape[-1], T.int64(-(2**31)), lambda most, m: T.max(most, code((*outer, m))))
        row["total"] = _over(
            shape[-1], T.int64(0), lambda total, m: total + exponential(row["greatest"][0] - code((*outer, m)))
        )
        with T.serial(0, shape[-1]) as m:
            epilogue.write((*outer, m))
    return scope.finish(builder, region.result)


def layer_norm(region: Region, context: Context) -> Kernel:
    """ShiftLayerNorm: the rounded mean of a row, the root of the sum of squares about it, then the affine map."""
    node = region.anchor
    assert node is not None
    op = node.op
    assert isinstance(op, ops.ShiftLayerNorm)
    x, gamma, *beta = node.inputs
    scope, shape = Scope(), shape_of(x)
    channels, shift = shape[-1], op.shift(x.tensor, gamma.tensor)
    reader = Reader(scope, context.stored, {})
    row: dict[str, Expr] = {}

    def code(index: Index) -> Expr:
        return T.cast(centred(node, 0, reader.at(x, index), scope), "int64")

    def element(index: Index) -> Expr:
        z = ((code(index) - row["mean"][0]) * row["factor"][0]) >> T.int64(1)
        scaled = z * T.cast(reader.at(gamma, index[-1:]), "int64")
        if beta:
            scaled = scaled + reader.at(beta[0], index[-1:])
        rounded = (scaled + T.int64(1 << (shift - 1))) >> T.int64(shift)
        return finished(node, rounded, float("inf"), scope)

    epilogue = Epilogue(scope, region, context, element)
    with IRBuilder() as builder, T.seq_scope(), loops(shape[:-1]) as outer:
        total = _over(channels, T.int64(0), lambda total, m: total + code((*outer, m)))
        mean = T.floordiv(total[0] * T.int64(2) + T.int64(channels), T.int64(2 * channels))
        row["mean"] = variable("int64", mean)

        def square(total: Expr, m: Expr) -> Expr:
            distance = code((*outer, m)) - row["mean"][0]
            return total + distance * distance

        root = square_root(_over(channels, T.int64(0), square)[0])
        row["factor"] = variable("int64", T.truncdiv(T.int64(_MOST), T.max(root[0], T.int64(1))))
        with T.serial(0, channels) as m:
            epilogue.write((*outer, m))
    return scope.finish(builder, region.result)


def _over(extent: int, first: Expr, step: Callable[[Expr, Expr], Expr]) -> Expr:
    """A variable that `step` brings forward along a row."""
    found = variable("int64", first)
    with T.serial(0, extent) as m:
        T.buffer_store(found, step(found[0], m), [0])
    return found
