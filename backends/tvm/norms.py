"""Layer and root-mean-square normalisation of codes, a row at a time."""

from __future__ import annotations

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.epilogue import WIDEST, Context, Epilogue, chunks, vector
from planish.backends.tvm.expressions import Reader, centred, finished, shape_of
from planish.backends.tvm.isa import reduced
from planish.backends.tvm.plain import loops, variable
from planish.backends.tvm.regions import Region
from planish.backends.tvm.scope import Expr, Index, Kernel, Scope
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
        half = T.int64(1 << (NORM_BITS - 1))
        if row["narrow"]:
            off = T.cast(code(index) * channels - T.cast(row["total"][0], "int32"), "int64")
            product = off * T.cast(T.cast(row["reciprocal"][0], "int32"), "int64")
            z = T.cast(T.cast((product + half) >> T.int64(RECIPROCAL_BITS - NORM_BITS), "int32"), "int64")
        else:
            off = T.cast(code(index), "int64") * T.int64(channels) - row["total"][0]
            z = (off * row["reciprocal"][0] + half) >> T.int64(RECIPROCAL_BITS - NORM_BITS)
        scaled = z * T.cast(reader.at(gamma, index[-1:]), "int64")
        if beta:
            scaled = scaled + reader.at(beta[0], index[-1:])
        rounded = scaled + scope.number((node, "half"), 1 << (shift - 1))
        return finished(node, rounded >> scope.number((node, "shift"), shift), float("inf"), scope)

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
        ways = (True, False) if channels <= _FAST_CHANNELS else (False,)
        with T.If(reciprocal[0] < T.int64(2**31)) if len(ways) > 1 else T.seq_scope():
            for narrow in ways:
                row["narrow"] = narrow
                branch = (T.Then() if narrow else T.Else()) if len(ways) > 1 else T.seq_scope()
                with branch:
                    for start, width in chunks(channels, min(WIDEST, 2 * lanes)):
                        epilogue = Epilogue(scope, region, context, element)
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
