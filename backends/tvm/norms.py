"""Layer and root-mean-square normalisation of codes, a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.epilogue import WIDEST, Context, Epilogue, chunks, spans, times
from planish.backends.tvm.expressions import Reader, centred, finished, shape_of, unravelled
from planish.backends.tvm.isa import Isa, reduced
from planish.backends.tvm.lanes import vector
from planish.backends.tvm.narrow import narrowed, narrows
from planish.backends.tvm.plain import variable
from planish.backends.tvm.regions import Region
from planish.backends.tvm.scope import Expr, Index, Kernel, Scope
from planish.ir.op import constant
from planish.ir.ops.int_norm import NORM_BITS, RECIPROCAL_BITS, _IntNorm
from planish.ir.ops.quantize import quant_of
from planish.ir.types import TensorType

_BLOCK = 8  # rows whose square roots and reciprocals, which take long, are under way at a time
_FAST_CHANNELS = 1 << 14  # so many codes of 17 bits, and one as many times, fit in 32 bits
_SHIFT = RECIPROCAL_BITS - NORM_BITS


def normalised(region: Region, context: Context) -> Kernel:
    """IntLayerNorm and IntRMSNorm: two sums, an integer square root and one reciprocal per row, then an affine map.

    Rows whose reciprocal has at most 31 bits, all but nearly constant ones, take factors of 32 bits.
    """
    return _Norm(region, context).kernel()


class _Norm:
    def __init__(self, region: Region, context: Context):
        assert region.anchor is not None
        assert isinstance(region.anchor.op, _IntNorm)
        self.region, self.context, self.scope = region, context, Scope()
        self.node, self.op = region.anchor, region.anchor.op
        self.x, self.gamma, *self.beta = self.node.inputs
        *self.outer, self.channels = shape_of(self.x)
        self.shift = self.op.shift(self.x.tensor, self.gamma.tensor)
        self.reader = Reader(self.scope, context.stored, {})
        self.bound, self.addends = self.addends_of_lanes()
        zero = abs(self.op.zero)
        self.packs = self.bound + zero < 2**31 and zero << self.shift < 2**61

    def kernel(self) -> Kernel:
        rows = math.prod(self.outer)
        with IRBuilder() as builder, T.seq_scope(), T.parallel(0, -(-rows // _BLOCK)) as block:
            totals, reciprocals = (T.alloc_buffer((_BLOCK,), "int64", scope="global") for _ in range(2))
            first = block * _BLOCK
            count = _BLOCK if rows % _BLOCK == 0 else T.min(_BLOCK, rows - first)
            with T.serial(0, count) as i:
                total, reciprocal = self.statistics(unravelled(first + i, self.outer))
                T.buffer_store(totals, total, [i])
                T.buffer_store(reciprocals, reciprocal, [i])
            with T.serial(0, count) as i:
                self.map_row(unravelled(first + i, self.outer), totals[i], reciprocals[i])
        return self.scope.finish(builder, self.region.result)

    def code(self, index: Index) -> Expr:
        return centred(self.node, 0, self.reader.at(self.x, index), self.scope)

    def statistics(self, outer: Index) -> tuple[Expr, Expr]:
        """The sum of a row, 0 where it isn't centred, and the reciprocal of its deviation (int64)."""
        isa, op = self.context.isa, self.op
        sums, squares = moments(isa, self.channels, self.x.tensor, lambda c: self.code((*outer, c)))
        total = variable("int64", T.cast(reduced("add", sums, isa.lanes), "int64"))
        square = variable("int64", reduced("add", squares, isa.lanes))
        epsilon = self.scope.number((self.node, "epsilon"), op.epsilon(self.x.tensor))
        variance = square[0] * T.int64(self.channels) + epsilon
        if op.centre:
            variance = variance - total[0] * total[0]
        root = square_root(variance)
        reciprocal = variable("int64", T.truncdiv(T.int64(1 << RECIPROCAL_BITS), T.max(root[0], T.int64(1))))
        return total[0] if op.centre else T.int64(0), reciprocal[0]

    def map_row(self, outer: Index, total: Expr, reciprocal: Expr) -> None:
        """The affine map of a row, in 32 bits if its reciprocal allows."""
        if self.addends is None:
            self.in_64_bits(outer, 0, self.channels, total, reciprocal)
            return
        with T.If(reciprocal < T.int64(2**31)):
            with T.Then():
                for start, width in chunks(self.channels, WIDEST):
                    if width < 4:
                        self.in_64_bits(outer, start, width, total, reciprocal)
                    else:
                        self.in_32_bits(outer, start, width, T.cast(total, "int32"), T.cast(reciprocal, "int32"))
            with T.Else():
                self.in_64_bits(outer, 0, self.channels, total, reciprocal)

    def in_64_bits(self, outer: Index, start: Expr, extent: int, total: Expr, reciprocal: Expr) -> None:
        """The map of some channels, whatever their size."""

        def element(index: Index) -> Expr:
            off = T.cast(self.code(index), "int64") * T.int64(self.channels) - total
            z = (off * reciprocal + T.int64(1 << (NORM_BITS - 1))) >> T.int64(_SHIFT)
            scaled = z * T.cast(self.reader.at(self.gamma, index[-1:]), "int64")
            if self.beta:
                scaled = scaled + self.reader.at(self.beta[0], index[-1:])
            half = self.scope.number((self.node, "half"), 1 << (self.shift - 1))
            shift = self.scope.number((self.node, "shift"), self.shift)
            return finished(self.node, (scaled + half) >> shift, float("inf"), self.scope)

        epilogue = Epilogue(self.scope, self.region, self.context, element)
        for first, width in chunks(extent, WIDEST):
            epilogue.write_lanes(lambda lane, first=start + first: (*outer, first + lane), width)  # type: ignore[misc]

    def in_32_bits(self, outer: Index, start: Expr, width: int, total: Expr, reciprocal: Expr) -> None:
        """The map of a vector of channels, with factors of 32 bits."""
        isa, count = self.context.isa, min(self.context.isa.lanes, width)
        packed = self.packs and narrows(isa, self.op.to, width)
        off, gammas, found = (T.alloc_buffer((width,), "int32", scope="global") for _ in range(3))
        with vector(width) as lane:
            T.buffer_store(off, self.code((*outer, start + lane)) * self.channels - total, [lane])
        with vector(width) as lane:
            T.buffer_store(gammas, self.reader.at(self.gamma, (start + lane,)), [lane])
        half = T.Broadcast(T.int64(1 << (NORM_BITS - 1)), count // 2)
        assert self.addends is not None
        addends = self.scope.constant(("addends", packed), self.addends + (self.op.zero << self.shift if packed else 0))
        amount = self.scope.number((self.node, "shift"), self.shift)
        for first in range(0, width, count):
            every = T.Ramp(first, 1, count)
            z = times(off[every], T.Broadcast(reciprocal, count), (half, half), T.int64(_SHIFT), count)
            even, odd = (addends[side, T.Ramp(T.floordiv(start + first, 2), 1, count // 2)] for side in (0, 1))
            T.buffer_store(found, times(z, gammas[every], (even, odd), amount, count), [every])
        codes = narrowed(isa, self.op.to, found, width) if packed else found

        def element(index: Index) -> Expr:
            code = codes[index[-1] - start]
            return code if packed else finished(self.node, code, self.bound, self.scope)

        epilogue = Epilogue(self.scope, self.region, self.context, element)
        epilogue.write_lanes(lambda lane: (*outer, start + lane), width)

    def addends_of_lanes(self) -> tuple[float, np.ndarray | None]:
        """A bound of mapped codes, and what is added before the last shift to even and to odd channels (int64).

        None where gamma or beta isn't known or 32 bits don't suffice.
        """
        gamma, beta = constant(self.gamma), constant(self.beta[0]) if self.beta else None
        if gamma is None or (self.beta and beta is None):
            return math.inf, None
        offsets = np.zeros(self.channels, np.int64) if beta is None else beta.numpy()
        widest = 2.0 ** (NORM_BITS + 1) * math.sqrt(self.channels) * float(np.max(np.abs(gamma.numpy()), initial=0))
        bound = (widest + float(np.max(np.abs(offsets), initial=0))) / 2.0**self.shift + 1
        if bound >= 2**31 or self.channels > _FAST_CHANNELS:
            return bound, None
        pairs = np.zeros((2, -(-self.channels // 2)), np.int64)
        pairs[0], pairs[1, : self.channels // 2] = offsets[::2], offsets[1::2]
        return bound, pairs + (1 << (self.shift - 1))


def moments(isa: Isa, channels: int, type_: TensorType, code: Callable[[Expr], Expr]) -> tuple[Expr, Expr]:
    """Sums of codes (int32) and of their squares (int64) in the lanes of two arrays."""
    lanes, words = isa.lanes, isa.words_product
    sums, squares = (T.alloc_buffer((lanes,), dtype, scope="global") for dtype in ("int32", "int64"))
    with vector(lanes) as lane:
        T.buffer_store(sums, T.int32(0), [lane])
    with vector(lanes) as lane:
        T.buffer_store(squares, T.int64(0), [lane])
    width = 2 * lanes
    paired = (
        words.group == 2 and quant_of("x", type_).zero == 0 and type_.dtype.min >= -(2**15) and type_.dtype.max < 2**15
    )
    whole = channels // width * width if paired else 0
    for start, _ in spans(whole, width):
        codes = T.alloc_buffer((width,), "int16", scope="global")
        with vector(width) as lane:
            T.buffer_store(codes, T.cast(code(start + lane), "int16"), [lane])
        every, half, row = T.Ramp(0, 1, lanes), T.Ramp(0, 1, lanes // 2), codes[T.Ramp(0, 1, width)]
        T.buffer_store(sums, words.total(sums[every], row, lanes), [every])
        pairs = T.reinterpret(f"uint64x{lanes // 2}", words.squares(row, lanes))  # sums of two squares, up to 2**31
        low = T.reinterpret(f"int64x{lanes // 2}", pairs & T.Broadcast(T.uint64(0xFFFFFFFF), lanes // 2))
        high = T.reinterpret(f"int64x{lanes // 2}", pairs >> T.Broadcast(T.uint64(32), lanes // 2))
        T.buffer_store(squares, squares[half] + low + high, [half])
    for start, count in chunks(channels - whole, lanes):
        with vector(count) as lane:
            T.buffer_store(sums, sums[lane] + code(whole + start + lane), [lane])
        with vector(count) as lane:
            wide = T.cast(code(whole + start + lane), "int64")
            T.buffer_store(squares, squares[lane] + wide * wide, [lane])
    return sums, squares


def square_root(v: Expr) -> Expr:
    """floor(sqrt(v)) of an int64 expression 0 <= v < 2**62: a rounded one, corrected by at most one."""
    value = variable("int64", v)
    root = variable("int64", T.cast(T.sqrt(T.cast(value[0], "float64")), "int64"))
    T.buffer_store(root, T.Select(root[0] * root[0] > value[0], root[0] - T.int64(1), root[0]), [0])
    above = root[0] + T.int64(1)
    T.buffer_store(root, T.Select(above * above <= value[0], above, root[0]), [0])
    return root
