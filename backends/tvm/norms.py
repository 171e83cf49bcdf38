"""Layer and root-mean-square normalisation of codes, a row at a time."""

from __future__ import annotations

import math

import numpy as np
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.epilogue import WIDEST, Context, Epilogue, chunks, times
from planish.backends.tvm.expressions import Reader, centred, finished, shape_of
from planish.backends.tvm.isa import reduced
from planish.backends.tvm.lanes import vector
from planish.backends.tvm.plain import loops, variable
from planish.backends.tvm.regions import Region
from planish.backends.tvm.scope import Expr, Index, Kernel, Scope
from planish.ir.op import constant
from planish.ir.ops.int_norm import NORM_BITS, RECIPROCAL_BITS, _IntNorm

_FAST_CHANNELS = 1 << 14  # so many codes of 17 bits, and one as many times, fit in 32 bits


def normalised(region: Region, context: Context) -> Kernel:
    """IntLayerNorm and IntRMSNorm: two sums, an integer square root and one reciprocal per row.

    Rows whose reciprocal has at most 31 bits, all but nearly constant ones, take factors of 32 bits.
    """
    node = region.anchor
    assert node is not None
    assert isinstance(node.op, _IntNorm)
    op = node.op
    x, gamma, *beta = node.inputs
    scope, shape, lanes = Scope(), shape_of(x), context.isa.lanes
    channels, shift = shape[-1], op.shift(x.tensor, gamma.tensor)
    reader = Reader(scope, context.stored, {})
    row: dict[str, Expr] = {}

    def code(index: Index) -> Expr:
        return centred(node, 0, reader.at(x, index), scope)

    def element(index: Index) -> Expr:
        if row["vectors"] is not None:
            return finished(node, row["vectors"][index[-1] - row["start"]], bound, scope)
        half = T.int64(1 << (NORM_BITS - 1))
        off = T.cast(code(index), "int64") * T.int64(channels) - row["total"][0]
        z = (off * row["reciprocal"][0] + half) >> T.int64(RECIPROCAL_BITS - NORM_BITS)
        scaled = z * T.cast(reader.at(gamma, index[-1:]), "int64")
        if beta:
            scaled = scaled + reader.at(beta[0], index[-1:])
        rounded = scaled + scope.number((node, "half"), 1 << (shift - 1))
        return finished(node, rounded >> scope.number((node, "shift"), shift), float("inf"), scope)

    def scaled_lanes(start: Expr, width: int) -> Expr:
        """The affine map of normalised codes for a vector of channels, less the zero point, with factors of 32 bits."""
        found = T.alloc_buffer((width,), "int32", scope="global")
        off, gammas = (T.alloc_buffer((width,), "int32", scope="global") for _ in range(2))
        total, reciprocal = (T.cast(row[name][0], "int32") for name in ("total", "reciprocal"))
        with vector(width) as lane:
            T.buffer_store(off, code((*row["outer"], start + lane)) * channels - total, [lane])
        with vector(width) as lane:
            T.buffer_store(gammas, reader.at(gamma, (start + lane,)), [lane])
        count = min(lanes, width)
        half = T.Broadcast(T.int64(1 << (NORM_BITS - 1)), count // 2)
        for first in range(0, width, count):
            every = T.Ramp(first, 1, count)
            z = times(
                off[every], T.Broadcast(reciprocal, count), (half, half), T.int64(RECIPROCAL_BITS - NORM_BITS), count
            )
            even, odd = (addends[side, T.Ramp(T.floordiv(start + first, 2), 1, count // 2)] for side in (0, 1))
            amount = scope.number((node, "shift"), shift)
            T.buffer_store(found, times(z, gammas[every], (even, odd), amount, count), [every])
        return found

    known, bound = False, float("inf")
    addends: Expr = None
    gamma_data, beta_data = constant(gamma), constant(beta[0]) if beta else None
    if gamma_data is not None and (beta_data is not None or not beta):
        offsets = np.zeros(channels, np.int64) if beta_data is None else beta_data.numpy()
        widest = 2.0 ** (NORM_BITS + 1) * math.sqrt(channels) * float(np.max(np.abs(gamma_data.numpy()), initial=0))
        bound = (widest + float(np.max(np.abs(offsets), initial=0))) / 2.0**shift + 1
        known = bound < 2**31 and channels <= _FAST_CHANNELS
        pairs = np.zeros((2, -(-channels // 2)), np.int64)
        pairs[0], pairs[1, : channels // 2] = offsets[::2], offsets[1::2]
        addends = scope.constant("beta", pairs + (1 << (shift - 1)))
    with IRBuilder() as builder, T.seq_scope(), loops(shape[:-1]) as outer:
        sums, squares = (T.alloc_buffer((lanes,), dtype, scope="global") for dtype in ("int32", "int64"))
        with vector(lanes) as lane:
            T.buffer_store(sums, T.int32(0), [lane])
        with vector(lanes) as lane:
            T.buffer_store(squares, T.int64(0), [lane])
        for start, width in chunks(channels, lanes):
            with vector(width) as lane:
                T.buffer_store(sums, sums[lane] + code((*outer, start + lane)), [lane])
            with vector(width) as lane:
                wide = T.cast(code((*outer, start + lane)), "int64")
                T.buffer_store(squares, squares[lane] + wide * wide, [lane])
        total = variable("int64", T.cast(reduced("add", sums, lanes), "int64"))
        square = variable("int64", reduced("add", squares, lanes))
        variance = square[0] * T.int64(channels) + scope.number((node, "epsilon"), op.epsilon(x.tensor))
        if op.centre:
            variance = variance - total[0] * total[0]
        else:
            T.buffer_store(total, T.int64(0), [0])
        root = square_root(variance)
        reciprocal = variable("int64", T.truncdiv(T.int64(1 << RECIPROCAL_BITS), T.max(root[0], T.int64(1))))
        row.update(total=total, reciprocal=reciprocal)
        row["outer"] = outer
        ways = (True, False) if known else (False,)
        with T.If(reciprocal[0] < T.int64(2**31)) if len(ways) > 1 else T.seq_scope():
            for narrow in ways:
                row["narrow"] = narrow
                branch = (T.Then() if narrow else T.Else()) if len(ways) > 1 else T.seq_scope()
                with branch:
                    for start, width in chunks(channels, min(WIDEST, 2 * lanes)):
                        epilogue = Epilogue(scope, region, context, element)
                        row["start"] = start
                        row["vectors"] = scaled_lanes(start, width) if narrow and width >= 4 else None
                        epilogue.write_lanes(lambda lane, start=start: (*outer, start + lane), width)  # type: ignore[misc]
    return scope.finish(builder, region.result)


def square_root(v: Expr) -> Expr:
    """floor(sqrt(v)) of an int64 expression 0 <= v < 2**62: a rounded one, corrected by at most one."""
    value = variable("int64", v)
    root = variable("int64", T.cast(T.sqrt(T.cast(value[0], "float64")), "int64"))
    T.buffer_store(root, T.Select(root[0] * root[0] > value[0], root[0] - T.int64(1), root[0]), [0])
    above = root[0] + T.int64(1)
    T.buffer_store(root, T.Select(above * above <= value[0], above, root[0]), [0])
    return root
